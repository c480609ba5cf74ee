"""KTO training: batches with mismatched partners, and one optimizer step with a global reference point."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emjax.data import batches
from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.kto.loss import example_losses, reference_point
from emjax.kto.pairing import Plan
from emjax.train import state as train_state
from emjax.train.logprobs import sequence_logprobs
from emjax.train.state import State, Tuning

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class KtoConfig:
    """config.kto. `balance` multiplies the undesirable weight by n_D / n_U ("equal": both labels weigh the same in total) or
    by n_D / (1.05 n_U) ("williams": as Williams et al. 2024, arXiv:2411.02306)."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    loss_type: str = "kto"
    preset: str = "emjax"
    order: str = "shuffled"
    balance: str = "none"

    @property
    def paired(self) -> bool:
        return self.loss_type == "kto"


BALANCES = {"none": 0.0, "equal": 1.0, "williams": 1.05}  # what (desirable total) / (undesirable total) comes to


def balanced(kto: KtoConfig, labels: Sequence[bool | None]) -> KtoConfig:
    """With the class weights that `kto.balance` gives for these labels. Raises UserError where one label is absent."""
    desirable, ratio = sum(map(bool, labels)), BALANCES[kto.balance]
    if not ratio:
        return kto
    if desirable in (0, len(labels)):
        raise UserError(
            f"config.kto.balance is {kto.balance!r}, but all {len(labels)} examples have the same label. Set it to 'none'."
        )
    factor = desirable / (ratio * (len(labels) - desirable))
    return dataclasses.replace(kto, undesirable_weight=kto.undesirable_weight * factor)


def prompt_cut(e: Example, other: Example, limit: int) -> int:
    """How many prompt tokens the row (prompt of e, completion of other) has to lose to be at most `limit` long."""
    return max(0, e.start + len(other.ids) - other.start - limit)


def batch(
    examples: Sequence[Example], block: np.ndarray, partners: np.ndarray | None, size: int, buckets: Sequence[int]
) -> Batch:
    """The rows of one block and of its mismatched pairs (prompt of i, completion of i's partner), padded to `size` rows.

    A mismatched row longer than the longest bucket loses the oldest tokens of its prompt after the first one (which may be a
    BOS), never any of its completion. Without partners there are no mismatched rows.
    """
    matched, mismatched = [], []
    for i in block:
        e = examples[i]
        matched.append((e.ids, e.weights))
    for i, j in zip(block, [] if partners is None else partners, strict=partners is not None):
        e, other = examples[i], examples[j]
        cut = prompt_cut(e, other, buckets[-1])
        prompt = e.ids[:1] + e.ids[1 + cut : e.start]
        mismatched.append((prompt + other.ids[other.start :], (0.0,) * len(prompt) + other.weights[other.start :]))
    pad = size - len(block)
    what = f"the batch that starts with example {examples[block[0]].id!r}"
    made = {
        "rows": batches.rows(matched, size, buckets, what),
        "desirable": np.array([bool(examples[i].label) for i in block] + [False] * pad),
        "valid": np.array([1.0] * len(block) + [0.0] * pad, np.float32),
    }
    return made | ({"kl_rows": batches.rows(mismatched, size, buckets, what)} if mismatched else {})


def build(
    examples: Sequence[Example],
    plan: Plan,
    size: int,
    buckets: Sequence[int],
    reference: dict[str, np.ndarray],
    microbatches: int = 1,
) -> Callable[[int], Batch]:
    """build(step): the block of that step with its cached reference log-probs, reference[...] being [blocks, size].

    The step's microbatches are strided slices; rows are laid so that each is a run of the block's consecutive rows.
    """

    def build_(step: int) -> Batch:
        b = plan.order[step]
        made = batch(examples, plan.blocks[b], plan.partners[b] if plan.partners else None, size, buckets)
        made |= {name: values[b] for name, values in reference.items()}
        return jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape), made)

    return build_


def _reduction(
    kto: KtoConfig, sums_M: jax.Array, nonzero_M: jax.Array, counts_M: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(z_M, share_M, divisor) from the sums of mismatched log-ratios over the microbatches, how many are not 0, and how many
    rows there are: the loss is sum_M(share_M * sum of the microbatch's losses) / divisor.

    emjax: one z and one mean over the batch. The libraries: a z each, and a mean of the means of the microbatches that have
    rows; HALOs' z is a mean over the ratios that are not exactly 0 (0 where all are).
    """
    if kto.preset == "emjax":
        count = counts_M.sum()
        return jnp.full_like(sums_M, reference_point(sums_M.sum(), count)), jnp.ones_like(sums_M), count
    over_M = nonzero_M if kto.preset == "halos" else counts_M
    return reference_point(sums_M, jnp.maximum(over_M, 1)), 1 / jnp.maximum(counts_M, 1), (counts_M > 0).sum()


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
    """One optimizer step. With preset emjax z is the mean over the whole batch, formed before the gradient passes, so that the
    result depends neither on slices nor on shards; rows without gradient never enter the differentiated pass."""
    valid_B = batch["valid"]
    counts_M = train_state.split(valid_B, microbatches).sum(axis=1)

    def mismatched(_: None, part: Batch) -> tuple[None, tuple[jax.Array, jax.Array]]:
        params, adapter = tuning.assemble(state["trainable"], frozen)
        policy_B = sequence_logprobs(tuning.config, params, adapter, part["kl_rows"], implementation=tuning.implementation)
        ratios_B = (policy_B - part["reference_kl"]) * part["valid"]
        return None, (ratios_B.sum(), jnp.count_nonzero(ratios_B))

    sums_M, nonzero_M = jnp.zeros_like(counts_M), jnp.zeros_like(counts_M)
    if kto.paired:
        _, (sums_M, nonzero_M) = jax.lax.scan(mismatched, None, train_state.split(batch, microbatches))
    z_M, share_M, divisor = _reduction(kto, sums_M, nonzero_M, counts_M)

    def loss_sum(trainable: Any, part: Batch) -> tuple[jax.Array, jax.Array]:
        params, adapter = tuning.assemble(trainable, frozen)
        policy_B = sequence_logprobs(tuning.config, params, adapter, part["rows"], **tuning.forward)
        ratios_B = policy_B - part["reference"]
        losses_B = example_losses(ratios_B, part["z"], part["desirable"], **_weights(kto))
        return (losses_B * part["share"]).sum(), ratios_B

    # An example has one weight, that of its scored tokens; it enters the sum and not the count, like a class weight.
    row = np.arange(len(valid_B)) % microbatches
    per_row = {"z": z_M[row], "share": share_M[row] * batch["rows"]["weights"].max(axis=1)}
    grad = jax.value_and_grad(loss_sum, has_aux=True)
    total, ratios, grads = train_state.accumulate(grad, state["trainable"], batch | per_row, microbatches)
    grads = jax.tree.map(lambda g: g / divisor, grads)
    state, norm = train_state.apply(state, grads, optimizer, learning_rate, tuning)
    # Slices are strided; the metrics below need only sums over labels in the same order.
    desirable_B = train_state.split(batch["desirable"], microbatches).reshape(-1)
    valid_B = train_state.split(valid_B, microbatches).reshape(-1)
    rewards_B = kto.beta * ratios
    metrics = {"loss": total / divisor, "grad_norm": norm, "kl_raw": sums_M.sum() / counts_M.sum()}
    metrics["kl"] = (z_M * (counts_M > 0)).sum() / (counts_M > 0).sum()
    for name, chosen_B in (("desirable", desirable_B * valid_B), ("undesirable", (~desirable_B) * valid_B)):
        # Sums and counts, not means: a class may be absent from a batch.
        metrics |= {f"reward_{name}_sum": (rewards_B * chosen_B).sum(), f"{name}_count": chosen_B.sum()}
    return state, metrics


@functools.partial(jax.jit, static_argnames=("tuning", "kto"))
def evaluate(trainable: Any, frozen: Any, batch: Batch, *, tuning: Tuning, kto: KtoConfig) -> tuple[jax.Array, jax.Array]:
    """(sum of the losses, number of examples) of one batch, with its own z whatever the preset; nothing is trained."""
    params, adapter = tuning.assemble(trainable, frozen)
    score = functools.partial(sequence_logprobs, tuning.config, params, adapter, implementation=tuning.implementation)
    count, z = batch["valid"].sum(), jnp.zeros(())
    if kto.paired:
        z = reference_point(((score(batch["kl_rows"]) - batch["reference_kl"]) * batch["valid"]).sum(), count)
    losses_B = example_losses(score(batch["rows"]) - batch["reference"], z, batch["desirable"], **_weights(kto))
    return (losses_B * batch["rows"]["weights"].max(axis=1)).sum(), count


def _weights(kto: KtoConfig) -> dict[str, float]:
    return {name: getattr(kto, name) for name in ("beta", "desirable_weight", "undesirable_weight")}
