"""The optax optimizer: AdamW with a learning-rate schedule, gradient clipping, and weight decay on
all weights except norms and biases."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emjax.config import TrainConfig


def learning_rates(config: TrainConfig, steps: int) -> np.ndarray:
    """Learning rate of every step, float32 [steps]: linear warm-up, then constant, or linear or
    cosine decay to final x peak."""
    peak, end = config.learning_rate, config.learning_rate * config.final
    warmup = round(config.warmup * steps)
    rest = max(1, steps - warmup)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, end, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final),
    }[config.schedule]
    # Warm-up starts at peak / warmup: a first step with rate 0 would be wasted.
    rise = optax.linear_schedule(peak / max(1, warmup), peak, max(1, warmup - 1))
    schedule = optax.join_schedules([rise, after], [warmup])
    return np.asarray(schedule(jnp.arange(steps)), np.float32)


@functools.cache
def make(b1: float, b2: float, eps: float, weight_decay: float, clip: float) -> optax.GradientTransformation:
    """AdamW with learning rate 1. The training step scales the update, so one compiled step serves
    every schedule.

    Cached because the optimizer is a static argument of the jitted step.
    """
    parts = [optax.clip_by_global_norm(clip)] if clip else []
    return optax.chain(*parts, optax.adamw(1.0, b1, b2, eps, weight_decay=weight_decay, mask=_decayed))


def from_config(config: TrainConfig) -> optax.GradientTransformation:
    return make(config.b1, config.b2, config.eps, config.weight_decay, config.clip)


def _decayed(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: not str(path[-1].key).endswith(("norm", "bias")), tree)
