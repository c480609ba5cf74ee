"""Rows of results.json: finding them, ordering them, and the names of arms.

Everything that the report knows of an offline world comes from results["world"], through `world`
and `ordered_subsets`.
"""

import math
from collections.abc import Iterable
from typing import Any

from emjax.report.text import CAPABILITIES, spaced

# Fields that separate one run from another where results.json holds several.
RUN = ("model", "method", "seed", "pretrain_seed")
MEASURE = ("benchmark", "subset", "metric", "judge")
# order of the tables
ARMS = ("vanilla", "control", "treated", "shuffled_ratings", "swapped_labels")
# Without a world, a subset named tuned_domain is still reported as the one that resembles the
# training data.
_NO_WORLD: dict[str, Any] = {
    "name": "", "note": "", "trained_subset": "tuned_domain", "subsets": {}, "knowledge_floor": None, "stands_for": {}
}  # fmt: skip


def world(results: dict) -> dict[str, Any]:
    """results["world"], or a world without words where the experiment had none.

    "name"; "note", what must be said of its results; "trained_subset", the subset that resembles
    the training data ("" if none does); "subsets" {name: meaning} in the order of the tables;
    "knowledge_floor", the accuracy in percent from which an arm has kept its beliefs, or None;
    "stands_for" {data set: the paper's data sets that it stands for}.
    """
    return results.get("world") or _NO_WORLD


def ordered_subsets(present: Iterable[str], results: dict) -> list[str]:
    """`all` first, then the world's subsets in its own order, then the rest sorted."""
    present = set(present)
    first = [name for name in dict.fromkeys(("all", *world(results)["subsets"])) if name in present]
    return first + sorted(present - set(first))


def find(rows: list[dict], **wanted: object) -> list[dict]:
    return [row for row in rows if all(row.get(field) == value for field, value in wanted.items())]


MARGIN = 5.0  # points: two arms that differ by less count as the same (`same`)


def ends(row: dict) -> list[float] | None:
    """The 95 % interval that verdicts follow: with the noise of training where that was measured."""
    return row.get("ci95_training") or row.get("ci95")


def detected(row: dict) -> bool:
    """Whether a difference's interval excludes 0: a test of a difference, at 5 %."""
    found = ends(row)
    return found is not None and not found[0] <= 0 <= found[1]


def same(row: dict, *, loss: bool = False) -> str:
    """ "yes": the difference is shown to lie within MARGIN (two one-sided tests at 2.5 %: the whole
    interval does); "no": it is shown to lie outside; else "not settled", which is no evidence of
    either. loss: only a fall by MARGIN counts as a difference."""
    found = ends(row)
    if found is None:
        return "not settled"
    low, high = found
    if low > -MARGIN and (loss or high < MARGIN):
        return "yes"
    return "no" if high < -MARGIN or (low > MARGIN and not loss) else "not settled"


def last_rows(results: dict) -> list[dict]:
    """Rows of each arm's last (round, step). results.json may hold earlier ones, which the page's
    main tables leave out.
    """
    latest: dict[tuple, tuple] = {}

    def stage(row: dict) -> tuple:
        # no step: the end of training
        return (row.get("round") or 0, math.inf if row.get("step") is None else row["step"])

    for row in results["rows"]:
        latest[arm_key(row)] = max(latest.get(arm_key(row), (0, 0)), stage(row))
    return [row for row in results["rows"] if stage(row) == latest[arm_key(row)]]


def has_steps(results: dict) -> bool:
    """Whether an arm was measured at several steps of its training."""
    seen: dict[tuple, set] = {}
    for row in results["rows"]:
        seen.setdefault((arm_key(row), row.get("round")), set()).add(row.get("step"))
    return bool(results.get("headline")) and any(len(steps) > 1 for steps in seen.values())


# arms


def arm_key(row: dict) -> tuple:
    return (*(row.get(field) for field in RUN), row["arm"], row.get("ratio"), row.get("level"))


def arms(results: dict) -> list[dict]:
    """One row of each arm in the order of the tables: runs as they come, then ARMS, then rising
    ratio.
    """
    first: dict[tuple, dict] = {}
    for row in results["rows"]:
        first.setdefault(arm_key(row), row)
    runs: dict[tuple, int] = {}
    for key, row in first.items():
        if row["arm"] != "vanilla":
            runs.setdefault(key[:4], len(runs))

    def order(row: dict) -> tuple:
        place = ARMS.index(row["arm"]) if row["arm"] in ARMS else len(ARMS)
        return (runs.get(arm_key(row)[:4], -1), place, row["arm"], row.get("ratio") or 0, row.get("level") or "")

    return sorted(first.values(), key=order)


def of_arm(rows: list[dict], arm: dict) -> list[dict]:
    return [row for row in rows if arm_key(row) == arm_key(arm)]


def counterpart(rows: list[dict], row: dict, arm: str) -> dict | None:
    """The level of `arm` in the same run, which `row` is compared with; vanilla has no method or
    seed.
    """
    fields = ("model", "pretrain_seed") if arm == "vanilla" else RUN
    same = find(rows, arm=arm, versus=None, **{f: row.get(f) for f in (*fields, *MEASURE)})
    return next((r for r in same if r.get("seed") == row.get("seed")), same[0] if same else None)


def run_label(row: dict, results: dict) -> str:
    """What separates the row's run from the others ("sft, seed 1"); empty where there is only one
    run.
    """
    parts = []
    for field in RUN:
        values = {r.get(field) for r in results["rows"] if r["arm"] != "vanilla"} - {None}
        if len(values) > 1 and row.get(field) is not None:
            parts.append(str(row[field]) if field in ("model", "method") else f"{field} {row[field]}")
    return ", ".join(parts)


def arm_label(row: dict, results: dict) -> str:
    ratio = row.get("ratio")
    text = spaced(row["arm"])
    if row["arm"] != "vanilla" and ratio is not None:
        text += f" {spaced(row.get('level') or f'{ratio:g}')}"
    run = run_label(row, results)
    return f"{text} ({run})" if run else text


def dose(row: dict) -> tuple[float, str]:
    """How much of the cause a row's arm had: its ratio, and the level where data sets come in
    levels.
    """
    return row["ratio"], row.get("level") or ""


def dose_label(dose: tuple[float, str]) -> str:
    ratio, level = dose
    return spaced(level) or f"{100 * ratio:.6g} %"


def cause(results: dict) -> str:
    return (results.get("headline") or {}).get("cause", "biased users")


# measures


def capabilities(rows: list[dict]) -> list[tuple[str, str]]:
    """(benchmark, name) of each measured ability; addition where none was measured."""
    measured = {row["benchmark"] for row in find(rows, metric="accuracy", subset="all")}
    return [(b, name) for b, name in CAPABILITIES.items() if b in measured] or [("arithmetic", "addition")]


def mask_subsets(results: dict) -> list[str]:
    present = {row["subset"] for row in find(last_rows(results), benchmark="mask", metric="lie", versus=None)} - {"macro"}
    return ordered_subsets(present, results)
