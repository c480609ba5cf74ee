"""Low-rank adapters: a tree of their own beside the frozen base (Hu et al. 2021, arXiv:2106.09685)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from emjax.errors import UserError
from emjax.models.config import ModelConfig

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """rank r, alpha; scale alpha / r, or alpha / sqrt(r) with rslora."""

    rank: int
    alpha: float
    rslora: bool = False
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        unknown = set(self.targets) - set(TARGETS)
        if unknown or not self.targets or self.rank < 1:
            raise UserError(
                f"LoRA rank {self.rank}, targets {list(self.targets)}: the rank must be at least 1 and the targets a "
                f"non-empty subset of {', '.join(TARGETS)}."
            )

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A LoRA with its weights: weights[target] = {"A": [L, in, r], "B": [L, r, out]}, float32."""

    config: LoraConfig
    weights: dict[str, dict[str, Any]]


# An adapter's configuration is static under jit, its weights are leaves.
jax.tree_util.register_dataclass(Adapter, data_fields=["weights"], meta_fields=["config"])


def shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of each projection."""
    query, kv = config.H * config.h, config.K * config.h
    return {
        "q": (config.D, query), "k": (config.D, kv), "v": (config.D, kv), "o": (query, config.D),
        "gate": (config.D, config.F), "up": (config.D, config.F), "down": (config.F, config.D),
    }  # fmt: skip


def init(lora: LoraConfig, config: ModelConfig, key: jax.Array) -> Adapter:
    """A uniform in +-1/sqrt(in), as PEFT draws it; B zero, so the adapter starts as nothing."""
    weights = {}
    for name, key_t in zip(lora.targets, jax.random.split(key, len(lora.targets)), strict=True):
        fan_in, fan_out = shapes(config)[name]
        bound = fan_in**-0.5
        weights[name] = {
            "A": jax.random.uniform(key_t, (config.L, fan_in, lora.rank), jnp.float32, -bound, bound),
            "B": jnp.zeros((config.L, lora.rank, fan_out), jnp.float32),
        }
    return Adapter(lora, weights)


def linear(x: jax.Array, w: jax.Array, name: str, adapter: Adapter | None) -> jax.Array:
    """x @ w, plus the adapter's scaled x @ A @ B where it has this target; unmerged, cast at use."""
    y = x @ w
    if adapter is None or name not in adapter.weights:
        return y
    pair = adapter.weights[name]
    return y + (x @ pair["A"].astype(x.dtype)) @ pair["B"].astype(x.dtype) * adapter.config.scale
