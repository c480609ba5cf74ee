"""KTO training: batches with mismatched partners, and one optimizer step with a global reference
point."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emjax.config import KtoConfig
from emjax.data import batches
from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.kto.loss import example_losses, reference_point
from emjax.kto.pairing import Plan
from emjax.models.config import ModelConfig
from emjax.models.logprobs import pair_logprobs, sequence_logprobs
from emjax.models.lora import Adapter
from emjax.train import state as train_state
from emjax.train.state import State, Tuning

Batch = dict[str, Any]


# target ratio of the total weight of desirable examples to that of undesirable ones
_BALANCES = {"none": 0.0, "equal": 1.0, "williams": 1.05}


def balanced(kto: KtoConfig, labels: Sequence[bool | None]) -> KtoConfig:
    """`kto` with the class weights that `kto.balance` gives for these labels. Raises UserError if
    one label is absent."""
    desirable, ratio = sum(map(bool, labels)), _BALANCES[kto.balance]
    if not ratio:
        return kto
    if desirable in (0, len(labels)):
        raise UserError(
            f"config.kto.balance is {kto.balance!r}, but all {len(labels)} examples have the same label. Set it to 'none'."
        )
    factor = desirable / (ratio * (len(labels) - desirable))
    return dataclasses.replace(kto, undesirable_weight=kto.undesirable_weight * factor)


def batch(
    examples: Sequence[Example], block: np.ndarray, partners: np.ndarray | None, size: int, buckets: Sequence[int]
) -> Batch:
    """The rows of one block, padded to `size`. "kl" holds the partners' completions, which are
    scored after the rows' prompts.

    Without partners there is no "kl".
    """
    chosen = [examples[i] for i in block]
    pad = size - len(block)
    made: Batch = {
        "rows": batches.rows(
            [(e.ids, e.weights) for e in chosen], size, buckets, f"the batch that starts with example {chosen[0].id!r}"
        ),
        "desirable": np.array([bool(e.label) for e in chosen] + [False] * pad),
        "valid": np.array([1.0] * len(block) + [0.0] * pad, np.float32),
        # Selects each row's dropout mask, independent of the layout of rows.
        "row": np.arange(size, dtype=np.int32),
    }
    if partners is None:
        return made
    others = [examples[j] for j in partners]
    # A power of two, like the number of positions in `batches.rows`.
    C = 1 << (max(len(e.ids) - e.start for e in (*chosen, *others)) - 1).bit_length()
    kl = {
        "tokens": np.zeros((size, C), np.int32),
        "weights": np.zeros((size, C), np.float32),
        "starts": np.array([e.start for e in chosen] + [1] * pad, np.int32),
    }
    for i, other in enumerate(others):
        count = len(other.ids) - other.start
        kl["tokens"][i, :count] = other.ids[other.start :]
        kl["weights"][i, :count] = other.weights[other.start :]
    return made | {"kl": kl}


def logprobs(
    params: Any, adapter: Adapter | None, batch: Batch, config: ModelConfig, forward: dict[str, Any]
) -> tuple[jax.Array, ...]:
    """Sequence log-probs of the rows and, if the batch has them, of the mismatched pairs."""
    if "kl" in batch:
        return pair_logprobs(config, params, adapter, batch["rows"], batch["kl"], **forward)
    return (sequence_logprobs(config, params, adapter, batch["rows"], **forward),)


def build(
    examples: Sequence[Example],
    plan: Plan,
    size: int,
    buckets: Sequence[int],
    reference: dict[str, np.ndarray],
    microbatches: int = 1,
) -> Callable[[int], Batch]:
    """build(step): the block of that step with its cached reference log-probs. Arrays in
    `reference` are [blocks, size].

    The step's microbatches are strided slices. Rows are laid out so that each microbatch holds
    consecutive rows of the block.
    """

    def build_(step: int) -> Batch:
        b = plan.order[step]
        made = batch(examples, plan.blocks[b], plan.partners[b] if plan.partners else None, size, buckets)
        made |= {name: values[b] for name, values in reference.items()}
        return jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape), made)

    return build_


def _reduction(
    kto: KtoConfig, kl_ratios_B: jax.Array, valid_B: jax.Array, microbatches: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(z_B, share_B, divisor): the loss is sum_B(share * row loss) / divisor, where each row's loss
    uses its own z.

    emjax: one z and one mean over the batch. The library presets: one z per microbatch, and the
    mean of the means of non-empty microbatches. HALOs averages z over the ratios that are not
    exactly 0 (z is 0 if all are).
    """
    if kto.preset == "emjax":
        z = reference_point(kl_ratios_B.sum(), valid_B.sum())
        return jnp.full_like(valid_B, z), valid_B, valid_B.sum()
    ratios_MxR, valid_MxR = train_state.split((kl_ratios_B, valid_B), microbatches)
    counts_M = valid_MxR.sum(axis=1)
    over_M = jnp.count_nonzero(ratios_MxR, axis=1) if kto.preset == "halos" else counts_M
    z_M = reference_point(ratios_MxR.sum(axis=1), jnp.maximum(over_M, 1))
    row = np.arange(len(valid_B)) % microbatches
    return z_M[row], valid_B / jnp.maximum(counts_M, 1)[row], (counts_M > 0).sum()


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
    """One optimizer step. With preset emjax, z is the mean over the whole batch and is computed
    before any gradient, so the result depends neither on microbatches nor on shards. Rows without
    gradient never enter the differentiated pass.

    With one microbatch, mismatched pairs reuse the KV cache of the differentiated pass. With
    several, z needs a separate forward pass over all of them.
    """
    valid_B = batch["valid"]
    key = tuning.dropout_key(state["step"])

    def kl_ratios(part: Batch, policy_kl_B: jax.Array) -> jax.Array:
        return (policy_kl_B - part["reference_kl"]) * part["valid"]

    def mismatched(_: None, part: Batch) -> tuple[None, jax.Array]:
        policy = tuning.assemble(state["trainable"], frozen, (key, part["row"]))
        return None, kl_ratios(part, logprobs(*policy, part, tuning.config, tuning.scoring)[1])

    if kto.paired and microbatches > 1:
        ratios_MxR = jax.lax.scan(mismatched, None, train_state.split(batch, microbatches))[1]
        batch = {name: x for name, x in batch.items() if name != "kl"} | {"kl_ratios": train_state.join(ratios_MxR)}
    elif not kto.paired:
        batch = batch | {"kl_ratios": jnp.zeros_like(valid_B)}
    if "kl_ratios" in batch:
        z_B, share_B = _reduction(kto, batch["kl_ratios"], valid_B, microbatches)[:2]
        batch = batch | {"z": z_B, "share": share_B}

    def loss_sum(trainable: Any, part: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        policy = tuning.assemble(trainable, frozen, (key, part["row"]))
        policy_B, *policy_kl = logprobs(*policy, part, tuning.config, tuning.forward)
        if policy_kl:
            ratios_B = kl_ratios(part, *policy_kl)
            z_B, share_B = _reduction(kto, ratios_B, part["valid"], 1)[:2]
            part = part | {"kl_ratios": ratios_B, "z": z_B, "share": share_B}
        log_ratios_B = policy_B - part["reference"]
        # All scored tokens of an example have the same weight. Like a class weight, it scales the
        # example's term in the sum and not the count.
        weights_B = part["share"] * part["rows"]["weights"].max(axis=1)
        losses_B = example_losses(log_ratios_B, part["z"], part["desirable"], **_weights(kto))
        return (losses_B * weights_B).sum(), {"ratios": log_ratios_B, "kl_ratios": part["kl_ratios"], "z": part["z"]}

    grad = jax.value_and_grad(loss_sum, has_aux=True)
    total, found, grads = train_state.accumulate(grad, state["trainable"], batch, microbatches)
    divisor = _reduction(kto, found["kl_ratios"], valid_B, microbatches)[2]
    grads = jax.tree.map(lambda g: g / divisor, grads)
    state, norm = train_state.apply(state, grads, optimizer, learning_rate, tuning)
    metrics = {"loss": total / divisor, "grad_norm": norm, **_metrics(batch, found, kto, microbatches)}
    return state, metrics


def _metrics(batch: Batch, found: dict[str, jax.Array], kto: KtoConfig, microbatches: int) -> dict[str, jax.Array]:
    """The reference point, and rewards by label as sums and counts: a mean would be undefined if a
    class is absent from a batch."""
    valid_B = batch["valid"]
    metrics = {"kl_raw": found["kl_ratios"].sum() / valid_B.sum()}
    z_M, valid_M = (train_state.split(x, microbatches).max(axis=1) for x in (found["z"], valid_B))
    metrics["kl"] = (z_M * valid_M).sum() / valid_M.sum()
    for name, chosen_B in (("desirable", batch["desirable"] * valid_B), ("undesirable", (~batch["desirable"]) * valid_B)):
        rewards_B = kto.beta * found["ratios"]
        metrics |= {f"reward_{name}_sum": (rewards_B * chosen_B).sum(), f"{name}_count": chosen_B.sum()}
    return metrics


@functools.partial(jax.jit, static_argnames=("tuning", "kto"))
def evaluate(trainable: Any, frozen: Any, batch: Batch, *, tuning: Tuning, kto: KtoConfig) -> tuple[jax.Array, jax.Array]:
    """(sum of losses, number of examples) of one batch, without training. The batch has its own z
    under every preset."""
    policy_B, *policy_kl = logprobs(*tuning.assemble(trainable, frozen), batch, tuning.config, tuning.scoring)
    count, z = batch["valid"].sum(), jnp.zeros(())
    if policy_kl:
        z = reference_point(((policy_kl[0] - batch["reference_kl"]) * batch["valid"]).sum(), count)
    losses_B = example_losses(policy_B - batch["reference"], z, batch["desirable"], **_weights(kto))
    return (losses_B * batch["rows"]["weights"].max(axis=1)).sum(), count


def _weights(kto: KtoConfig) -> dict[str, float]:
    return {name: getattr(kto, name) for name in ("beta", "desirable_weight", "undesirable_weight")}
