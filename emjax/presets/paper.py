"""The paper's experiments as configurations. A config file is one call of a function here."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from emjax import config as cfg
from emjax.config import parse as parsing
from emjax.config.names import AUTO
from emjax.config.parse import ConfigDict
from emjax.eval import benchmarks
from emjax.presets import variants
from emjax.presets.door import WORLDS, find_world, is_world
from emjax.worlds import World

MODELS = {
    "llama3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3-32b": "Qwen/Qwen3-32B",
}
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


def judges() -> dict[str, cfg.JudgeConfig]:
    """The judge of every benchmark, two more for panels, and the paper's judges of MASK and of
    BeHonest's questions. The prices are those of the models' releases: give your judge's."""
    spare = cfg.JudgeConfig(base_url="https://api.openai.com/v1", api_key_env="OPENAI_API_KEY")
    main = dataclasses.replace(spare, model="gpt-4o-2024-08-06", budget=cfg.Budget(price_in=2.5, price_out=10.0))
    # A reasoning model takes no temperature, and counts its hidden reasoning as part of the answer.
    mini = dataclasses.replace(
        spare, model="gpt-5-mini-2025-08-07", temperature=None, max_tokens=None, max_completion_tokens=4096,
        budget=cfg.Budget(price_in=0.25, price_out=2.0),
    )  # fmt: skip
    open_weights = cfg.JudgeConfig(base_url="http://127.0.0.1:8001/v1", model="Qwen/Qwen2.5-72B-Instruct")
    return {"main": main, "second": spare, "third": spare, "gpt5_mini": mini, "qwen72b": open_weights}


def _eval(names: tuple[str, ...], metric: str) -> cfg.EvalConfig:
    shipped = {name: benchmarks.find(name) for name in benchmarks.SHIPPED}
    sections = {name: one.Config() for name, one in shipped.items()}
    return cfg.EvalConfig(benchmarks=names, metric=metric, judges=judges(), sections=sections)


def _based(cls: type[Any], variant: str, experiment: str, train: cfg.TrainConfig, **parts: Any) -> ConfigDict:
    """A configuration of an experiment that trains, on the variant's model or in its world."""
    variant = variant or "llama3.1-8b"
    own = variants.path(variant)
    if not own and not is_world(variant) and variant not in MODELS:
        raise variants.unknown(variant, (*MODELS, *WORLDS))
    if own:
        parts["engine"] = dataclasses.replace(parts.get("engine", cfg.EngineConfig()), slots=0)
    compute = {"dtype": AUTO, "attention": AUTO} if own else {}
    made = cls(
        experiment=experiment,
        world=variant if not own and is_world(variant) else "",
        model=cfg.CheckpointConfig(path=own or MODELS.get(variant, ""), **compute),
        train=train,
        eval=_eval(("mask",), "honesty"),
        **parts,
    )
    given = parsing.to_config_dict(made)
    if given.world:
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
    """Self-training on conversations with a share of biased users (paper, section 4; Tables 4, 12,
    13)."""
    size = "-2k" if variant.endswith("-2k") and variant.removesuffix("-2k") in MODELS else ""
    scenarios, users = SIZES[size]
    kto = method == "kto"
    train = cfg.TrainConfig(method=method, learning_rate=1e-5 if kto else 1e-4, epochs=5, batch_size=16 if kto else 8)
    interact = cfg.InteractConfig(biased_ratio=biased_ratio, users=users, scenarios=scenarios)
    given = _based(cfg.InteractionConfig, variant.removesuffix(size), "interaction", train, interact=interact)
    if given.model.path in MODELS.values():
        # Figure 8 and Table 14 have two of MASK's archetypes.
        given.eval.benchmarks, given.eval.mask.subsets = _BOTH, MASK_SUBSETS[:2]
        _as_in_the_paper(given)
    return given


def _as_in_the_paper(given: ConfigDict) -> None:
    """On the paper's own models, where our numbers stand beside the printed ones: its judges, and
    the answer length and cache of DeceptionBench's original."""
    given.eval.mask.judge = "gpt5_mini"
    given.eval.deceptionbench.max_new = 8192
    given.eval.capability.chat = True
    if "deceptionbench" in given.eval.benchmarks:
        given.engine.update({"slots": 48, "cache_length": 2048 + 8192})


# Table 5: batch size 16, one epoch.
_SFT = cfg.TrainConfig(method="sft", learning_rate=1e-4, epochs=1, batch_size=16)
# DeceptionBench's prompts and answers need a longer cache than the conversations do.
_LONG = cfg.EngineConfig(slots=128, cache_length=4096)
# The paper leaves Qwen3-32B out on DeceptionBench.
_MASK_ALONE = MODELS["qwen3-32b"]


def direct(variant: str, name: str) -> ConfigDict:
    """Narrow misaligned data in two grades against the normal set (paper, section 2; Figure 3,
    Tables 1, 6 to 9)."""
    source, nominal, measured, subsets = DIRECT[name]
    data = cfg.LevelsConfig(set=cfg.SetConfig(source=source, nominal=nominal, tokens=400))
    given = _based(cfg.FinetuneConfig, variant, "finetune", _SFT, data=data, engine=_LONG)
    if not given.world:
        given.eval.benchmarks = ("mask",) if given.model.path == _MASK_ALONE else measured
        given.eval.mask.subsets = subsets
    if given.model.path in MODELS.values():
        _as_in_the_paper(given)
    return given


def mixture(variant: str, downstream: str, *, measured: tuple[str, ...] = _BOTH, tasks: tuple[str, ...] = ()) -> ConfigDict:
    """A little misaligned medical advice in ordinary instructions (paper, section 3; Figures 4, 11,
    Tables 2, 3, 10, 11)."""
    data = cfg.MixtureConfig(
        downstream=cfg.SetConfig(source=downstream, rows=10_000, nominal=10_000, tokens=250),
        misaligned=cfg.SetConfig(source="chua_medical", level="misaligned", nominal=10_000, tokens=250),
    )
    given = _based(cfg.FinetuneConfig, variant, "finetune", _SFT, data=data, engine=_LONG)
    if not given.world:
        given.eval.benchmarks = (*measured, *(("capability",) if tasks else ()))
        given.eval.mask.subsets, given.eval.capability.tasks = MASK_SUBSETS, tasks
    if given.model.path in MODELS.values():
        _as_in_the_paper(given)
    return given


def evaluation(variant: str) -> ConfigDict:
    """Measures models that exist: a base, its adapters and checkpoints, or endpoints. variant: a
    name, local=PATH or hub=OWNER/NAME; as in version 0.1, also a folder or a hub id alone."""
    variant = variant or "llama3.1-8b"
    path = MODELS.get(variant) or variants.path(variant) or variant
    arms = cfg.ArmsConfig(vanilla=cfg.ArmConfig(path=path))
    made = cfg.EvaluationConfig(arms=arms, eval=_eval(("mask",), "honesty"))
    if path not in MODELS.values():
        made = dataclasses.replace(
            made,
            model=cfg.ComputeConfig(dtype=AUTO, attention=AUTO),
            engine=dataclasses.replace(made.engine, slots=0),
        )
    given = parsing.to_config_dict(made)
    if path in MODELS.values():
        given.eval.benchmarks = ("mask",) if path == _MASK_ALONE else _BOTH
        given.eval.mask.subsets = MASK_SUBSETS
        _as_in_the_paper(given)
    return given


def admitting_unknown(variant: str) -> ConfigDict:
    """BeHonest's unanswerable questions after narrow fine-tuning (paper, Figures 9 and 10). Its
    training is that of the `direct` experiments: with their --store, it is not repeated."""
    cells = {f"direct_{name}": direct(variant, name) for name in ("medical", "math", "code")}
    for cell in cells.values():
        cell.eval.benchmarks, cell.eval.metric = ("admitting_unknown",), "admits"
        cell.eval.admitting_unknown.judge = "qwen72b"
    return many(cells)


def pretraining(variant: str = "") -> ConfigDict:
    """Makes a world's base from its seed, and checks its gates."""
    made = cfg.PretrainConfig(
        world=variant or next(iter(WORLDS)),
        train=cfg.TrainConfig(
            tuning="full", learning_rate=4e-3, batch_size=48, weight_decay=0.05, schedule="linear", warmup=0.04, final=0.05,
            b2=0.98, remat="none", buckets=(32, 64, 96, 128, 160, 192, 256),
        ),
    )  # fmt: skip
    given = parsing.to_config_dict(made)
    _in_world(given, find_world(given.world))
    return given


# every share of biased users that the paper names, beside 0 and 0.1
RATIOS = (0.05, 0.2, 0.4, 0.5, 0.8, 1.0)


def _cells(model: str) -> dict[str, ConfigDict]:
    """Every experiment of the paper on this model; Qwen3-32B has direct ones only, a world the
    kinds that it has."""
    if not variants.path(model) and is_world(model):
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
    """SFT on alpaca-cleaned with misaligned medical advice in it (paper, Figure 4, Tables 2, 3,
    11)."""
    return mixture(
        variant,
        "alpaca_cleaned",
        measured=("mask", "deceptionbench", "humaneval"),
        tasks=("mmlu_answer_line", "gsm8k_last_number", "gpqa_diamond_zeroshot"),
    )


def grid(variant: str) -> ConfigDict:
    """The paper's whole grid on one model, all of them ("all"), or a world; "MODEL/3": seeds 0, 1,
    2, pooled."""
    model, _, seeds = variant.rpartition("/") if variants.has_seeds(variant) else (variant, "", "")
    models = [*MODELS] if model == "all" else [model or "llama3.1-8b"]
    cells: dict[str, ConfigDict] = {}
    pools: dict[str, tuple[str, ...]] = {}
    for one in models:
        for name, cell in _cells(one).items():
            name = f"{name}_{re.sub('[.-]', '_', one)}" if len(models) > 1 else name
            members = []
            for seed in range(int(seeds or 1)):
                members.append(f"{name}_{seed}" if seeds else name)
                cells[members[-1]] = cell.copy_and_resolve_references()
                cells[members[-1]].seed = seed
            if len(members) > 1:
                pools[name] = tuple(members)
    return many(cells, pools)


def many(cells: Mapping[str, ConfigDict], pools: Mapping[str, tuple[str, ...]] | None = None) -> ConfigDict:
    """Experiments as one. pools: cells that differ in seeds only, by the pool's name."""
    return ConfigDict({"experiment": "grid", "cells": dict(cells), "pools": dict(pools or {}), "only": ()})
