"""Scoring items: every row in exactly one state, nothing invented for what was not judged."""

import pytest

from emjax.eval import score
from emjax.eval.benchmarks import mask
from emjax.eval.items import Metric

ABOUT = {"model": "m", "arm": "treated", "ratio": 0.1}


def item(name, result, *, belief="A", state="ok", subset="all", cluster=None):
    return {
        "id": name, "benchmark": "mask", "subset": subset, "state": state, "belief": belief, "ground_truth": "A",
        "result": result, "cluster": cluster or name,
    }  # fmt: skip


def rows(items, versus=None):
    found = score.score(items, versus or {}, ABOUT, mask, mask.Config())
    return {(r["subset"], r["metric"], r["versus"]): r for r in found}


def test_counts_and_bounds():
    dropped = item("e", None, belief=None, state="truncated")
    items = [item("a", 1), item("b", -1), item("c", 0), item("d", 0, belief="C"), dropped]
    found = rows(items)
    values = {m: found["all", m, None]["value"] for m in ("honest", "lie", "evade", "no_belief", "honesty", "accuracy")}
    assert values == {"honest": 25, "lie": 25, "evade": 25, "no_belief": 25, "honesty": 75, "accuracy": 75}
    row = found["all", "lie", None]
    assert (row["n"], row["n_valid"], row["n_dropped"]) == (5, 4, 1)
    assert row["states"] == {"ok": 4, "truncated": 1}
    assert row["bounds"] == [20.0, 40.0]  # 1 of 5 if the dropped item was no lie, 2 of 5 if it was


def test_difference_is_paired_by_item():
    mine = [item(str(i), 1 if i < 6 else -1) for i in range(10)]
    control = [item(str(i), 1) for i in range(2, 12)]
    difference = rows(mine, {"control": control})["all", "honest", "control"]
    assert difference["n_valid"] == 8  # the items that both have
    assert difference["value"] == pytest.approx(-50.0)
    assert difference["ci95"][0] <= -50 <= difference["ci95"][1]


def test_an_arm_without_a_valid_item_has_no_value():
    found = rows([item("a", None, belief=None, state="unparsed")])
    assert found["all", "honest", None]["value"] is None
    assert found["all", "honest", None]["bounds"] == [0.0, 100.0]


def test_intervals_widen_with_clusters():
    alone = rows([item(str(i), 1 if i % 2 else -1) for i in range(60)])["all", "honest", None]
    shared = rows([item(str(i), 1 if i < 30 else -1, cluster=str(i // 10)) for i in range(60)])["all", "honest", None]
    width = [row["ci95"][1] - row["ci95"][0] for row in (alone, shared)]
    assert width[1] > 2 * width[0]


def test_a_file_of_several_benchmarks_is_scored_one_by_one():
    """The harness's tasks share a file; each is compared with its own rows of the other arm."""

    def answers(right):
        return [
            item(f"{task}/{i}", int(i < n)) | {"benchmark": task} for task, n in right.items() for i in range(4)
        ]  # fmt: skip

    class Tasks:
        metrics = {"accuracy": Metric(lambda row: row["result"] == 1)}

    found = score.score(answers({"mmlu": 3, "gsm8k": 1}), {"control": answers({"mmlu": 2, "gsm8k": 2})}, ABOUT, Tasks, None)
    values = {(r["benchmark"], r["versus"]): r["value"] for r in found}
    assert values == {("mmlu", None): 75, ("mmlu", "control"): 25, ("gsm8k", None): 25, ("gsm8k", "control"): -25}
    assert {r["n"] for r in found} == {4}


def test_a_metric_is_asked_of_rows_in_which_it_arises():
    metric = Metric(lambda row: row["result"] == 1, arises=lambda row: row["belief"] != "C")
    made = [item("a", 1), item("b", -1), item("c", 1, belief="C"), item("d", None, state="refusal"), item("e", 1, subset="x")]
    assert score.hits(made, metric, ["all"]) == {"a": 1.0, "b": 0.0}
