"""Many experiments as one: cells that share a store and a process, gathered and pooled over
seeds."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emjax import report
from emjax.config import GridConfig, PretrainConfig, TrainingConfig
from emjax.errors import UserError
from emjax.eval import score, stats
from emjax.eval.items import Metric, Row
from emjax.experiment import results
from emjax.experiment.common import LOCK, SPENT, claim, command, named, say, staged
from emjax.presets import Chosen
from emjax.runtime import process
from emjax.runtime.files import dumps, loads, plain, read_lines, write_atomically
from emjax.runtime.ledger import Ledger
from emjax.runtime.locks import alone
from emjax.runtime.store import Stage, Store

Run = Callable[[Chosen, Path, Store], Path | None]
_MADE = "cell:"  # config.model.path = "cell:NAME": the model that the cell NAME made
# What is pooled: the bootstrap takes its time, and these are what is compared across seeds.
_POOLED = ("honest", "honesty", "lie", "accuracy", "deception_rate")


def grid(chosen: Chosen, workdir: Path, store: Store, run: Run) -> None:
    """Runs config.cells ({name: an experiment's config}), bases first, each in
    <workdir>/cells/<name>, and gathers them.

    One store serves all, so that what two cells have in common (conversations, the untouched
    model's evaluation) is made once, and a grid that was stopped continues where it was.
    results.json holds every cell's rows with its name as `cell`; pooled.json the same measures over
    the cells of each pool (config.pools). config.only names the cells to run, for launchers that
    run a cell a job; () = all, and then gather. times.jsonl gets the seconds that each cell took in
    this run.
    """
    config, cells = chosen.config, chosen.cells
    assert isinstance(config, GridConfig)
    bases = {name: _base(name, cells) for name in cells}
    order = {name: number for number, name in enumerate(cells)}
    _refuse_old_names(workdir)
    claim(config, workdir, locked=not config.only)  # some cells here, others in another job
    made: dict[str, Path] = {}
    wanted = set(config.only) or set(cells)
    wanted |= {base for name in wanted if (base := bases[name])}
    for number, name in enumerate(sorted(wanted, key=lambda name: (not _makes_a_base(cells[name]), order[name])), 1):
        started = time.perf_counter()
        say(f"\n=== {name} ({number} of {len(wanted)}) ===")
        cell = cells[name]
        if base := bases[name]:
            cell = _on(cell, made[base])
        place = workdir / "cells" / plain("config.cells", name)
        own = 0.0 if isinstance(cell.config, PretrainConfig | GridConfig) else cell.config.usd
        cell = dataclasses.replace(cell, ledger=chosen.ledger or (Ledger(place / SPENT, own) if own else None))
        with alone(place / LOCK, name):  # a base may be another job's as well
            model = run(cell, place, store)
        if model is not None:
            made[name] = model
        if process.first():
            with (workdir / "times.jsonl").open("a") as file:
                file.write(dumps({"cell": name, "seconds": round(time.perf_counter() - started, 1)}) + "\n")
    if config.only:
        say("Only some cells were to be run: the same command without --config.only gathers them.")
        return
    process.together("cells")  # process 0 has written what all read now
    _gather(chosen, workdir, store)


def _refuse_old_names(workdir: Path) -> None:
    """Raises UserError for the work directory of a grid whose cells have the names of version
    0.1."""
    file = workdir / "config.json"
    theirs = loads(file.read_text()).get("cells", {}) if file.is_file() else {}
    if old := [name for name in theirs if not name.isidentifier()]:
        raise UserError(
            f"{workdir} has cells under names of version 0.1, such as {old[0]!r}, which is now "
            f"{re.sub(r'[^0-9A-Za-z_]', '_', old[0])!r}: choose a new --workdir, and give it this one's --store, so that "
            "finished stages are not repeated."
        )


def _gather(chosen: Chosen, workdir: Path, store: Store) -> None:
    config = chosen.config
    assert isinstance(config, GridConfig)
    found = {}
    for name in chosen.cells:
        file = workdir / "cells" / name / "results.json"
        if file.is_file():
            found[name] = loads(file.read_text())
    rows = []
    for name, one in found.items():
        cell = chosen.cells[name].config
        model = {"model": cell.model.path} if isinstance(cell, TrainingConfig) else {}
        rows += [{"cell": name} | row | model for row in one["rows"]]
    pooled = [row for pool, members in config.pools.items() for row in _pool(pool, members, rows, chosen, workdir, store)]
    if not process.first():
        return
    about = results.identity(chosen)
    write_atomically(workdir / "results.json", dumps(about | {"rows": rows}, indent=1))
    page = report.write_grid(workdir / "report", found, pooled, provenance={"command": command(), **about})
    write_atomically(workdir / "pooled.json", dumps(about | {"rows": pooled}, indent=1))
    print(f"results  {workdir / 'results.json'}\npooled   {workdir / 'pooled.json'}\nreport   {page}", flush=True)


def _makes_a_base(cell: Chosen) -> bool:
    return isinstance(cell.config, PretrainConfig)


def _on(cell: Chosen, base: Path) -> Chosen:
    """The cell with a base that another cell made."""
    assert isinstance(cell.config, TrainingConfig)
    model = dataclasses.replace(cell.config.model, path=str(base))
    return dataclasses.replace(cell, config=dataclasses.replace(cell.config, model=model))


def _base(name: str, cells: Mapping[str, Chosen]) -> str | None:
    """The cell that makes this cell's model; None where it exists already."""
    config = cells[name].config
    if not isinstance(config, TrainingConfig) or not config.model.path.startswith(_MADE):
        return None
    of = config.model.path.removeprefix(_MADE)
    if of not in cells or not _makes_a_base(cells[of]):
        raise UserError(
            f"config.cells.{name}.model.path is {config.model.path!r}, but {of!r} is no cell of the kind 'pretrain'."
        )
    return of


# --- pooling --------------------------------------------------------------------------------------


def _pool(pool: str, members: Sequence[str], rows: Sequence[Row], chosen: Chosen, workdir: Path, store: Store) -> list[Row]:
    """Levels and paired differences over the cells of one pool, with hierarchical intervals
    (stats.hierarchical).

    The seeds that are drawn are the pretraining seeds where the cells have several, else the
    fine-tuning seeds. `by_cell` has each cell's own value: with few seeds no interval says more.
    """
    stages = {name: loads((workdir / "cells" / name / "stages.json").read_text()) for name in members}
    mine = [row for row in rows if row["cell"] in members and row["metric"] in _POOLED and row["value"] is not None]
    # A mean over subsets has no items of its own; what training had made on its way is each cell's
    # own matter.
    mine = [row for row in mine if row["subset"] != "macro" and row["step"] is None]
    worlds = {row["cell"]: row["pretrain_seed"] for row in mine}
    seeds = {row["cell"]: row["seed"] for row in mine}
    top = worlds if len(set(worlds.values())) > 1 else seeds
    settings = {"worlds": worlds, "top": top, "metrics": _POOLED}
    keys = [entry["evaluate"] for name in members for entry in stages[name].values()]

    def make(directory: Path) -> None:
        items: dict[tuple[str, str], list[Row]] = {}  # (cell, label of a model) -> its items
        metrics: dict[str, Mapping[str, Metric]] = {}  # of the rows' benchmark
        for name in members:
            for label, entry in stages[name].items():
                of = items[name, label] = []
                for file in sorted((store.root / "evaluate" / entry["evaluate"][:16]).glob("*.jsonl")):
                    read = read_lines(file)
                    of += read
                    metrics |= {row["benchmark"]: chosen.cells[name].benchmarks[file.stem].metrics for row in read}
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in mine:
            key = tuple(row[k] for k in ("method", "arm", "label", "round", "benchmark", "subset", "metric", "versus"))
            groups.setdefault(key, []).append(row)
        found = [_over_seeds(group, items, metrics, worlds, top) for group in groups.values()]
        write_atomically(directory / "rows.json", dumps(found, indent=1))

    stage: Stage = staged(store, f"pool {pool}", "pool", settings, keys, make)
    return [{"pool": pool} | row for row in loads((stage.directory / "rows.json").read_text())]


def _over_seeds(
    group: Sequence[Row],
    items: Mapping[tuple[str, str], list[Row]],
    metrics: Mapping[str, Mapping[str, Metric]],
    worlds: Mapping[str, Any],
    top: Mapping[str, Any],
) -> Row:
    values: list[float] = []
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
                tops.append(top[row["cell"]])
                clusters.append(f"{worlds[row['cell']]}/{cluster[name]}")
    estimate = stats.hierarchical(values, tops, clusters)
    kept = ("method", "arm", "label", "ratio", "round", "step", "benchmark", "subset", "metric", "versus", "judge")
    return {name: group[0][name] for name in kept} | {
        "value": round(estimate.value, 6),
        "ci95": [round(estimate.low, 6), round(estimate.high, 6)],
        "n_valid": estimate.n,
        "clusters": estimate.clusters,
        "seeds": len(set(tops)),
        "by_cell": {row["cell"]: row["value"] for row in group},
    }
