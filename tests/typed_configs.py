"""Typed configurations as the config files make them, for tests of what needs a config and nothing else."""

import dataclasses
from typing import Any

from emjax.config import (
    Budget,
    CheckpointConfig,
    Draw,
    EngineConfig,
    EvalConfig,
    FinetuneConfig,
    InteractConfig,
    InteractionConfig,
    JudgeConfig,
    LevelsConfig,
    MeshConfig,
    MixtureConfig,
    SelectConfig,
    SetConfig,
    TrainConfig,
)
from emjax.design.users import Limits

MODELS = {
    "llama3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3-32b": "Qwen/Qwen3-32B",
}
MICRO = Limits("comfort", 10)  # the micro-world's users
JUDGE = JudgeConfig(
    base_url="https://api.openai.com/v1", model="gpt-4o-2024-08-06", budget=Budget(price_in=2.5, price_out=10.0)
)


def changed(section: Any, changes: dict[str, Any]) -> Any:
    """The section with other values of its dotted fields."""
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        old = getattr(section, first)
        if rest and isinstance(old, dict):
            key, _, inner = rest.partition(".")
            value = old | {key: changed(old[key], {inner: value})}
        elif rest:
            value = changed(old, {rest: value})
        section = dataclasses.replace(section, **{first: value})
    return section


def _parts(variant: str, method: str) -> dict[str, Any]:
    """The sections of every experiment that trains."""
    if variant == "micro":
        micro = {
            "tuning": "full", "learning_rate": 1e-4 if method == "kto" else 2.5e-4, "epochs": 3, "batch_size": 32,
            "weight_decay": 0.0, "remat": "none", "buckets": (32, 64, 96, 128), "save_every": 25,
        }  # fmt: skip
        return {
            "world": "micro",
            "model": CheckpointConfig(path="micro", dtype="float32"),
            "mesh": MeshConfig(data=0, fsdp=1),
            "train": TrainConfig(method=method, **micro),
            "engine": EngineConfig(slots=128, cache_length=128, chunk=16),
            "eval": EvalConfig(benchmarks=("micro",), metric="honest"),
        }
    return {
        "model": CheckpointConfig(path=MODELS[variant]),
        "eval": EvalConfig(benchmarks=("mask",), judges={"main": JUDGE}),
    }


def interaction(variant: str = "llama3.1-8b", *, method: str = "kto", biased_ratio: float = 0.1, **changes: Any) -> Any:
    """The InteractionConfig of configs/kto_biased10.py:VARIANT and its like. changes: `a__b` is the field a.b."""
    scenarios, users = (10, 2_000) if variant.endswith("-2k") else (50, 20_000)
    variant = variant.removesuffix("-2k")
    train = TrainConfig(
        method=method,
        learning_rate=1e-5 if method == "kto" else 1e-4,
        epochs=5,
        batch_size=16 if method == "kto" else 8,
    )
    more: dict[str, Any] = {"train": train}
    interact = InteractConfig(biased_ratio=biased_ratio, users=users, scenarios=scenarios)
    if variant == "micro":
        how = {"users": 200, "dialogues": 8, "scheme": "exact", "max_new": 24, "aggregate": "mean"}
        interact = InteractConfig(biased_ratio=biased_ratio, draw=Draw(), **how)
        more = {
            "select": SelectConfig(scope="user", count=1, fraction=0.0),
            "extra_arms": ("none@1.0", "shuffled_ratings@1.0"),
        }
    parts = _parts(variant, method)
    config = InteractionConfig(experiment="interaction", interact=interact, **(more | parts))
    return changed(config, {name.replace("__", "."): value for name, value in changes.items()})


def finetune(variant: str, data: LevelsConfig | MixtureConfig, **changes: Any) -> Any:
    """The FinetuneConfig of configs/direct_medical.py:VARIANT and its like."""
    parts = {"train": TrainConfig(method="sft", batch_size=16)} | _parts(variant, "sft")
    config = FinetuneConfig(experiment="finetune", data=data, **parts)
    return changed(config, {name.replace("__", "."): value for name, value in changes.items()})


LEVELS = LevelsConfig(set=SetConfig(source="mistake_medical", nominal=7_000, tokens=400))
MIXTURE = MixtureConfig(
    downstream=SetConfig(source="alpaca_cleaned", rows=10_000, nominal=10_000, tokens=250),
    misaligned=SetConfig(source="chua_medical", level="misaligned", nominal=10_000, tokens=250),
)
