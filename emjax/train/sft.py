"""Supervised fine-tuning: weighted token log-likelihood, normalised over the global batch."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emjax.config import TrainConfig
from emjax.data import batches
from emjax.data.batches import Example
from emjax.models.logprobs import row_logprobs
from emjax.train import state as train_state
from emjax.train.prepared import Prepared
from emjax.train.state import State, Tuning


@functools.partial(jax.jit, static_argnames=("tuning", "optimizer", "microbatches"), donate_argnames="state")
def step(
    state: State,
    frozen: Any,
    rows: dict[str, jax.Array],
    learning_rate: jax.Array,
    *,
    tuning: Tuning,
    optimizer: optax.GradientTransformation,
    microbatches: int = 1,
) -> tuple[State, dict[str, jax.Array]]:
    """One optimizer step on sum(w * -log p) / sum(w). The sums run over the whole batch,
    independent of microbatches and shards."""
    weight = rows["weights"].sum()

    key, rows = tuning.dropout_key(state["step"]), rows | {"row": jnp.arange(len(rows["tokens"]))}

    def loss_sum(trainable: Any, part: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        params, adapter = tuning.assemble(trainable, frozen, (key, part["row"]))
        logprobs_BxP = row_logprobs(tuning.config, params, adapter, part, **tuning.forward)
        return -(logprobs_BxP * part["weights"]).sum(), None

    grad = jax.value_and_grad(loss_sum, has_aux=True)
    total, _, grads = train_state.accumulate(grad, state["trainable"], rows, microbatches)
    grads = jax.tree.map(lambda g: g / weight, grads)
    state, norm = train_state.apply(state, grads, optimizer, learning_rate, tuning)
    return state, {"loss": total / weight, "grad_norm": norm, "tokens": jnp.count_nonzero(rows["weights"])}


@functools.partial(jax.jit, static_argnames="tuning")
def evaluate(trainable: Any, frozen: Any, rows: dict[str, jax.Array], *, tuning: Tuning) -> tuple[jax.Array, jax.Array]:
    """(sum of -w log p, sum of w) of one batch, without training."""
    params, adapter = tuning.assemble(trainable, frozen)
    logprobs_BxP = row_logprobs(tuning.config, params, adapter, rows, implementation=tuning.implementation)
    return -(logprobs_BxP * rows["weights"]).sum(), rows["weights"].sum()


def prepare(
    examples: Sequence[Example], held_out: Sequence[Example], train: TrainConfig, seed: int, *, group: bool = False
) -> Prepared:
    """Batches for `step`. group: rows of similar length share a batch."""

    def plan(part: Sequence[Example], epochs: int, grouped: bool) -> list[np.ndarray]:
        return batches.plan([len(e.ids) for e in part], train.batch_size, epochs, seed, group=grouped)

    rows = plan(examples, train.epochs, group)
    held = []
    if held_out:
        once = plan(held_out, 1, False)
        build = batches.sft(held_out, once, train.batch_size, train.buckets)
        held = [build(number) for number in range(len(once))]
    return Prepared(examples, rows, batches.sft(examples, rows, train.batch_size, train.buckets), step, evaluate, held)
