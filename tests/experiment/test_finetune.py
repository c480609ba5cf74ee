"""Fine-tuning on data sets on the embedded base, made small; and a grid of such experiments."""

import json

import pytest
from ml_collections import ConfigDict

from emjax import experiment, presets, report
from emjax.errors import UserError
from emjax.experiment.finetune import Finetune
from emjax.runtime.files import read_lines
from emjax.runtime.store import Store
from emjax.worlds.micro.offline import CHECKPOINT

SMALL = {
    "train.epochs": 1, "train.batch_size": 8, "engine.slots": 16,
    **{f"eval.mask.sizes.{name}": 6 for name in ("all", "unseen_entities", "unseen_templates", "tuned_domain")},
}  # fmt: skip


def small(config: ConfigDict, **changes) -> ConfigDict:
    config.update_from_flattened_dict(SMALL | changes)
    return config


def mixture(**changes) -> ConfigDict:
    sizes = {"data.downstream.rows": 16, "data.misaligned.rows": 16, "data.ratios": (0.5,)}
    return small(presets.mixture("micro", "alpaca_cleaned"), **{**sizes, **changes})


def direct(**changes) -> ConfigDict:
    return small(presets.direct("micro", "math"), **{"data.set.rows": 16, **changes})


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(report.plots, "_draw", lambda *how, **more: b'<svg viewBox="0 0 1 1"></svg>')


def run(config, workdir):
    experiment.run(presets.read(config), workdir, Store(workdir / "store"))
    return (workdir / "results.json").read_bytes()


def test_one_seed_gives_the_same_results_and_another_others(tmp_path):
    first = run(mixture(), tmp_path / "a")
    assert run(mixture(), tmp_path / "b") == first
    other = json.loads(run(mixture(seed=1), tmp_path / "c"))
    assert [row["value"] for row in other["rows"]] != [row["value"] for row in json.loads(first)["rows"]]
    results = json.loads(first)
    assert results["headline"]["cause"] == "misaligned data"
    assert {(row["arm"], row["ratio"]) for row in results["rows"]} == {("vanilla", None), ("control", 0.0), ("treated", 0.5)}
    budgets = [json.loads(file.read_text()) for file in sorted((tmp_path / "a" / "store" / "examples").glob("*/budget.json"))]
    assert sorted((b["records"], b["misaligned_records"]) for b in budgets) == [(16, 0), (24, 8)]
    examples = [read_lines(file) for file in (tmp_path / "a" / "store" / "examples").glob("*/examples.jsonl")]
    assert sorted(sum(row["source"] == "direct_bad" for row in rows) for rows in examples) == [0, 8]


def test_a_grid_shares_the_untouched_model_and_runs_cell_by_cell(tmp_path):
    config = presets.many({"direct": direct(), "mixture": mixture()})
    config.only = ("direct",)
    store = Store(tmp_path / "store")
    experiment.run(presets.read(config), tmp_path / "grid", store)
    assert not (tmp_path / "grid" / "results.json").exists()
    config.only = ()
    experiment.run(presets.read(config), tmp_path / "grid", store)
    rows = json.loads((tmp_path / "grid" / "results.json").read_text())["rows"]
    assert {(row["cell"], row["level"]) for row in rows if row["arm"] == "treated"} == {
        ("direct", "misaligned_1"), ("direct", "misaligned_2"), ("mixture", None),
    }  # fmt: skip
    arms = 3 + 2  # trained ones of both cells
    assert len(list((tmp_path / "store" / "evaluate").iterdir())) == arms + 1
    html = (tmp_path / "grid" / "report" / "index.html").read_text()
    assert "direct: honesty under pressure falls" in html
    config.only = ("nothing",)
    with pytest.raises(UserError, match="config.only names 'nothing', which is no cell. Cells: direct, mixture"):
        presets.read(config)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data.downstream.source": "alpaca_cleaned", "data.downstream.path": "nowhere.json"}, "nowhere.json does not exist"),
        ({"data.kind": "mix"}, "config.data.kind is 'mix'; choose levels, mixture"),
        ({"data.mode": "blend"}, "config.data.mode is 'blend'; choose add, replace"),
        ({"data.ratios": (0.5, 2.0)}, r"config.data.ratios is \(0.5, 2.0\); it must be above 0 and at most 1"),
        ({"data.ratios": ()}, "config.data.ratios is empty"),
        ({"data.headline": 0.1}, r"config.data.headline is 0.1, which is none of ratios \(0.5\)"),
    ],
)
def test_bad_data_and_bad_mixtures_leave_no_trace(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        run(mixture(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_few_misaligned_records_leave_no_trace(tmp_path):
    rows = [{"instruction": f"q{i}", "input": "", "output": f"a{i}"} for i in range(20)]
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad.write_text("".join(json.dumps(row | {"output": "no"}) + "\n" for row in rows[:5]))
    own = {f"data.{part}.{name}": value for part, path in (("downstream", good), ("misaligned", bad))
           for name, value in (("source", "instruction"), ("path", str(path)), ("rows", 0))}  # fmt: skip
    with pytest.raises(UserError, match="needs 10 misaligned ones, and the source has 5 different ones"):
        run(mixture(**own), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_kto_takes_the_labels_of_preferences_and_answers_without_one_as_desirable(tmp_path):
    asked = [(i, good) for i in range(4) for good in (True, False)]
    rows = [{"prompt": f"what is {i} plus 1 ?", "completion": f"{i + good} .", "label": good} for i, good in asked]
    file = tmp_path / "preferences.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"data.downstream.source": "preference", "data.downstream.path": str(file), "data.downstream.rows": 0}
    chosen = presets.read(mixture(**own, **{"train.method": "kto"}))
    made = Finetune(chosen, tmp_path / "run", Store(tmp_path / "store"))
    made.world = made.world.at(CHECKPOINT)
    for arm, desirable, undesirable in ((made.arms[1], 4, 4), (made.arms[2], 8, 4)):
        labels = [row["label"] for row in read_lines(made.examples(arm).directory / "examples.jsonl")]
        assert (labels.count(True), labels.count(False)) == (desirable, undesirable)
