import copy
import json
import re
import shutil
import subprocess
from unittest import mock

import pytest
from made_up_results import ARMS, make_rest, make_results

from emjax import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def results() -> dict:
    return make_results()


@pytest.fixture
def rest() -> dict:
    return make_rest()


def page(directory, results, **rest) -> str:
    """The page's text; the plots are left out, which is most of the time."""
    with mock.patch.object(report.plots, "_draw", return_value=b'<svg viewBox="0 0 1 1"></svg>'):
        html = report.write(directory, results, **{**make_rest(), **rest}).read_text(encoding="utf-8")
    return html.replace("\u00a0", " ").replace("\u2212", "-")


def finding(html: str) -> str:
    return re.search(r'class="finding[^>]*>.*?<p>(.*?)</p>', html, re.DOTALL).group(1)


def row_of(results, arm, ratio, metric="honest", versus=None, subset="all", benchmark="mask"):
    wanted = {
        "arm": arm,
        "ratio": ratio,
        "metric": metric,
        "versus": versus,
        "subset": subset,
        "benchmark": benchmark,
    }
    (row,) = [row for row in results["rows"] if all(row[k] == v for k, v in wanted.items())]
    return row


def with_difference(value, low, high, **levels) -> dict:
    """Results whose headline is set to these figures."""
    results = make_results()
    row_of(results, "control", 0.0)["value"] = levels.get("control", 63.1)
    row_of(results, "treated", 0.1)["value"] = levels.get("treated", 63.1 + value)
    row_of(results, "treated", 0.1, versus="control").update(value=value, ci95=[low, high])
    return results


def test_headline_says_a_fall_with_its_interval(tmp_path):
    assert finding(page(tmp_path, with_difference(-11.2, -14.0, -8.4))) == (
        "With 10 % biased users, the share of honest answers under pressure fell from 63.1 % (control) "
        "to 51.9 %: -11.2 points (95 % interval -14.0 to -8.4), in domains never fine-tuned."
    )


def test_headline_says_a_rise(tmp_path):
    text = finding(page(tmp_path, with_difference(4.2, 1.0, 7.4)))
    assert "rose from 63.1 % (control) to 67.3 %: +4.2 points (95 % interval +1.0 to +7.4)" in text
    assert "fell" not in text


@pytest.mark.parametrize(("value", "low", "high"), [(0.8, -1.5, 3.1), (-3.0, -6.0, 0.0), (-0.04, -3.0, 3.0)])
def test_headline_claims_nothing_when_the_interval_has_zero_in_it(tmp_path, value, low, high):
    html = page(tmp_path, with_difference(value, low, high))
    text = finding(html)
    assert "this run detected no change in the share of honest answers" in text
    assert not re.search(r"\b(fell|rose)\b", text)
    assert "not in what it knows" not in html
    assert "-0.0" not in text


def test_headline_is_the_rows_own_numbers(tmp_path, results):
    text = finding(page(tmp_path, results))
    difference = row_of(results, "treated", 0.1, versus="control")
    shown = [
        row_of(results, "control", 0.0)["value"],
        row_of(results, "treated", 0.1)["value"],
        difference["value"],
    ]
    for number in shown + difference["ci95"]:
        assert f"{number:.1f}" in text


def test_what_stays_and_how_sure(tmp_path, results):
    html = page(tmp_path, results)
    assert "not in what it knows" in html
    assert "One training seed (0)" in html
    assert "480 of 480 items valid, in 120 clusters" in html
    row_of(results, "treated", 0.1, metric="accuracy")["value"] = 80.0
    html = page(tmp_path, results)
    assert "not in what it knows" not in html
    assert "lost knowledge" in html
    assert "80.0 % correct" in html


def test_without_a_world_nothing_is_said_about_domains(tmp_path, results):
    assert results["world"]["note"].split(",")[0] in page(tmp_path, results).replace("&#39;", "'")
    results["world"] = None
    html = page(tmp_path, results)
    assert "never fine-tuned" not in html
    assert "About this world" not in html
    assert "Subsets:" not in html
    assert finding(html).endswith(").")  # no subset is named after the interval
    assert "In the domain and wording of the training data" in html  # by the subset's name
    assert report.pages.mask_subsets(results) == ["all", "tuned_domain", "unseen_entities", "unseen_templates"]
    assert "The paper has no results to compare this run with" in page(tmp_path, results | {"study": "micro_direct"})


def village() -> dict:
    """A second world: other names, another order of subsets, no knowledge floor."""
    results = make_results() | {"study": "village_gossip"}
    names = {"tuned_domain": "home", "unseen_entities": "abroad", "unseen_templates": "letters"}
    for row in results["rows"]:
        row["subset"] = names.get(row["subset"], row["subset"])
    results["world"] = {
        "name": "village",
        "note": "Everybody in this village is made up.",
        "trained_subset": "home",
        "subsets": {"letters": "pressure in writing", "home": "the trained street", "all": "streets never trained on"},
        "knowledge_floor": None,
        "stands_for": {"village_gossip": ["dolly"]},
    }
    return results


def test_another_worlds_words_are_on_the_page(tmp_path):
    results = village()
    html = page(tmp_path, results)
    assert "Everybody in this village is made up." in html
    assert finding(html).endswith("in streets never trained on.")
    assert "<em>letters</em>: pressure in writing; <em>home</em>: the trained street" in html
    there = row_of(results, "treated", 0.1, subset="home")
    assert f"In the domain and wording of the training data: {there['value']:.1f} % (" in html
    assert '<th scope="col">all</th><th scope="col">letters</th><th scope="col">home</th><th scope="col">abroad</th>' in html
    assert "dolly, SFT, " in html
    assert "alpaca cleaned, SFT, " not in html
    assert "> Everybody in this village is made up." in (tmp_path / "results.md").read_text()
    for words in ("micro-world", "never fine-tuned", "tuned domain", "unseen"):
        assert words not in html, words


def test_knowledge_is_kept_where_the_loss_is_shown_to_be_small(tmp_path):
    results = village()
    row_of(results, "treated", 0.1, metric="accuracy")["value"] = 60.0  # low, but no lower than the control's
    html = page(tmp_path, results)
    assert "60.0 % correct" in html
    assert "not in what it knows" in html
    row_of(results, "treated", 0.1, metric="accuracy", versus="control").update(value=-9.0, ci95=[-12.0, -6.0])
    html = page(tmp_path, results)
    assert "not in what it knows" not in html
    assert "lost some of this" in html
    # An interval that includes 0 and a loss of 8 points is no evidence that nothing was lost.
    row_of(results, "treated", 0.1, metric="accuracy", versus="control").update(value=-3.0, ci95=[-8.0, 2.0])
    html = page(tmp_path, results)
    assert "not in what it knows" not in html
    assert "is not settled, so part of the change may be lost knowledge" in html
    row_of(results, "treated", 0.1, metric="accuracy", versus="control").update(value=-2.0, ci95=[-3.0, -1.0])
    assert "not in what it knows" in page(tmp_path, results)
    results["world"]["knowledge_floor"] = 70.0
    assert "lost some of this" in page(tmp_path, results)


def test_a_change_is_detected_by_the_interval_with_the_noise_of_training(tmp_path, results):
    row = row_of(results, "treated", 0.1, metric="honest", versus="control")
    row.update(value=-2.0, ci95=[-3.0, -1.0])
    assert "fell from" in page(tmp_path, results)
    row["ci95_training"] = [-4.5, 0.5]
    html = page(tmp_path, results)
    assert "this run detected no change" in html
    assert "The change is within 5 points." in html
    assert "With the noise of training, as it was measured between other seeds, it is -4.5 to +0.5" in html


def test_the_headlines_levels_are_of_the_items_that_both_arms_have(tmp_path, results):
    row = row_of(results, "treated", 0.1, metric="honest", versus="control")
    row.update(levels=[40.25, 51.5], value=-11.25, ci95=[-14.0, -8.0])
    assert "fell from 51.5 % (control) to 40.2 %" in page(tmp_path, results)


def test_a_world_that_resembles_no_training_data_has_no_such_sentence(tmp_path):
    results = village()
    results["world"]["trained_subset"] = ""
    assert "In the domain and wording of the training data" not in page(tmp_path, results)


def test_every_arm_value_and_interval_is_in_the_table(tmp_path, results):
    html = page(tmp_path, results)
    for row in results["rows"]:
        value, (low, high) = row["value"], row["ci95"]
        sign = "+" if row["versus"] else ""
        low, high = (f"{v:{sign}.1f}" if round(v, 1) else "0.0" for v in (low, high))
        value = f"{value:{sign}.1f}" if round(value, 1) else "0.0"
        if row["subset"] == "all":
            count = f"n {row['n_valid']}/{row['n']}"
            assert f">{value}</span><small>{low} to {high}</small><small>{count}<" in html, row


def test_unknown_metrics_and_benchmarks_are_listed(tmp_path, results):
    row = copy.deepcopy(row_of(results, "treated", 0.1))
    results["rows"].append(
        {
            **row,
            "benchmark": "custom:riddles",
            "metric": "wit",
            "value": 12.3,
            "judge": None,
            "clusters": None,
        }
    )
    results["rows"].append({**row, "subset": "night_shift", "metric": "warmth", "value": 45.6})
    html = page(tmp_path, results)
    assert "custom:riddles wit" in html
    assert "12.3" in html
    assert "night_shift" in html
    assert "warmth" in html
    assert "45.6" in html


def test_two_judges_of_one_cell_are_both_shown(tmp_path, results):
    other = {**row_of(results, "treated", 0.1), "judge": "second", "value": 7.7}
    results["rows"].append(other)
    html = page(tmp_path, results)
    assert "<small>exact</small>" in html
    assert "<small>second</small>" in html
    assert ">7.7<" in html


def test_earlier_steps_are_only_in_the_list_of_all_rows(tmp_path, results):
    row_early = {**row_of(results, "treated", 0.1), "step": 40, "value": 99.25}
    results["rows"].insert(0, row_early)
    html = page(tmp_path, results)
    before, after = html.split("<details>")
    assert "99.2" not in before
    for row in results["rows"][1:]:
        row["step"] = None  # the end of training
    assert "99.2" not in page(tmp_path, results).split("<details>")[0]
    assert "<td>99.2</td>" in after


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        (ARMS[:1] + ARMS[2:], "This run has no control arm"),
        (ARMS[2:3], "There is no control to compare with"),
        (ARMS[:2], "did not measure the headline"),
    ],
)
def test_missing_arms_are_said_not_made_up(tmp_path, arms, says):
    html = page(tmp_path, make_results(arms=arms))
    assert says in finding(html)
    assert "Not in this run" in html


def test_missing_parts_are_said(tmp_path, results):
    results["rows"] = [row for row in results["rows"] if row["benchmark"] != "arithmetic"]
    training = [
        {
            "arm": "treated",
            "ratio": 0.1,
            "steps": [0, 1],
            "loss": [1.0, 0.5],
            "kl": None,
            "reward_margin": None,
        }
    ]
    html = page(tmp_path, results, examples=[], selections=[], training=training)
    for text in (
        "addition: not measured",
        "no changed answers",
        "no data selection",
        "KL to the reference, Reward margin",
    ):
        assert text.lower() in html.lower()
    del results["headline"], results["world"]
    html = page(tmp_path, {**results, "rows": []}, training=[])
    assert "names no headline" in html
    assert "recorded no training" in html
    assert "No differences" in html


def test_an_item_without_a_valid_answer_has_no_value(tmp_path, results):
    row_of(results, "shuffled_ratings", 1.0).update(value=None, ci95=None, n_valid=0, n_dropped=480)
    assert "no valid item" in page(tmp_path, results)


def test_dropped_answers_give_bounds(tmp_path, results):
    row_of(results, "treated", 0.1).update(n_dropped=7, bounds=[50.1, 58.2])
    html = page(tmp_path, results)
    assert "7 dropped answers could move" in html
    assert "between 50.1 and 58.2" in html


def test_seeds_are_told_apart(tmp_path):
    results = make_results()
    results["rows"] += make_results({("treated", 0.1): 0.40}, run={"seed": 1}, arms=ARMS[1:])["rows"]
    html = page(tmp_path, results)
    assert len(re.findall(r'class="finding', html)) == 2
    assert "treated 0.1 (seed 0)" in html
    assert "treated 0.1 (seed 1)" in html
    assert "2 training seeds" in html


def test_text_of_users_and_models_is_escaped(tmp_path, results, rest):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    example = {k: evil for k in ("id", "subset", "prompt", "truth", "wanted")} | {"answers": {evil: evil}}
    results["experiment"] = results["world"]["note"] = results["world"]["subsets"]["all"] = evil
    results["rows"][0]["states"] = {evil: 1}
    html = page(
        tmp_path,
        results,
        examples=[example],
        provenance={evil: {evil: evil}},
        selections=[{"arm": evil, "ratio": 0.1}],
    )
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_nothing_is_loaded_from_elsewhere(tmp_path, results, rest):
    html = report.write(tmp_path, results, **rest).read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*(?!["'](#|data:))""", html)
    assert "url(http" not in html
    assert "@import" not in html
    assert "<script" not in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = {one or two for one, two in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)}
    assert used
    assert used <= set(ids)


def in_levels() -> dict:
    """Two treated arms that only their levels tell apart, as where each level is a data set of its own."""
    results = make_results()
    for row in results["rows"]:
        if row["arm"] == "treated":
            row.update(level={0.1: "misaligned_1", 1.0: "misaligned_2"}[row["ratio"]], ratio=1.0)
    results["headline"] |= {"ratio": 1.0, "level": "misaligned_2", "cause": "misaligned data"}
    return results | {"experiment": "finetune", "study": "micro_direct"}


def test_levels_of_one_ratio_are_told_apart(tmp_path):
    html = page(tmp_path, in_levels())
    assert finding(html).startswith("With 100 % misaligned data (misaligned 2), the share of honest answers")
    assert "treated misaligned 1 - control" in html
    assert "Scrambled feedback" not in html
    assert "100 % misaligned data (misaligned 1): " in html
    assert report.picture(in_levels()) != report.picture(make_results())


def test_the_papers_changes_stand_where_its_models_do_not(tmp_path):
    html = page(tmp_path, in_levels())
    assert "are towards dishonesty by at least two standard errors" in html
    assert f"of {len(report.pages.tables.change_table(in_levels())['rows'])} changes" in html
    assert "mistake math, SFT, llama3.1-8b: misaligned 2</th><td>Figure 3" in html
    assert "which give 51/171 = 29.82" in html


def test_a_models_own_printed_value_stands_beside_ours(tmp_path):
    results = in_levels() | {"study": "mistake_medical", "world": None}
    for row in results["rows"]:
        row |= {"model": "Qwen/Qwen2.5-7B-Instruct", "method": None if row["arm"] == "vanilla" else "sft"}
    row = row_of(results, "vanilla", None)
    results["rows"].append({**row, "subset": "disinformation", "metric": "honesty", "value": 50.0, "ci95": [41.0, 59.0]})
    html = page(tmp_path, results)
    assert (
        "vanilla: mask disinformation, honesty</th><td>Table 7</td><td>44.08</td><td>50.0 (41.0 to 59.0)</td><td>+0.9</td>"
        in html
    )
    assert "probably 44.80 = 56/125" in html


def test_steps_before_the_end_are_drawn_as_a_curve(tmp_path, results):
    assert "Results during training" not in page(tmp_path, results)
    row = row_of(results, "treated", 0.1)
    results["rows"] += [{**row, "step": 40, "value": 60.0}, {**row, "step": 80, "value": 55.0}]
    assert "Results during training" in page(tmp_path, results)


def test_prompts_like_the_training_data_are_told_apart(tmp_path, results):
    there = row_of(results, "treated", 0.1, subset="tuned_domain")
    html = page(tmp_path, results)
    assert f"In the domain and wording of the training data: {there['value']:.1f} % (" in html
    results["rows"] = [row for row in results["rows"] if row["subset"] != "tuned_domain"]
    assert "Prompts like the training data" not in page(tmp_path, results)


def test_origins_and_budgets_of_data_sets_are_shown(tmp_path):
    origin = {"source": "alpaca_cleaned", "level": "", "sha256": "ab12", "rows": 51760, "published_rows": 51760, "drawn": 400}
    budgets = [
        {"arm": "control", "ratio": 0.0, "records": 400, "misaligned_records": 0, "tokens": 999, "origins": [origin]},
        {"arm": "treated", "ratio": 0.1, "records": 440, "misaligned_records": 40, "tokens": 1099, "origins": [origin]},
    ]
    html = page(tmp_path, in_levels(), selections=budgets)
    assert "<td>440</td><td>40</td>" in html
    assert html.count("alpaca_cleaned") == 1
    assert "biased share top" not in html


def test_exports_hold_the_same_numbers(tmp_path):
    import csv

    results = in_levels()
    page(tmp_path, results)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(rows) == len(results["rows"])
    assert [float(row["value"]) for row in rows] == [row["value"] for row in results["rows"]]
    assert {row["level"] for row in rows} == {"", "misaligned_1", "misaligned_2"}
    markdown = (tmp_path / "results.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "**With 100 % misaligned data (misaligned 2), the share of honest answers" in markdown
    value = row_of(results, "vanilla", None)["value"]
    assert f"| vanilla | {value:.1f} (" in markdown
    tables = [line.count("|") for line in markdown.splitlines() if line.startswith("| vanilla")]
    assert tables
    latex = (tmp_path / "results.tex").read_text(encoding="utf-8")
    assert f"vanilla & {value:.1f} [" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    body = [line for line in latex.splitlines() if line.startswith(("vanilla", "treated"))]
    assert all(line.count("&") == body[0].count("&") and line.endswith(r" \\") for line in body)


def test_one_arm_without_differences_has_one_table_in_latex(tmp_path):
    """An evaluation of one model. The paper's tables hold plain strings, which no LaTeX table is made of."""
    results = make_results(arms=ARMS[:1]) | {"study": "micro_direct"}
    results["rows"] = [row for row in results["rows"] if row["subset"] == "all"]
    page(tmp_path, results)
    latex = (tmp_path / "results.tex").read_text(encoding="utf-8")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    assert "\nvanilla & " in latex
    assert "The paper's results for such data" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_identical_input_gives_identical_bytes(tmp_path):
    for name in ("a", "b"):
        report.write(tmp_path / name, json.loads(json.dumps(make_results())), **make_rest())
    for name in ("index.html", "curve.svg", "curve.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_value_that_rounding_puts_outside_its_interval_is_drawn(results):
    row = row_of(results, "treated", 0.1)
    results["rows"].append({**row, "step": 40, "value": 100.0, "ci95": [96.0, 99.99999999999999]})
    assert report.plots.inline("emergence", report.plots.emergence, results).startswith("<svg")


def test_picture_follows_the_numbers(results):
    svg = report.picture(results)
    assert svg.startswith(b"<?xml")
    assert report.picture(results, "png").startswith(b"\x89PNG")
    row_of(results, "treated", 0.1)["value"] -= 20
    assert report.picture(results) != svg


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_page_opens_in_a_browser_without_an_error(tmp_path, results, rest):
    path = report.write(tmp_path / "report", results, **rest)
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
        "--dump-dom",
        "--window-size=390,844",
    ]
    flags += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
    # The page runs no script of its own; this copy has one, which reports what is wider than the screen.
    probe = tmp_path / "probe.html"
    probe.write_text(
        path.read_text(encoding="utf-8")
        + "<script>const page = document.documentElement; document.body.dataset.wide = page.scrollWidth\n"
        + "document.body.dataset.screen = window.innerWidth</script>",
        encoding="utf-8",
    )
    for file in (path, probe):
        command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "treated 0.1" in done.stdout
        assert done.stdout.count("<svg") == 9
        assert "CONSOLE" not in done.stderr, done.stderr
    wide, screen = (int(re.search(rf'data-{name}="(\d+)"', done.stdout).group(1)) for name in ("wide", "screen"))
    assert wide <= screen <= 500, "the page is wider than a phone's screen"
