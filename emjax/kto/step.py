"""KTO training: batches with mismatched partners, and one optimizer step with a global reference point."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from emjax.data import batches
from emjax.data.batches import Example
from emjax.kto.loss import example_losses, reference_point
from emjax.train import state as train_state
from emjax.train.logprobs import sequence_logprobs
from emjax.train.state import State, Tuning

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class KtoConfig:
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


def batch(examples: Sequence[Example], block: np.ndarray, partners: np.ndarray, size: int, buckets: Sequence[int]) -> Batch:
    """The rows of one block and of its mismatched pairs (prompt of i, completion of i's partner), padded to `size` rows."""
    matched, mismatched = [], []
    for i, j in zip(block, partners, strict=True):
        e, other = examples[i], examples[j]
        matched.append((e.ids, e.weights))
        mismatched.append((e.ids[: e.start] + other.ids[other.start :], e.weights[: e.start] + other.weights[other.start :]))
    pad = size - len(block)
    what = f"the batch that starts with example {examples[block[0]].id!r}"
    return {
        "rows": batches.rows(matched, size, buckets, what),
        "kl_rows": batches.rows(mismatched, size, buckets, what),
        "desirable": np.array([bool(examples[i].label) for i in block] + [False] * pad),
        "valid": np.array([1.0] * len(block) + [0.0] * pad, np.float32),
    }


def build(
    examples: Sequence[Example],
    blocks: Sequence[np.ndarray],
    partners: Sequence[np.ndarray],
    order: Sequence[int],
    size: int,
    buckets: Sequence[int],
    reference: dict[str, np.ndarray],
) -> Callable[[int], Batch]:
    """build(step): the block of that step with its cached reference log-probs, reference[...] being [blocks, size]."""

    def build_(step: int) -> Batch:
        b = order[step]
        made = batch(examples, blocks[b], partners[b], size, buckets)
        return made | {name: values[b] for name, values in reference.items()}

    return build_


@functools.partial(jax.jit, static_argnames=("tuning", "optimizer", "kto", "microbatches"), donate_argnames="state")
def step(
    state: State,
    frozen: Any,
    batch: Batch,
    learning_rate: jax.Array,
    *,
    tuning: Tuning,
    optimizer: optax.GradientTransformation,
    kto: KtoConfig,
    microbatches: int = 1,
) -> tuple[State, dict[str, jax.Array]]:
    """One optimizer step. z is the mean over the whole batch, formed before the gradient passes, so that the result depends
    neither on slices nor on shards; rows without gradient never enter the differentiated pass."""
    valid_B, count = batch["valid"], batch["valid"].sum()

    def mismatched(_: None, part: Batch) -> tuple[None, jax.Array]:
        params, adapter = tuning.assemble(state["trainable"], frozen)
        policy_B = sequence_logprobs(tuning.config, params, adapter, part["kl_rows"], implementation=tuning.implementation)
        return None, ((policy_B - part["reference_kl"]) * part["valid"]).sum()

    _, sums = jax.lax.scan(mismatched, None, train_state.split(batch, microbatches))
    z = reference_point(sums.sum(), count)

    def loss_sum(trainable: Any, part: Batch) -> tuple[jax.Array, jax.Array]:
        params, adapter = tuning.assemble(trainable, frozen)
        policy_B = sequence_logprobs(tuning.config, params, adapter, part["rows"], **tuning.forward)
        ratios_B = policy_B - part["reference"]
        losses_B = example_losses(ratios_B, z, part["desirable"], **dataclasses.asdict(kto))
        return (losses_B * part["valid"]).sum(), ratios_B

    grad = jax.value_and_grad(loss_sum, has_aux=True)
    total, ratios, grads = train_state.accumulate(grad, state["trainable"], batch, microbatches)
    grads = jax.tree.map(lambda g: g / count, grads)
    state, norm = train_state.apply(state, grads, optimizer, learning_rate, tuning)
    # Slices are strided; the metrics below need only sums over labels in the same order.
    desirable_B = train_state.split(batch["desirable"], microbatches).reshape(-1)
    valid_B = train_state.split(valid_B, microbatches).reshape(-1)
    rewards_B = kto.beta * ratios
    metrics = {"loss": total / count, "kl": z, "kl_raw": sums.sum() / count, "grad_norm": norm}
    for name, chosen_B in (("desirable", desirable_B * valid_B), ("undesirable", (~desirable_B) * valid_B)):
        # Sums and counts, not means: a class may be absent from a batch.
        metrics |= {f"reward_{name}_sum": (rewards_B * chosen_B).sum(), f"{name}_count": chosen_B.sum()}
    return state, metrics
