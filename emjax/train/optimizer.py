"""Optimizers from optax: AdamW with a schedule, clipping, and weight decay that skips norms and
biases."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emjax.config import TrainConfig


def learning_rates(config: TrainConfig, steps: int) -> np.ndarray:
    """float32 [steps]: linear warm-up, then constant, linear or cosine to final x peak."""
    peak, end = config.learning_rate, config.learning_rate * config.final
    warmup = round(config.warmup * steps)
    rest = max(1, steps - warmup)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, end, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final),
    }[config.schedule]
    # From peak / warmup on: a first step of rate 0 would be a step lost.
    rise = optax.linear_schedule(peak / max(1, warmup), peak, max(1, warmup - 1))
    schedule = optax.join_schedules([rise, after], [warmup])
    return np.asarray(schedule(jnp.arange(steps)), np.float32)


@functools.cache
def make(b1: float, b2: float, eps: float, weight_decay: float, clip: float) -> optax.GradientTransformation:
    """AdamW at learning rate 1: the step scales the update, so that one compiled step serves every
    schedule.

    Cached, because the optimizer is a static argument of the jitted step.
    """
    parts = [optax.clip_by_global_norm(clip)] if clip else []
    return optax.chain(*parts, optax.adamw(1.0, b1, b2, eps, weight_decay=weight_decay, mask=_decayed))


def from_config(config: TrainConfig) -> optax.GradientTransformation:
    return make(config.b1, config.b2, config.eps, config.weight_decay, config.clip)


def _decayed(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: not str(path[-1].key).endswith(("norm", "bias")), tree)
