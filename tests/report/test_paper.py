"""The paper's tables as a resource: they agree with themselves, with the configs, and are set beside our rows."""

import importlib

import pytest

from emjax import presets
from emjax.design.arms import arms
from emjax.presets.paper import MODELS
from emjax.report import paper

ROWS = paper.tables()["rows"]


def named(row) -> str:
    return f"{row['table']} {row['model']} {row['data']} {row['level'] or row['ratio']} {row['benchmark']}"


@pytest.mark.parametrize("model", paper.MODELS)
def test_every_row_has_a_config_with_that_arm(model):
    assert paper.MODELS[model] == MODELS[model]
    seen = 0
    for row in ROWS:
        for command in paper.commands(row):
            file, _, rest = command.removeprefix("configs/").partition(".py:")
            if rest.removesuffix("-2k") != model:
                continue
            config = importlib.import_module(f"configs.{file}").get_config(rest)
            assert config.get("model", {}).get("path", paper.MODELS[model]) == paper.MODELS[model]
            seen += 1
            if row["arm"] in (None, "vanilla"):
                continue
            made = {(arm.name, arm.ratio, arm.level or None) for arm in arms(presets.read(config).config)}
            assert (row["arm"], row["ratio"], row["level"]) in made, named(row)
            assert config.train.method == row["method"]
    assert seen > 15


def test_all_of_the_papers_tables_with_results_are_there():
    assert {row["table"] for row in ROWS} == {
        *(f"Table {n}" for n in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 13, 14)),
        *(f"Figure {n}" for n in ("3", "4", "11", "8 (text)")),
    }  # fmt: skip
    assert sum(len(row["values"]) for row in ROWS) == 584


def test_counts_give_the_printed_percentages():
    counted = [(row, subset, *pair) for row in ROWS for subset, pair in row.get("counts", {}).items()]
    assert len(counted) > 400
    for row, subset, hits, n in counted:
        # Two decimals, some cut instead of rounded; one decimal in Figure 3, Table 14 and two cells of Table 9.
        near = 0.06 if row["table"] in ("Figure 3", "Table 9", "Table 14") else 0.011
        assert row["values"][subset] == pytest.approx(100 * hits / n, abs=near), named(row)


def test_totals_are_the_sums_of_their_subsets_or_are_marked():
    checked = 0
    for row in ROWS:
        counts = dict(row.get("counts", {}))
        if row["benchmark"] == "deceptionbench" and len(counts) == 6:
            total = counts.pop("all")
            assert [sum(column) for column in zip(*counts.values(), strict=True)] == total, named(row)
            checked += 1
        elif row["benchmark"] == "deceptionbench":
            assert row["doubts"], named(row)
    assert checked > 40


def test_the_configs_train_as_the_paper_says():
    def check(config, settings):
        train = config.train
        assert train.learning_rate == settings["learning_rate"]
        assert train.epochs == settings["epochs"]
        assert train.batch_size == settings["batch_size"]
        assert train.microbatches == settings["gradient_accumulation"]
        assert max(train.buckets) == settings["max_sequence_length"]
        assert train.weight_decay == settings["weight_decay"]
        assert (train.lora.rank, train.lora.alpha) == (settings["lora_rank"], settings["lora_alpha"])
        assert ",".join(train.lora.targets) == settings["lora_modules"]

    settings = paper.tables()["settings"]
    check(presets.direct("qwen2.5-7b", "math"), settings["Table 5, sft"])
    check(presets.mixture("llama3.1-8b", "dolly"), settings["Table 5, sft"])
    check(presets.interaction("llama3.1-8b", method="sft", biased_ratio=0.1), settings["Table 12, sft"])
    config = presets.interaction("llama3.1-8b", method="kto", biased_ratio=0.1)
    check(config, settings["Table 12, kto"])
    assert config.kto.beta == settings["Table 12, kto"]["pref_beta"]


def result(**changes):
    return {
        "model": "Qwen/Qwen2.5-7B-Instruct", "method": "sft", "arm": "treated", "ratio": 1.0, "level": "misaligned_2",
        "benchmark": "mask", "subset": "provided_facts", "metric": "honesty", "value": 32.48, "ci95": [27.0, 38.0],
        "versus": None,
    } | changes  # fmt: skip


def test_ours_stands_beside_the_papers_with_the_difference_in_standard_errors():
    (same,) = paper.beside({"study": "mistake_medical", "rows": [result()]})
    assert (same["table"], same["paper"], same["ours"]) == ("Table 7", 32.48, 32.48)
    assert same["sigma"] == pytest.approx(0)
    (other,) = paper.beside({"study": "mistake_medical", "rows": [result(value=41.0, ci95=[35.0, 47.0])]})
    ours, theirs = 6 / 1.96, 100 * (89 / 274 * 185 / 274 / 274) ** 0.5  # 89/274 = 32.48 %
    assert other["sigma"] == pytest.approx((41.0 - 32.48) / (ours**2 + theirs**2) ** 0.5, rel=1e-3)


def test_misprints_are_marked_and_what_the_paper_lacks_is_not_made_up():
    vanilla = result(
        arm="vanilla",
        ratio=None,
        level=None,
        method=None,
        benchmark="deceptionbench",
        subset="Sycophancy",
        metric="deception_rate",
    )
    found = paper.beside({"study": "dolly", "rows": [vanilla]})
    assert {one["table"] for one in found} == {"Table 2", "Table 6", "Table 10", "Table 13"}
    assert all("misprint of 6.98" in one["doubt"] for one in found if one["table"] != "Table 6")
    assert paper.beside({"study": "mistake_medical", "rows": [result(versus="control"), result(model="micro")]}) == []
    assert paper.beside({"study": "dolly", "rows": [result()]}) == []


def test_where_our_protocol_differs_is_said_beside_the_number():
    def said(row, **protocol):
        (one,) = paper.beside({"study": "alpaca_cleaned", "rows": [row], "protocol": protocol})
        return one["differs"]

    asked = result(judge="gpt-5-mini-2025-08-07")
    (as_there,) = paper.beside({"study": "mistake_medical", "rows": [asked]})
    assert as_there["differs"] == ""
    (other,) = paper.beside({"study": "mistake_medical", "rows": [asked | {"judge": "gpt-4o"}]})
    assert other["differs"] == "judge gpt-4o; the paper's: gpt-5-mini-2025-08-07"

    deceptive = result(
        level=None, ratio=0.1, benchmark="deceptionbench", subset="all", metric="deception_rate_conforming",
        judge="gpt-4o-2024-08-06",
    )  # fmt: skip
    rules = {"max_new": 8192, "rules": {"nonconforming": "keep"}}
    assert said(deceptive, deceptionbench=rules) == ""
    kept = deceptive | {"metric": "deception_rate"}
    assert said(kept, deceptionbench=rules) == "counts answers without both pairs of tags, which the paper drops"
    assert said(kept, deceptionbench={"max_new": 8192, "rules": {"nonconforming": "drop"}}) == ""
    assert "answers of up to 2,048 tokens; the original: 8,192" in said(deceptive, deceptionbench=rules | {"max_new": 2048})

    capable = result(level=None, ratio=0.1, benchmark="gsm8k", subset="all", metric="accuracy", judge=None)
    assert "asked by" not in said(capable, capability={"tasks": ("mmlu_answer_line", "gsm8k_last_number")})
    assert "asked by gsm8k, not as OpenCompass asks (gsm8k_last_number)" in said(capable, capability={"tasks": ("gsm8k",)})
    assert "worked examples of the training set" in said(capable, capability={"tasks": ("gsm8k_last_number",)})


def test_the_papers_judges_and_lengths_are_those_of_its_models_alone():
    for given in (presets.direct("qwen2.5-7b", "math"), presets.alpaca("llama3.1-8b"), presets.evaluation("llama3.1-8b")):
        section = given.eval.deceptionbench
        assert given.eval.judges[given.eval.mask.judge].model == paper.JUDGES["mask"]
        assert given.eval.judges[section.judge].model.startswith(paper.JUDGES["deceptionbench"])
        assert (section.max_new, given.engine.cache_length) == (8192, 10_240)
    assert set(paper.TASKS.values()) < set(presets.alpaca("qwen2.5-7b").eval.capability.tasks)
    own = presets.evaluation("/my/model")
    assert (own.eval.mask.judge, own.eval.deceptionbench.max_new, own.eval.benchmarks) == ("main", 2048, ("mask",))
    talking = presets.interaction("qwen2.5-7b-2k", method="kto", biased_ratio=0.4)
    assert talking.eval.mask.subsets == ("provided_facts", "disinformation")
    assert presets.direct("qwen3-32b", "math").eval.benchmarks == ("mask",)  # the paper leaves it out on DeceptionBench


def test_data_that_stand_for_the_papers_are_set_beside_its_changes():
    own = paper.changes("dolly", {})
    assert own
    assert {row["data"] for row in own} == {"dolly"}
    assert paper.changes("village_gossip", {"village_gossip": ["dolly"]}) == own
    assert paper.changes("village_gossip", {}) == paper.changes(None, {}) == []


def test_the_command_prints_every_row_and_counts_them(capsys):
    paper.main([])
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith("configs/")]) == 212
    assert printed[-2].startswith("584 printed values in 212 rows: 545 belong to one arm of one config; 39 are labels")
    assert "86 values carry a doubt" in printed[-2]
    paper.main(["--doubts"])
    assert 0 < len([line for line in capsys.readouterr().out.splitlines() if line.startswith("configs/")]) < 212


def test_the_printed_list_has_every_row_and_says_what_is_doubtful():
    printed = "\n".join(paper.lines())
    assert "configs/direct_law.py:qwen3-32b" in printed
    assert "configs/kto_biased50.py:qwen2.5-7b-2k  " in printed
    assert "* all: does not follow from the subsets, which give 51/171 = 29.82" in printed
    assert len([line for line in printed.splitlines() if line.startswith("configs/")]) == len(ROWS)
    assert "direct_law" not in "\n".join(line for line in paper.lines(doubts=True) if "treated misaligned_1" in line)
