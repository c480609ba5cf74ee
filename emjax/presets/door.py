"""The way from a user's ConfigDict to a typed experiment, with the world and the benchmarks that it
names.

Below this module nobody sees a ConfigDict.
"""

import dataclasses
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emjax import config as cfg
from emjax import cost
from emjax.config import parse as parsing
from emjax.config.parse import ConfigDict
from emjax.data import sources
from emjax.design import check as design_check
from emjax.errors import UserError
from emjax.eval import benchmarks, checks
from emjax.eval.items import Benchmark
from emjax.runtime.ledger import Ledger
from emjax.worlds import World

WORLDS = {"micro": "emjax.worlds.micro.offline:Micro"}


def find_world(name: str) -> type[World]:
    """The class of a world by its name or import path, "package.module:Class". Raises UserError."""
    module, _, attribute = WORLDS.get(name, name).partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"config.world is {name!r}; choose {', '.join(WORLDS)}, or give the import path of a class, package.module:Class "
            f"({type(error).__name__}: {error})."
        ) from error


def is_world(variant: str) -> bool:
    return variant in WORLDS or ":" in variant


def _benchmarks(world: World | None, named: Sequence[str]) -> dict[str, Benchmark]:
    """Every benchmark that may have a section: the world's, the shipped ones, and those named by
    import path."""
    own = dict(world.benchmarks()) if world else {}
    shipped = {name: benchmarks.find(name) for name in benchmarks.SHIPPED if name not in own}
    others = [benchmarks.find(name) for name in named if name not in own and name not in shipped]
    return {**own, **shipped, **{one.name: one for one in others}}


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A typed configuration with the world and the benchmarks that it names; of a grid, those of
    its cells."""

    config: cfg.Experiment
    world: World | None = None
    benchmarks: Mapping[str, Benchmark] = dataclasses.field(default_factory=dict)
    cells: Mapping[str, "Chosen"] = dataclasses.field(default_factory=dict)
    ledger: Ledger | None = None  # of a run with a cap on money


def read(given: ConfigDict) -> Chosen:
    """Parses and checks a configuration. Raises UserError for a wrong value, in one sentence that
    names the field."""
    config = parsing.parse(given, _kinds)
    if isinstance(config, cfg.GridConfig):
        cells = {name: _chosen(cell, f"config.cells.{name}") for name, cell in config.cells.items()}
        for name, cell in cells.items():
            check_prices(cell, config.usd, f"config.cells.{name}")
        return Chosen(config, cells=cells)
    return _chosen(config, "config")


def place(given: ConfigDict, root: Path) -> list[str]:
    """Gives each data set and benchmark without a path the one that it has below `root`, as its
    source or benchmark declares it. A path that is given stays.

    Returns the plan's lines: what was found, and what is not there. Raises UserError if there is no
    such folder.
    """
    if not root.is_dir():
        raise UserError(f"--data_root is {str(root)!r}, which is no folder.")
    if given.experiment == "grid":
        return list(dict.fromkeys(line for name in given.cells for line in place(given.cells[name], root)))
    lines = []
    for part, below, otherwise in _without_a_path(given):
        if there := (root / below).exists():
            part.path = str(root / below)
        lines.append(f"  {'found  ' if there else 'missing'}  {below}{'' if there else otherwise}")
    return lines


def _without_a_path(given: ConfigDict) -> Iterator[tuple[ConfigDict, str, str]]:
    """(section, name below the data's root, what is done without it) of each data set and benchmark
    in use that has no path of its own."""
    data = given.get("data", ConfigDict())
    for part in (data.get(name) for name in ("set", "downstream", "misaligned")):
        source = sources.SOURCES.get(part.source) if part else None
        if part and source and source.under and not part.path:
            yield part, source.under, f": {source.home} is read" if source.home else ""
    for name in given.eval.benchmarks if "eval" in given else ():
        section = given.eval.get(name)
        if not section or name not in benchmarks.SHIPPED:  # a world's own needs no file
            continue
        for _, usual, known in cfg.options(benchmarks.find(name).Config()):
            if known.under and section.get("path") == usual:
                yield section, known.under, f": {usual} is read" if usual else ""


def _kinds(values: Mapping[str, Any]) -> parsing.Kinds:
    world = None
    kinds: dict[str, dict[str, type[cfg.Section]]] = {"worlds": {}}
    if name := values.get("world"):
        cls = find_world(name)
        kinds["worlds"] = {cls.name: cls.Config}
        world = cls(cls.Config(), 0)
    named = values.get("eval", {}).get("benchmarks", ())
    found = _benchmarks(world, named if isinstance(named, tuple) else ())
    return kinds | {"eval": {name: one.Config for name, one in found.items()}}


def _chosen(config: Any, where: str) -> Chosen:
    world = None
    if name := getattr(config, "world", ""):
        cls = find_world(name)
        world = cls(config.worlds.sections.get(cls.name, cls.Config()), config.seed)
    every = _benchmarks(world, config.eval.benchmarks)
    # A module's own name is its section's and its files'; config.eval.benchmarks may hold its path.
    named = [benchmarks.find(name).name if name not in every else name for name in config.eval.benchmarks]
    used = {name: every[name] for name in named}
    sections = {name: one.Config() for name, one in used.items()} | config.eval.sections
    try:
        measured = dataclasses.replace(config.eval, sections=sections)
    except UserError as error:
        raise UserError(f"{where}.eval.{error}") from error
    chosen = Chosen(dataclasses.replace(config, eval=measured), world, used)
    try:
        _check(chosen)
        check_prices(chosen, getattr(config, "usd", 0.0), "config")
    except UserError as error:
        raise UserError(str(error).replace("config.", f"{where}.", 1)) from error
    return chosen


def _check(chosen: Chosen) -> None:
    """What fields of several sections decide together, with what is known of the world and the
    benchmarks."""
    config = chosen.config
    assert not isinstance(config, cfg.GridConfig)
    checks.check_metric(chosen.benchmarks, config.eval)
    endpoints = [] if not isinstance(config, cfg.EvaluationConfig) else [a.endpoint for a in config.arms.named().values()]
    engine = not endpoints or not all(endpoints)
    for name, one in chosen.benchmarks.items():
        section = config.eval.sections[name]
        checks.readers(name, one, config.eval)
        if section.draw.from_model and any(endpoints):
            raise UserError(
                f"config.eval.{name}.draw.from_model needs the engine, and config.arms names an endpoint, which does not "
                "say how its model draws. Set the temperature (and top_p, top_k, min_p) instead."
            )
        if check := getattr(one, "check", None):
            check(section, in_engine=not any(endpoints))
        needed = one.positions + section.max_new
        if engine and needed > config.engine.cache_length:
            raise UserError(
                f"config.engine.cache_length is {config.engine.cache_length}; {name} needs {needed}: prompts of up to "
                f"{one.positions} tokens, and config.eval.{name}.max_new = {section.max_new}. Raise it, or lower max_new."
            )
    if isinstance(config, cfg.TrainingConfig) and not config.model.path:
        raise UserError("config.model.path is empty; name a Hugging Face folder or a hub id.")
    if isinstance(config, cfg.InteractionConfig):
        design_check.check(config, chosen.world.limits if chosen.world else None)
    if isinstance(config, cfg.FinetuneConfig):
        _check_data(config, chosen.world)
    if chosen.world and isinstance(config, cfg.TrainingConfig):
        chosen.world.check(config)


def check_prices(chosen: Chosen, usd: float, where: str) -> None:
    """Raises UserError if a cap on money could not hold, since somebody who is asked has no
    price."""
    config = chosen.config
    assert not isinstance(config, cfg.GridConfig)
    if not usd or isinstance(config, cfg.PretrainConfig):
        return
    limits = chosen.world.limits if chosen.world else None
    free = list(cost.total(config, limits=limits, benchmarks=chosen.benchmarks).unpriced)
    if isinstance(config, cfg.EvaluationConfig):
        free += [f"{where}.arms.{name}" for name, arm in config.arms.named().items() if arm.endpoint]
    if free:
        raise UserError(
            f"{where}.usd caps the run at {usd:g} USD, but {free[0]} has no price, so its calls would not count: give its "
            "budget.price_in and price_out, or use the engine."
        )


def data_sets(config: cfg.FinetuneConfig) -> list[tuple[str, cfg.SetConfig, dict[str, str]]]:
    """(field, set, {level that is read: field that names it}) of each data set."""
    data = config.data
    if isinstance(data, cfg.LevelsConfig):
        return [("data.set", data.set, {data.control: "data.control"} | dict.fromkeys(data.levels, "data.levels"))]
    both = {"data.downstream": data.downstream, "data.misaligned": data.misaligned}
    return [(field, one, {one.level: f"{field}.level"}) for field, one in both.items()]


def _check_data(config: cfg.FinetuneConfig, world: World | None) -> None:
    for field, one, levels in data_sets(config):
        if world and one.source in world.datasets():
            continue
        if one.source not in sources.SOURCES:
            known = [*(world.datasets() if world else ()), *sources.SOURCES]
            raise UserError(f"config.{field}.source is {one.source!r}; choose {', '.join(known)}.")
        for level, named in levels.items():
            if error := sources.unknown_level(one.source, level):
                raise UserError(f"config.{named}: {error}")
