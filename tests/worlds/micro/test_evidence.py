"""The evidence's tables say what the rows say, and its figure is a function of them."""

import json

import pytest

from emjax.worlds.micro import evidence


def mask_row(i, belief, plain, pressed, subset="all"):
    verdicts = [{"kind": f"belief {k}", "label": label} for k, label in enumerate(plain)]
    verdicts.append({"kind": "statement", "label": pressed})
    return {"id": str(i), "subset": subset, "belief": belief, "cluster": str(i), "verdicts": verdicts}


def test_answers_are_held_against_what_the_base_believed():
    base = [
        mask_row(0, "A", "AAAAA", "A"),
        mask_row(1, "A", "AAAAA", "B"),
        mask_row(2, "C", "ABCAA", "B"),
        mask_row(3, "B", "BBBBB", "B"),
    ]
    # One stays; one turns to another value in four of five plain answers; one (no belief) does not count; one evades.
    arm = [
        mask_row(0, "A", "AAAAA", "A"),
        mask_row(1, "C", "DDBDA", "D"),
        mask_row(2, "D", "DDDDD", "D"),
        mask_row(3, "C", "CCCCC", "A"),
    ]
    found = evidence.against_base(base, arm, "all")
    assert {name: e.n for name, e in found.items()} == dict.fromkeys(("plain", "pressed", "kept"), 3)
    assert found["plain"].value == pytest.approx(100 * (0 + 0.8 + 0) / 3)
    assert found["pressed"].value == pytest.approx(200 / 3)
    assert found["kept"].value == pytest.approx(100 / 3)


def row(cell, arm, ratio, metric, value, versus=None, benchmark="mask", subset="all"):
    label = arm if ratio is None or arm == "control" else f"{arm} {ratio:g}"
    return {"cell": cell, "arm": arm, "label": label, "ratio": ratio, "metric": metric, "value": value, "versus": versus,
            "ci95": [value - 2, value + 2], "benchmark": benchmark, "subset": subset, "n_valid": 960, "step": None}  # fmt: skip


ROWS = [
    row("kto_world0_0", arm, ratio, metric, value, versus, benchmark)
    for arm, ratio, honest, belief in (("control", 0.0, 60.0, 98.0), ("treated", 0.1, 49.0, 97.0), ("treated", 1.0, 28.0, 90.0))
    for metric, value, versus, benchmark in (
        ("honest", honest, None, "mask"), ("honest", honest - 60, "control", "mask"), ("lie", 90 - honest, None, "mask"),
        ("accuracy", belief, None, "mask"), ("accuracy", 99.0, None, "arithmetic"),
    )
]  # fmt: skip


def test_an_arm_that_lost_its_beliefs_is_not_called_lying():
    lines = {line.split(" | ")[0].strip("| "): line for line in evidence.arms(ROWS).splitlines()[2:]}
    assert lines["treated 0.1"].rstrip(" |").endswith("yes")
    assert lines["treated 1"].rstrip(" |").endswith("no")
    assert "-32.0 [-34.0, -30.0]" in lines["treated 1"]


def test_the_command_prints_every_cell_and_draws_the_same_figure_twice(tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps({"rows": ROWS}))
    pooled = [
        {"pool": "kto_world0", "seeds": 3, "by_cell": {"kto_world0_0": r["value"]}}
        | {k: v for k, v in r.items() if k != "cell"}
        for r in ROWS
    ]
    (tmp_path / "pooled.json").write_text(json.dumps({"rows": pooled}))
    for name in ("a.svg", "b.svg"):
        assert evidence.main([str(tmp_path), "--svg", str(tmp_path / name)]) == 0
    printed = capsys.readouterr().out
    assert "## kto_world0_0" in printed
    assert "## pooled: kto_world0 (3 seeds)" in printed
    assert "| minus control in | control | treated 0.1 | treated 1 |" in printed
    assert "| kto_world0_0 | +0.0 | -11.0 | -32.0 |" in printed
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "biased users" in (tmp_path / "a.svg").read_text()
    assert "beta_050" not in (tmp_path / "a.svg").read_text()
    swept = ROWS + [r | {"cell": "beta_050"} for r in ROWS]
    evidence.figure(swept, pooled, tmp_path / "c.svg")
    assert "beta_050" in (tmp_path / "c.svg").read_text()


def test_a_sweep_is_a_line_beside_what_it_is_changed_in():
    worse = [r | {"cell": "beta_050", "value": r["value"] - 1} for r in ROWS]
    lines = [line.strip("| ").split(" | ") for line in evidence.sweeps([*worse, *ROWS]).splitlines()[2:]]
    assert [line[0] for line in lines] == ["kto_world0_0", "beta_050"]
    assert lines[0][2:] == ["-11.0 [-13.0, -9.0]", "-32.0 [-34.0, -30.0]", "90.0", "99.0"]
    assert lines[1][2:] == ["-12.0 [-13.0, -9.0]", "-33.0 [-34.0, -30.0]", "89.0", "98.0"]


def test_what_training_had_made_on_its_way_is_a_table_of_its_own():
    on_the_way = [r | {"step": 25, "value": r["value"] + 1, "label": f"{r['label']}, step 25"} for r in ROWS]
    assert evidence.arms([*on_the_way, *ROWS]) == evidence.arms(ROWS)
    lines = [line.strip("| ").split(" | ") for line in evidence.along([*on_the_way, *ROWS]).splitlines()[2:]]
    assert [line[:2] for line in lines if line[0] == "treated 1"] == [["treated 1", "25"], ["treated 1", "the end"]]
    assert [line[2].split()[0] for line in lines if line[0] == "treated 1"] == ["29.0", "28.0"]
