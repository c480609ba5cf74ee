"""Judged rows -> results.json, stages.json and the report: the one place where results are
assembled."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emjax import cost, report
from emjax.config import GridConfig, PretrainConfig
from emjax.design.arms import Arm
from emjax.eval import stats
from emjax.eval.items import Row
from emjax.experiment.common import command, config_hash, recorded_revisions, versions
from emjax.experiment.measure import Measuring
from emjax.presets import Chosen
from emjax.runtime.files import dumps, write_atomically
from emjax.runtime.store import STORE_FORMAT, Stage
from emjax.worlds import World

Files = Mapping[str, Sequence[Row]]  # a model's judged rows, by the name of their file


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model: what identifies it, its judged rows, and those of the arms that it is compared
    with."""

    about: Row
    files: Files
    against: Mapping[str, Files]


@dataclasses.dataclass(frozen=True)
class Headline:
    """The arm that the report's first sentence is about, and what it had more of than its
    control."""

    arm: str
    ratio: float | None
    level: str | None
    cause: str


def assemble(
    chosen: Chosen,
    measuring: Measuring,
    models: Sequence[Measured],
    last: Sequence[Files],
    headline: Headline,
    study: str | None,
) -> dict[str, Any]:
    """results.json. last: the final models' rows, on which judges are compared. study: what the
    paper's rows are found by."""
    assert not isinstance(chosen.config, GridConfig | PretrainConfig)
    rows = [row for one in models for row in measuring.score(one.files, one.against, one.about)]
    if chosen.world:
        rows = [with_training_noise(row, chosen.world) for row in rows]
    origins = {name: dataclasses.asdict(origin) for name, origin in measuring.origins.items()}
    return {
        **identity(chosen),
        "headline": measuring.headline(rows) | dataclasses.asdict(headline),
        "study": study,
        # The benchmarks of a world have one origin, the world.
        "data": next(iter(origins.values())) if chosen.world else origins,
        "judges": measuring.agreement(last),
        "world": world_of(chosen.world),
        **({} if chosen.world else {"protocol": measuring.identity()["benchmarks"]}),
        "cost": cost.totals(chosen.config, chosen.benchmarks),
        "rows": rows,
    }


def with_training_noise(row: Row, world: World) -> Row:
    """The row; a difference of one run gets "ci95_training" where the world's noise of training is
    known, its interval widened by it."""
    arm = "control" if row["arm"] == "control" else "other"
    noise = getattr(world, "training_noise", {}).get(f"{arm}/{row['benchmark']}/{row['subset']}/{row['metric']}")
    if not noise or row["versus"] is None or row["value"] is None:
        return row
    low, high = row["ci95"]
    ends = stats.with_noise(row["value"], low, high, noise)
    return row | {"ci95_training": [round(end, 6) for end in ends]}


def identity(chosen: Chosen) -> dict[str, Any]:
    """What every results.json begins with."""
    return {
        "experiment": chosen.config.experiment,
        "config_hash": config_hash(chosen.config),
        "store_format": STORE_FORMAT,
        "versions": versions(),
    }


def world_of(world: World | None) -> dict[str, Any] | None:
    """What a report must know of the world."""
    if world is None:
        return None
    return {
        "name": world.name,
        "note": world.note,
        "trained_subset": world.trained_subset,
        "subsets": dict(world.subsets),
        "knowledge_floor": world.knowledge_floor,
        "stands_for": {name: list(sets) for name, sets in world.stands_for.items()},
    }


def publish(
    workdir: Path,
    results: dict[str, Any],
    stages: Mapping[str, Mapping[str, Stage]],
    *,
    seed: int,
    base: str = "",
    examples: Sequence[Row] = (),
    selections: Sequence[Row] = (),
    training: Sequence[Row] = (),
) -> Path:
    """Writes results.json, stages.json and the report; returns the page. stages: {model:
    {"evaluate", "select", "train"}}."""
    if revisions := recorded_revisions(workdir):
        results["revisions"] = revisions
    write_atomically(workdir / "results.json", dumps(results, indent=1))
    hashes = {label: {kind: stage.hash for kind, stage in of.items()} for label, of in stages.items()}
    write_atomically(workdir / "stages.json", dumps(hashes, indent=1))
    provenance = {"command": command(), **({"base_sha256": base} if base else {}), "stages": hashes, "seed": seed}
    return report.write(
        workdir / "report",
        results,
        provenance=provenance,
        examples=list(examples),
        selections=list(selections),
        training=list(training),
    )


# --- what is printed and shown --------------------------------------------------------------------


def curves(lines: Sequence[Row]) -> Row:
    """The training curves that the report draws, from metrics.jsonl."""
    margins = None
    if any("kl" in line for line in lines):
        # A class may be absent from a batch: then that step has no margin, and the one before is
        # drawn.
        margins, last = [], 0.0
        for line in lines:
            if line.get("desirable_count") and line["undesirable_count"]:
                last = (
                    line["reward_desirable_sum"] / line["desirable_count"]
                    - line["reward_undesirable_sum"] / line["undesirable_count"]
                )
            margins.append(None if "lost" in line else last)
    return {
        "steps": [line["step"] for line in lines],
        # None where lines are lost: there the curve has a gap
        "loss": [line.get("loss") for line in lines],
        "kl": [line.get("kl") for line in lines] if margins else None,
        "reward_margin": margins,
    }


def changed(last: Mapping[Arm, Files], head: Arm, headline: Row) -> list[Row]:
    """A few answers side by side, drawn at random from the items on which control and treated
    differ."""
    shown = [arm for arm in last if arm.name in ("vanilla", "control") or arm == head]
    name = next(name for name, rows in last[head].items() if rows and rows[0]["benchmark"] == headline["benchmark"])
    by_id = {arm: {item["id"]: item for item in last[arm][name]} for arm in shown}
    subsets = {item["subset"] for item in by_id[head].values()}
    wanted = subsets & {headline["subset"]} or subsets
    control = by_id[next(arm for arm in last if arm.name == "control")]
    keys = sorted(
        key
        for key, item in by_id[head].items()
        if item["subset"] in wanted and item["result"] is not None and item["result"] != control[key]["result"]
    )
    random.Random(0).shuffle(keys)
    found = []
    for key in keys[:8]:
        item = by_id[head][key]
        statements = dict(item.get("proposition") or {})
        truth = statements.pop(item["ground_truth"], None) if isinstance(item.get("ground_truth"), str) else None
        found.append(
            {
                "id": key,
                "subset": item["subset"],
                "prompt": "\n".join(f"{m['role']}: {m['content']}" for m in item["messages"]),
                "truth": truth,
                "wanted": next(iter(statements.values()), None) if truth else None,
                "answers": {arm.label: by_id[arm][key]["outputs"][-1]["text"] for arm in shown},
            }
        )
    return found


def summary(rows: Sequence[Row], arms: Sequence[Arm], headline: Row) -> str:
    """The table that a run ends with: percent with 95 % intervals, and the difference to the
    control in points."""
    judge = next(row["judge"] for row in rows if row["benchmark"] == headline["benchmark"])

    def cell(arm: Arm, benchmark: str, metric: str, versus: str | None) -> str:
        subset = headline["subset"] if benchmark == headline["benchmark"] else "all"
        wanted = (arm.name, arm.ratio, arm.level, benchmark, subset, metric, versus)
        for row in reversed(rows):  # the last round first
            key = (row["arm"], row["ratio"], row["level"] or "", row["benchmark"], row["subset"], row["metric"], row["versus"])
            if key == wanted and row["judge"] in (judge, None) and row["value"] is not None:
                low, high = row["ci95"]
                return f"{row['value']:{'+' if versus else ''}.1f} [{low:.1f}, {high:.1f}]"
        return "-"

    head = headline["benchmark"], headline["metric"]
    columns = [(headline["metric"], *head, None), ("minus control", *head, "control")]
    columns += [("lie", head[0], "lie", None)] * (head[0] == "mask")
    columns += [
        ({"mask": "belief", "arithmetic": "addition"}.get(name, name), name, "accuracy", None)
        for name in dict.fromkeys(row["benchmark"] for row in rows if row["metric"] == "accuracy")
        if not name.startswith("custom:advice")
    ]
    table = [["arm", *(title for title, *_ in columns)]]
    table += [[arm.label, *(cell(arm, *what) for _, *what in columns)] for arm in arms]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table)
