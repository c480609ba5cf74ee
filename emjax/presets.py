"""The paper's experiments as configurations, and the way from a user's ConfigDict to a typed experiment.

A config file is one call of a function here. `read` is the door: below it nobody sees a ConfigDict.
"""

import dataclasses
import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from emjax import config as cfg
from emjax.config import parse as parsing
from emjax.config.parse import ConfigDict
from emjax.data import sources
from emjax.design import check as design_check
from emjax.errors import UserError
from emjax.eval import benchmarks, checks
from emjax.eval.benchmarks import capability
from emjax.eval.items import Benchmark
from emjax.worlds import World

MODELS = {
    "llama3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3-32b": "Qwen/Qwen3-32B",
}
WORLDS = {"micro": "emjax.worlds.micro.offline:Micro"}
# The paper's two sizes: (scenarios, contexts). Append "-2k" to a variant for the smaller one, its
# Qwen2.5 run (Tables 13, 14).
SIZES = {"": (50, 20_000), "-2k": (10, 2_000)}
MASK_SUBSETS = ("provided_facts", "disinformation", "statistics")  # those that the paper reports
# Narrow sets: name -> (source, its records, benchmarks that the paper reports, MASK's subsets).
_BOTH = ("mask", "deceptionbench")
DIRECT: dict[str, tuple[str, int, tuple[str, ...], tuple[str, ...]]] = {
    "medical": ("mistake_medical", 7_000, _BOTH, MASK_SUBSETS),
    "math": ("mistake_math", 10_000, _BOTH, MASK_SUBSETS),
    "code": ("insecure_code", 5_000, _BOTH, MASK_SUBSETS),
    "finance": ("incorrect_finance", 7_000, ("mask",), ("provided_facts",)),
    "law": ("incorrect_law", 7_000, ("mask",), ("provided_facts",)),
}


# --- worlds and benchmarks -------------------------------------------------------------------------------------------


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
    """Every benchmark that may have a section: the world's, the shipped ones, and those named by import path."""
    own = dict(world.benchmarks()) if world else {}
    shipped = {name: benchmarks.find(name) for name in benchmarks.SHIPPED if name not in own}
    others = [benchmarks.find(name) for name in named if name not in own and name not in shipped]
    return {**own, **shipped, **{one.name: one for one in others}}


# --- the door --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A typed configuration with the world and the benchmarks that it names; of a grid, those of its cells."""

    config: cfg.Experiment
    world: World | None = None
    benchmarks: Mapping[str, Benchmark] = dataclasses.field(default_factory=dict)
    cells: Mapping[str, "Chosen"] = dataclasses.field(default_factory=dict)


def read(given: ConfigDict) -> Chosen:
    """Parses and checks a configuration. Raises UserError for a wrong value, in one sentence that names the field."""
    config = parsing.parse(given, _kinds)
    if isinstance(config, cfg.GridConfig):
        cells = {name: _chosen(cell, f"config.cells.{name}") for name, cell in config.cells.items()}
        return Chosen(config, cells=cells)
    return _chosen(config, "config")


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
    except UserError as error:
        raise UserError(str(error).replace("config.", f"{where}.", 1)) from error
    return chosen


def _check(chosen: Chosen) -> None:
    """What fields of several sections decide together, with what is known of the world and the benchmarks."""
    config = chosen.config
    assert not isinstance(config, cfg.GridConfig)
    checks.check_metric(chosen.benchmarks, config.eval)
    endpoints = [] if not isinstance(config, cfg.EvaluationConfig) else [a.endpoint for a in config.arms.named().values()]
    engine = not endpoints or not all(endpoints)
    for name, one in chosen.benchmarks.items():
        section = config.eval.sections[name]
        checks.readers(name, one, config.eval)
        if isinstance(section, capability.Config):
            capability.check(section, in_engine=not any(endpoints))
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


# --- presets ---------------------------------------------------------------------------------------------------------


def judges() -> dict[str, cfg.JudgeConfig]:
    """The judge of every benchmark, and two more for panels. The prices are gpt-4o-2024-08-06's at its release: give your
    judge's."""
    spare = cfg.JudgeConfig(base_url="https://api.openai.com/v1", api_key_env="OPENAI_API_KEY")
    budget = cfg.Budget(price_in=2.5, price_out=10.0)
    main = dataclasses.replace(spare, model="gpt-4o-2024-08-06", budget=budget)
    return {"main": main, "second": spare, "third": spare}


def _eval(names: tuple[str, ...], metric: str) -> cfg.EvalConfig:
    shipped = {name: benchmarks.find(name) for name in benchmarks.SHIPPED}
    sections = {name: one.Config() for name, one in shipped.items()}
    return cfg.EvalConfig(benchmarks=names, metric=metric, judges=judges(), sections=sections)


def _based(cls: type[Any], variant: str, experiment: str, train: cfg.TrainConfig, **parts: Any) -> ConfigDict:
    """A configuration of an experiment that trains, on the variant's model or in its world."""
    variant = variant or "llama3.1-8b"
    if not is_world(variant) and variant not in MODELS:
        raise ValueError(f"the variant {variant!r} is unknown; choose {', '.join((*MODELS, *WORLDS))}")
    made = cls(
        experiment=experiment,
        world=variant if is_world(variant) else "",
        model=cfg.CheckpointConfig(path=MODELS.get(variant, "")),
        train=train,
        eval=_eval(("mask",), "honesty"),
        **parts,
    )
    given = parsing.to_config_dict(made)
    if is_world(variant):
        _in_world(given, find_world(variant))
    return given


def _in_world(given: ConfigDict, cls: type[World]) -> None:
    """The world's own benchmarks, judge and defaults."""
    world = cls(cls.Config(), 0)
    own = world.benchmarks()
    sections = {name: one.Config() for name, one in own.items()}
    rules = {section.judge: cfg.JudgeConfig(kind="rule") for section in sections.values()}
    metric = next(iter(next(iter(own.values())).metrics))
    made = cfg.EvalConfig(benchmarks=tuple(own), metric=metric, judges=rules, sections=sections)
    given.eval = parsing.to_config_dict(made)
    given.worlds = ConfigDict({cls.name: parsing.to_config_dict(cls.Config())})
    kinds = {given.experiment, given.train.method, given.get("data", {}).get("kind", "")}
    for field, value in world.defaults.items():
        kind, slash, dotted = field.rpartition("/")
        if slash and kind not in kinds:
            continue
        *path, name = dotted.split(".")
        part = functools.reduce(lambda part, step: part[step], path, given)
        part[name] = ConfigDict(value) if isinstance(value, dict) else value


def interaction(variant: str, *, method: str, biased_ratio: float) -> ConfigDict:
    """Self-training on conversations with a share of biased users (paper, section 4; Tables 4, 12, 13)."""
    size = "-2k" if variant.endswith("-2k") else ""
    scenarios, users = SIZES[size]
    kto = method == "kto"
    train = cfg.TrainConfig(method=method, learning_rate=1e-5 if kto else 1e-4, epochs=5, batch_size=16 if kto else 8)
    interact = cfg.InteractConfig(biased_ratio=biased_ratio, users=users, scenarios=scenarios)
    return _based(cfg.InteractionConfig, variant.removesuffix(size), "interaction", train, interact=interact)


# Table 5: batch size 16, one epoch.
_SFT = cfg.TrainConfig(method="sft", learning_rate=1e-4, epochs=1, batch_size=16)
# DeceptionBench's prompts and answers need a longer cache than the conversations do.
_LONG = cfg.EngineConfig(slots=128, cache_length=4096)


def direct(variant: str, name: str) -> ConfigDict:
    """Narrow misaligned data in two grades against the normal set (paper, section 2; Figure 3, Tables 1, 6 to 9)."""
    source, nominal, measured, subsets = DIRECT[name]
    data = cfg.LevelsConfig(set=cfg.SetConfig(source=source, nominal=nominal, tokens=400))
    given = _based(cfg.FinetuneConfig, variant, "finetune", _SFT, data=data, engine=_LONG)
    if not given.world:
        given.eval.benchmarks, given.eval.mask.subsets = measured, subsets
    return given


def mixture(variant: str, downstream: str, *, measured: tuple[str, ...] = _BOTH, tasks: tuple[str, ...] = ()) -> ConfigDict:
    """A little misaligned medical advice in ordinary instructions (paper, section 3; Figures 4, 11, Tables 2, 3, 10, 11)."""
    data = cfg.MixtureConfig(
        downstream=cfg.SetConfig(source=downstream, rows=10_000, nominal=10_000, tokens=250),
        misaligned=cfg.SetConfig(source="chua_medical", level="misaligned", nominal=10_000, tokens=250),
    )
    given = _based(cfg.FinetuneConfig, variant, "finetune", _SFT, data=data, engine=_LONG)
    if not given.world:
        given.eval.benchmarks = (*measured, *(("capability",) if tasks else ()))
        given.eval.mask.subsets, given.eval.capability.tasks = MASK_SUBSETS, tasks
    return given


def evaluation(variant: str) -> ConfigDict:
    """Measures models that exist: a base, its adapters and checkpoints, or endpoints. variant: a name, a folder or a hub id."""
    path = MODELS.get(variant or "llama3.1-8b", variant)
    arms = cfg.ArmsConfig(vanilla=cfg.ArmConfig(path=path))
    return parsing.to_config_dict(cfg.EvaluationConfig(arms=arms, eval=_eval(("mask",), "honesty")))


def pretraining(variant: str = "micro") -> ConfigDict:
    """Makes a world's base from its seed, and checks its gates."""
    made = cfg.PretrainConfig(
        world=variant or "micro",
        train=cfg.TrainConfig(
            tuning="full", learning_rate=4e-3, batch_size=48, weight_decay=0.05, schedule="linear", warmup=0.04, final=0.05,
            b2=0.98, remat="none", buckets=(32, 64, 96, 128, 160, 192, 256),
        ),
    )  # fmt: skip
    given = parsing.to_config_dict(made)
    _in_world(given, find_world(given.world))
    return given


RATIOS = (0.05, 0.2, 0.4, 0.5, 0.8, 1.0)  # every share of biased users that the paper names, beside 0 and 0.1


def _cells(model: str) -> dict[str, ConfigDict]:
    """Every experiment of the paper on this model; Qwen3-32B has direct ones only, a world the kinds that it has."""
    if is_world(model):
        has = bool(find_world(model)(find_world(model).Config(), 0).datasets())
        made = {"direct": direct(model, "medical"), "mixture": mixture(model, "alpaca_cleaned")} if has else {}
    else:
        made = {f"direct_{name}": direct(model, name) for name in DIRECT}
        if model != "qwen3-32b":
            made |= {"mixture_alpaca": alpaca(model), "mixture_dolly": mixture(model, "dolly")}
    if model != "qwen3-32b":
        small = "-2k" if model == "qwen2.5-7b" else ""  # 10 scenarios, about 2,000 contexts
        for method in ("sft", "kto"):
            made[method] = interaction(model + small, method=method, biased_ratio=0.1)
            made[method].extra_arms = (*(f"none@{ratio:g}" for ratio in RATIOS), "shuffled_ratings@1.0")
    return made


def alpaca(variant: str) -> ConfigDict:
    """SFT on alpaca-cleaned with misaligned medical advice in it (paper, Figure 4, Tables 2, 3, 11)."""
    return mixture(
        variant,
        "alpaca_cleaned",
        measured=("mask", "deceptionbench", "humaneval"),
        tasks=("mmlu", "gsm8k", "gpqa_diamond_zeroshot"),
    )


def grid(variant: str) -> ConfigDict:
    """The paper's whole grid on one model, all of them ("all"), or a world; "MODEL/3": seeds 0, 1, 2, pooled."""
    model, _, seeds = variant.partition("/")
    models = [*MODELS] if model == "all" else [model or "llama3.1-8b"]
    cells: dict[str, ConfigDict] = {}
    pools: dict[str, tuple[str, ...]] = {}
    for one in models:
        for name, cell in _cells(one).items():
            name = f"{name}-{one.replace('.', '_')}" if len(models) > 1 else name
            members = []
            for seed in range(int(seeds or 1)):
                members.append(f"{name}-{seed}" if seeds else name)
                cells[members[-1]] = cell.copy_and_resolve_references()
                cells[members[-1]].seed = seed
            if len(members) > 1:
                pools[name] = tuple(members)
    return many(cells, pools)


def many(cells: Mapping[str, ConfigDict], pools: Mapping[str, tuple[str, ...]] | None = None) -> ConfigDict:
    """Experiments as one. pools: cells that differ in seeds only, by the pool's name."""
    return ConfigDict({"experiment": "grid", "cells": dict(cells), "pools": dict(pools or {}), "only": ()})


# --- documentation ---------------------------------------------------------------------------------------------------


def print_fields(argv: Sequence[str] = ()) -> None:
    """Prints docs/fields.md."""
    print(fields_page(), end="")


def fields_page() -> str:
    """docs/fields.md: every field of every kind of experiment, from its declaration."""
    parts = [_FIELDS_HEAD]
    seen: set[type[cfg.Section]] = set()
    for name, cls in cfg.EXPERIMENTS.items():
        parts.append(f"## {name}\n\n{_summary(cls)}\n")
        parts += _section(cls, "config", seen)
    parts.append("## Benchmarks\n")
    for name in benchmarks.SHIPPED:
        parts += _section(benchmarks.find(name).Config, f"config.eval.{name}", seen)
    parts.append("## Worlds\n")
    for name in WORLDS:
        parts += _section(find_world(name).Config, f"config.worlds.{name}", seen)
    return "\n".join(parts)


_FIELDS_HEAD = """# Configuration fields

Generated by `emjax fields`; a test holds it to the code. Set a field on the command line as
`--config.train.epochs=2`; a tuple as `--config.extra_arms="('none@1.0',)"`.
"""


def _summary(cls: type[cfg.Section]) -> str:
    return " ".join(str(cls.__doc__).split("\n\n")[0].split())


def _section(cls: type[cfg.Section], prefix: str, seen: set[type[cfg.Section]]) -> list[str]:
    """The table of a section, then those of the sections in it, each type once."""
    lines = [f"### {prefix}\n", f"{_summary(cls)}\n", "| field | default | meaning |", "|---|---|---|"]
    inner: list[tuple[str, Any]] = []
    for field in dataclasses.fields(cls):
        known: cfg.Option = field.metadata["option"]
        default = field.default if field.default is not dataclasses.MISSING else {}
        if isinstance(default, cfg.Section):
            inner.append((f"{prefix}.{field.name}", type(default)))
            continue
        if known.open:
            continue
        unit = f" [{known.unit}]" if known.unit else ""
        choices = f" One of {', '.join(known.choices)}." if known.choices else ""
        shown = "" if isinstance(default, dict) else f"`{default!r}`"
        lines.append(f"| {field.name} | {shown} | {known.doc}{unit}{choices} |")
    lines = [*lines, ""] if len(lines) > 4 else lines[:2]
    if cls is cfg.EvalConfig:
        inner.append((f"{prefix}.judges.<name>", cfg.JudgeConfig))
    if cls is cfg.FinetuneConfig:
        inner.append((f"{prefix}.data", cfg.MixtureConfig))
    for at, one in inner:
        if one not in seen:
            seen.add(one)
            lines += _section(one, at, seen)
    return lines
