"""Many experiments as one: cells that share a store and a process, gathered and pooled over
seeds."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from emjax import report
from emjax.config import GridConfig, PretrainConfig, TrainingConfig
from emjax.errors import UserError
from emjax.experiment import pooling, results
from emjax.experiment.common import LOCK, SPENT, claim, command, recorded, say
from emjax.presets import Chosen
from emjax.runtime import process
from emjax.runtime.files import dumps, loads, plain, write_atomically
from emjax.runtime.ledger import Ledger
from emjax.runtime.locks import alone
from emjax.runtime.store import Store

Run = Callable[[Chosen, Path, Store], Path | None]
_MADE = "cell:"  # config.model.path = "cell:NAME": the model that the cell NAME made


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
    if old := [name for name in recorded(workdir).get("cells", {}) if not name.isidentifier()]:
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
    pools = _with_passing(config.pools, chosen.cells, workdir)
    pooled = [row for pool, members in pools.items() for row in pooling.pool(pool, members, rows, chosen, workdir, store)]
    if not process.first():
        return
    about = results.identity(chosen)
    write_atomically(workdir / "results.json", dumps(about | {"rows": rows}, indent=1))
    page = report.write_grid(workdir / "report", found, pooled, provenance={"command": command(), **about})
    write_atomically(workdir / "pooled.json", dumps(about | {"rows": pooled}, indent=1))
    print(f"results  {workdir / 'results.json'}\npooled   {workdir / 'pooled.json'}\nreport   {page}", flush=True)


def _with_passing(pools: Mapping[str, Sequence[str]], cells: Mapping[str, Chosen], workdir: Path) -> dict[str, Sequence[str]]:
    """The pools, and beside each that holds bases which missed a gate the cells of those that
    passed."""
    found: dict[str, Sequence[str]] = {}
    for pool, members in pools.items():
        found[pool] = members
        passed = [name for name in members if not (base := _base(name, cells)) or _passed(workdir / "cells" / base)]
        if 0 < len(passed) < len(members):
            found[f"{pool}, bases that passed the gates"] = passed
    return found


def _passed(place: Path) -> bool:
    return all(gate["ok"] for gate in loads((place / "gates.json").read_text()).values())


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
