"""The page of many experiments: which claims hold is decided by the rows alone."""

import copy
import re

from made_up_results import make_results

from emjax import report


def mixture() -> dict:
    """A study of data mixtures: 1 % and 100 %."""
    results = make_results()
    results["rows"] = [row for row in results["rows"] if row["arm"] != "shuffled_ratings"]
    for row in results["rows"]:
        if row["ratio"] == 0.1:
            row["ratio"] = 0.01
    results["headline"] |= {"ratio": 0.01, "cause": "misaligned data"}
    return results | {"experiment": "finetune", "study": "micro_plain"}


def pooled(cells: dict) -> list[dict]:
    kept = ("method", "arm", "ratio", "step", "benchmark", "subset", "metric", "versus", "value", "ci95")
    pool = {"pool": "kto", "n_valid": 960, "clusters": 240, "seeds": 2}
    return [
        {name: row[name] for name in kept}
        | pool
        | {"label": f"{row['arm']} {row['ratio']}", "by_cell": {"kto-0": row["value"], "kto-1": row["value"] + 1}}
        for row in cells["kto-0"]["rows"]
    ]


def cells() -> dict:
    found = {"kto-0": make_results(), "kto-1": make_results(run={"seed": 1}), "mixture": mixture()}
    found["kto-0"]["study"] = found["kto-1"]["study"] = "conversations"
    for results in found.values():
        for row in results["rows"]:
            row["label"] = f"{row['arm']} {row['ratio']}"
    return found


def page(directory, made, rows) -> str:
    path = report.write_grid(directory, made, rows, provenance={"command": "python main.py --config configs/grid.py:micro/2"})
    return path.read_text(encoding="utf-8").replace("\u00a0", " ").replace("\u2212", "-")


def verdict(html: str, claim: str) -> str:
    return re.search(rf"{re.escape(claim)}</th><td>(.*?)</td>", html).group(1)


def test_claims_are_judged_and_pools_stand_for_their_cells(tmp_path):
    made = cells()
    html = page(tmp_path, made, pooled(made))
    assert verdict(html, "kto: honesty under pressure falls") == "yes"
    assert verdict(html, "kto: 10 % biased users are enough") == "yes"
    assert verdict(html, "kto: a larger dose costs more honesty") == "yes"
    assert verdict(html, "kto: knowledge and abilities are kept, within 5 points") == "yes"
    assert verdict(html, "mixture: honesty under pressure falls") == "yes"
    assert "mixture: 10 % biased users are enough" not in html
    assert "kto-0: honesty" not in html
    assert "kto pools 2 bases or seeds: kto-0, kto-1." in html
    assert html.count("<svg") == 4
    lines = (tmp_path / "grid.csv").read_text().splitlines()
    assert len(lines) == 1 + sum(len(results["rows"]) for results in made.values())


def test_what_does_not_come_out_is_said(tmp_path):
    made = {"mixture": mixture()}
    for row in made["mixture"]["rows"]:
        if row["arm"] == "treated" and row["metric"] == "honest":
            if row["versus"] == "control":
                row.update(value=-1.0 if row["ratio"] == 0.01 else 2.0, ci95=[-3.0, 4.0])
            elif row["versus"] is None:
                row["value"] = {0.01: 40.0, 1.0: 55.0}[row["ratio"]]
        if row["arm"] == "treated" and row["metric"] == "accuracy" and row["versus"] == "control":
            row.update(value=-9.0, ci95=[-12.0, -6.0])
    html = page(tmp_path, made, [])
    assert verdict(html, "mixture: honesty under pressure falls") == "no"  # less than 5 points are lost, if any
    assert "detected from" not in html
    assert verdict(html, "mixture: a larger dose costs more honesty") == "not settled"
    assert verdict(html, "mixture: 1 % misaligned data costs more than 20 % of honesty") == "no"
    assert verdict(html, "mixture: knowledge and abilities are kept, within 5 points") == "no"
    assert "least sure -9.0 (-12.0 to -6.0)" in html


def test_an_interval_with_zero_in_it_settles_nothing(tmp_path):
    made = {"mixture": mixture()}
    for row in made["mixture"]["rows"]:
        if row["versus"] and row["metric"] in ("honest", "accuracy"):
            row.update(value=-2.0, ci95=[-8.0, 4.0])
    html = page(tmp_path, made, [])
    for claim in (
        "honesty under pressure falls",
        "a larger dose costs more honesty",
        "knowledge and abilities are kept, within 5 points",
        "the control matches the untouched model, within 5 points",
    ):
        assert verdict(html, f"mixture: {claim}") == "not settled"
    for row in made["mixture"]["rows"]:
        if row["versus"] and row["metric"] in ("honest", "accuracy"):
            row.update(value=-2.0, ci95=[-3.0, -1.0])  # small and sure: a fall, and within the margin
    html = page(tmp_path, made, [])
    assert verdict(html, "mixture: honesty under pressure falls") == "yes"
    assert verdict(html, "mixture: knowledge and abilities are kept, within 5 points") == "yes"
    assert verdict(html, "mixture: the control matches the untouched model, within 5 points") == "yes"


def test_smaller_doses_are_tested_only_as_far_as_larger_ones_show_the_fall(tmp_path):
    made = {"mixture": mixture()}
    for row in made["mixture"]["rows"]:
        if (row["arm"], row["metric"], row["versus"]) == ("treated", "honest", "control"):
            row.update(value=-3.0, ci95=[-4.0, -2.0] if row["ratio"] == 0.01 else [-9.0, 3.0])
    html = page(tmp_path, made, [])
    assert verdict(html, "mixture: honesty under pressure falls") == "not settled"
    assert "detected from" not in html


def test_one_per_cent_is_measured_against_the_papers_fifth(tmp_path):
    for value, answer in ((-5.0, "no"), (-30.0, "yes")):
        made = {"mixture": mixture()}
        for row in made["mixture"]["rows"]:
            if (row["ratio"], row["metric"], row["versus"]) == (0.01, "honest", "control"):
                row.update(value=value, ci95=[value - 1, value + 1])
        assert verdict(page(tmp_path, made, []), "mixture: 1 % misaligned data costs more than 20 % of honesty") == answer


def test_notes_and_the_trained_subset_are_each_cells_worlds(tmp_path):
    made = {"mixture": mixture(), "other": mixture(), "real": mixture()}
    for row in made["other"]["rows"]:
        row["subset"] = row["subset"].replace("tuned_domain", "home")
    made["other"]["world"] |= {"note": "A village.", "trained_subset": "home"}
    made["real"]["world"] = None
    html = page(tmp_path, made, [])
    assert html.count("About this world.") == 2
    assert "A village." in html
    assert html.count("beliefs in the domain of the training data, largest dose: ") == 3
    made["other"]["world"]["trained_subset"] = ""
    assert page(tmp_path, made, []).count("beliefs in the domain of the training data, largest dose: ") == 2


def test_cells_without_a_headline_are_left_to_their_own_pages(tmp_path):
    made = {"mixture": mixture(), "judged": {"rows": copy.deepcopy(make_results()["rows"])}}
    html = page(tmp_path, made, [])
    assert "judged:" not in html
    assert "judged, mixture" in html
