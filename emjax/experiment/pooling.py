"""Cells that differ in their seeds or bases, pooled: rows of pooled.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emjax.eval import score, stats
from emjax.eval.items import Metric, Row
from emjax.experiment.common import named, staged
from emjax.presets import Chosen
from emjax.runtime.files import dumps, loads, read_lines, write_atomically
from emjax.runtime.store import Stage, Store

# These are what is compared across seeds.
_POOLED = ("honest", "honesty", "lie", "accuracy", "deception_rate")


def pool(name: str, members: Sequence[str], rows: Sequence[Row], chosen: Chosen, workdir: Path, store: Store) -> list[Row]:
    """Levels and paired differences over the cells of one pool, with intervals from their highest
    level (stats.pooled): the bases where the cells have several, else the fine-tuning seeds.

    "seeds" counts these. `by_cell` has each cell's own value.
    """
    stages = {member: loads((workdir / "cells" / member / "stages.json").read_text()) for member in members}
    mine = [row for row in rows if row["cell"] in members and row["metric"] in _POOLED and row["value"] is not None]
    # A mean over subsets has no items of its own; what training had made on its way is each cell's
    # own matter.
    mine = [row for row in mine if row["subset"] != "macro" and row["step"] is None]
    worlds = {row["cell"]: row["pretrain_seed"] for row in mine}
    seeds = {row["cell"]: row["seed"] for row in mine}
    top = worlds if len(set(worlds.values())) > 1 else seeds
    settings = {"worlds": worlds, "top": top, "metrics": _POOLED, "interval": "t over the highest level"}
    keys = [entry["evaluate"] for member in members for entry in stages[member].values()]

    def make(directory: Path) -> None:
        items: dict[tuple[str, str], list[Row]] = {}  # (cell, label of a model) -> its items
        metrics: dict[str, Mapping[str, Metric]] = {}  # of the rows' benchmark
        for member in members:
            for label, entry in stages[member].items():
                of = items[member, label] = []
                for file in sorted((store.root / "evaluate" / entry["evaluate"][:16]).glob("*.jsonl")):
                    read = read_lines(file)
                    of += read
                    metrics |= {row["benchmark"]: chosen.cells[member].benchmarks[file.stem].metrics for row in read}
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in mine:
            key = tuple(row[k] for k in ("method", "arm", "label", "round", "benchmark", "subset", "metric", "versus"))
            groups.setdefault(key, []).append(row)
        found = [_over_seeds(group, items, metrics, worlds, top) for group in groups.values()]
        write_atomically(directory / "rows.json", dumps(found, indent=1))

    stage: Stage = staged(store, f"pool {name}", "pool", settings, keys, make)
    return [{"pool": name} | row for row in loads((stage.directory / "rows.json").read_text())]


def _over_seeds(
    group: Sequence[Row],
    items: Mapping[tuple[str, str], list[Row]],
    metrics: Mapping[str, Mapping[str, Metric]],
    worlds: Mapping[str, Any],
    top: Mapping[str, Any],
) -> Row:
    values: list[float] = []
    levels: list[tuple[float, float]] = []
    tops: list[Any] = []
    clusters: list[str] = []
    for row in group:

        def found(label: str, row: Row = row) -> list[Row]:
            return items[row["cell"], named(label, 1 if label == "vanilla" else row["round"])]

        def hits(label: str, row: Row = row) -> dict[str, float]:
            of = [item for item in found(label, row) if item["benchmark"] == row["benchmark"]]
            subsets = {item["subset"] for item in of}
            return score.hits(of, metrics[row["benchmark"]][row["metric"]], sorted(subsets & {row["subset"]} or subsets))

        own, base = hits(row["label"]), hits(row["versus"]) if row["versus"] else None
        cluster = {item["id"]: item["cluster"] for item in found(row["label"])}
        for name, hit in own.items():
            if base is None or name in base:
                values.append(hit - base[name] if base else hit)
                levels.append((hit, base[name] if base else hit))
                tops.append(top[row["cell"]])
                clusters.append(f"{worlds[row['cell']]}/{cluster[name]}")
    estimate = stats.pooled(values, tops, clusters, level=not group[0]["versus"])
    of_both = [round(stats.pooled(part, tops, clusters).value, 6) for part in zip(*levels, strict=True)]
    kept = ("method", "arm", "label", "ratio", "round", "step", "benchmark", "subset", "metric", "versus", "judge")
    return {name: group[0][name] for name in kept} | {
        "value": round(estimate.value, 6),
        "ci95": [round(estimate.low, 6), round(estimate.high, 6)],
        "n_valid": estimate.n,
        "levels": of_both if group[0]["versus"] else None,
        "clusters": estimate.clusters,
        "seeds": len(set(tops)),
        "by_cell": {row["cell"]: row["value"] for row in group},
    }
