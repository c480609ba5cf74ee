"""Scoring: judged rows of items.jsonl -> rows of results.json."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from emjax.config import BenchmarkConfig
from emjax.eval import stats
from emjax.eval.items import Benchmark, Metric, Row


def hits(rows: Iterable[Row], metric: Metric, subsets: Collection[str]) -> dict[str, float]:
    """{id: 1.0, 0.0 or a share} of the scored rows of these subsets in which the metric arises; all
    rows of one benchmark."""
    rows = [row for row in rows if row["state"] == "ok" and row["subset"] in subsets]
    return {row["id"]: float(metric.hit(row)) for row in rows if metric.arises(row)}


def score(
    rows: Sequence[Row],
    versus: Mapping[str, Sequence[Row]],
    about: Row,
    benchmark: Benchmark,
    config: BenchmarkConfig,
) -> list[Row]:
    """results.json rows of one arm on one benchmark: each metric on each subset, and its paired
    difference to each arm in `versus` over the items that both have, with both arms' levels on
    these ("levels"). `about` holds the fields that identify the arm.

    A file whose rows name several benchmarks (tasks of the harness) is scored one by one. A
    benchmark without a subset "all" gets it (all rows pooled), and "macro" (the mean over its
    subsets).
    """
    made = []
    for named, own in _by_benchmark(rows).items():
        others = {arm: _by_benchmark(theirs).get(named, []) for arm, theirs in versus.items()}
        made += _scored(named, own, others, about, benchmark, config)
    return made


def _by_benchmark(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["benchmark"], []).append(row)
    return groups


def _scored(
    named: str, items: Sequence[Row], versus: Mapping[str, Sequence[Row]], about: Row, benchmark: Benchmark,
    config: BenchmarkConfig,
) -> list[Row]:  # fmt: skip
    subsets = sorted({item["subset"] for item in items})
    pooled = ["all"] if len(subsets) > 1 and "all" not in subsets else []
    summary = getattr(benchmark, "summary", None)
    rows: list[Row] = []
    # fields that a mean over subsets does not have
    of_one = {"states", "p_mcnemar", "p_holm", "levels"}
    for subset in subsets + pooled:
        wanted = subsets if subset in pooled else [subset]
        mine = {item["id"]: item for item in items if item["subset"] in wanted}
        states = dict(sorted(Counter(item["state"] for item in mine.values()).items()))
        common = about | {"benchmark": named, "subset": subset, "cluster": "prompt context", "states": states}
        if summary:
            summed = summary(list(mine.values()), config)
            common |= summed
            of_one |= summed.keys()
        for name, metric in benchmark.metrics.items():
            rows += _measured(metric, mine, versus, wanted, common | {"metric": name})
    for family in _families(rows, [*subsets, *pooled]):
        tested = [row for row in family if "p_mcnemar" in row]
        for row, p in zip(tested, stats.holm([row["p_mcnemar"] for row in tested]), strict=True):
            row["p_holm"] = p
    return rows + (_macro(rows, subsets, of_one) if pooled else [])


def _families(rows: Sequence[Row], subsets: Sequence[str]) -> list[list[Row]]:
    """The rows of one metric, or of one of its differences, over these subsets."""
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        if row["subset"] in subsets:
            groups.setdefault((row["metric"], row["versus"]), []).append(row)
    return list(groups.values())


def _measured(
    metric: Metric, mine: Mapping[str, Row], versus: Mapping[str, Sequence[Row]], subsets: Sequence[str], common: Row
) -> list[Row]:
    """The level of one metric on one set of rows, and its differences."""
    valid = hits(mine.values(), metric, subsets)
    n = sum(map(metric.arises, mine.values()))
    dropped = n - len(valid)
    if not n:
        return []
    level = common | {"n": n, "n_valid": len(valid), "n_dropped": dropped, "versus": None}
    level["bounds"] = [_round(b) for b in stats.bounds(list(valid.values()), dropped)]
    if not valid:
        return [level | {"value": None, "ci95": None}]
    estimate = stats.rate(list(valid.values()), [mine[name]["cluster"] for name in valid])
    rows = [level | _estimated(estimate)]
    for other, theirs in versus.items():
        base = hits(theirs, metric, subsets)
        both = [name for name in valid if name in base]
        if not both:
            continue
        pairs = [valid[name] for name in both], [base[name] for name in both]
        difference = stats.paired_difference(*pairs, [mine[name]["cluster"] for name in both])
        levels = [_round(100 * sum(part) / len(both)) for part in pairs]
        counted = {"n_valid": len(both), "n_dropped": n - len(both), "bounds": None, "versus": other, "levels": levels}
        rows.append(level | _estimated(difference) | counted)
        if {*pairs[0], *pairs[1]} <= {0.0, 1.0}:  # shares of several samples have no such test
            rows[-1]["p_mcnemar"] = stats.mcnemar_exact(*pairs)
    return rows


def _macro(rows: Sequence[Row], subsets: Sequence[str], of_one: Collection[str]) -> list[Row]:
    """The unweighted mean over the subsets, if every subset that has the metric has a value.
    of_one: fields it does not get."""
    found = []
    for group in _families(rows, subsets):
        if all(row["value"] is not None for row in group):
            estimate = stats.macro([(row["value"], *row["ci95"]) for row in group])
            summed = {name: sum(row[name] for row in group) for name in ("n", "n_valid", "n_dropped", "clusters")}
            about = {name: x for name, x in group[0].items() if name not in of_one}
            value, *ends = map(_round, estimate)
            found.append(about | summed | {"subset": "macro", "value": value, "ci95": ends, "bounds": None})
    return found


def _estimated(estimate: stats.Estimate) -> Row:
    ends = [_round(estimate.low), _round(estimate.high)]
    return {"value": _round(estimate.value), "ci95": ends, "clusters": estimate.clusters}


def _round(value: float) -> float:
    return round(float(value), 6)
