"""Mismatched pairs for KTO's reference point: which completion is paired with which prompt. Pairs
are computed on the host, as example indices, from prompt identity."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from emjax.errors import UserError

# LLaMA-Factory rotates completions within groups of this many rows (preprocessing_batch_size).
LLAMA_FACTORY_MAP = 1000


@dataclasses.dataclass(frozen=True)
class Plan:
    """The training order and the pairs: the example indices of each block, those of its rows'
    partners, and the block of each step."""

    blocks: list[np.ndarray]
    partners: list[np.ndarray] | None  # None: the loss has no reference point
    order: list[int]


def plan(
    labels: Sequence[bool | None],
    prompt_ids: Sequence[str],
    *,
    preset: str,
    order: str,
    batch_size: int,
    microbatches: int,
    epochs: int,
    seed: int,
    paired: bool = True,
) -> Plan:
    """The steps of a run under `preset`. A library's per-device batch corresponds to a microbatch
    here, over all devices together.

    emjax: blocks of even size; a partner has another prompt and may be anywhere in the batch;
    blocks come in a new order each epoch. trl (1.16): rows in order; the partner is the previous
    row of the microbatch; the same order each epoch; a last row alone in its microbatch is its own
    partner. halos (2025-09): rows are shuffled each epoch; the partner is the next row of the
    microbatch; rows that do not fill a microbatch are dropped from that epoch, and microbatches
    that do not fill the last step are dropped from the run. llama_factory (2026-08): the partner is
    the previous row among 1,000 rows, independent of batches; rows are shuffled each epoch.
    """
    rows = arranged(labels, order, seed)
    if preset == "emjax":
        made = blocks(rows, batch_size, paired=paired)
        return Plan(made, pairs(made, prompt_ids, seed) if paired else None, epochs_of(made, epochs, seed))
    size = batch_size // microbatches
    if paired and size < 2 and preset != "llama_factory":
        raise UserError(
            f"config.kto.preset={preset!r} pairs rows within a microbatch, but config.train.batch_size ({batch_size}) / "
            f"config.train.microbatches ({microbatches}) leaves {size} a microbatch. Use at least two rows per microbatch."
        )
    again = [np.random.default_rng((seed, 2, epoch)).permutation(rows) for epoch in range(epochs)]
    if preset == "trl":
        made = _cut(rows, batch_size)
        partners = [_rotated(block, size, 1) for block in made]
    elif preset == "halos":
        stream = np.concatenate([epoch[: len(rows) // size * size] for epoch in again])
        made = _cut(stream[: len(stream) // batch_size * batch_size], batch_size)
        partners = [_rotated(block, size, -1) for block in made]
    else:
        partner = np.empty_like(rows)
        partner[rows] = _rotated(rows, LLAMA_FACTORY_MAP, 1)
        made = [block for epoch in again for block in _cut(epoch, batch_size)]
        partners = [partner[block] for block in made]
    if not made:
        raise UserError(
            f"{len(rows)} examples do not fill one step of {batch_size}, and config.kto.preset={preset!r} drops rows that "
            "do not fill a step. Add data, or lower config.train.batch_size."
        )
    steps = list(range(len(made)))
    return Plan(made, partners if paired else None, steps * epochs if preset == "trl" else steps)


def facts(plan: Plan, prompt_ids: Sequence[str]) -> dict[str, int]:
    """Counts over all blocks: all pairs, pairs of a row with itself, and pairs within one prompt
    (these include the self-pairs)."""
    if plan.partners is None:
        return {"kl_pairs": 0}
    both = list(zip(np.concatenate(plan.blocks), np.concatenate(plan.partners), strict=True))
    return {
        "kl_pairs": len(both),
        "kl_self_pairs": sum(int(i == j) for i, j in both),
        "kl_same_prompt_pairs": sum(prompt_ids[i] == prompt_ids[j] for i, j in both),
    }


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _rotated(rows: np.ndarray, size: int, shift: int) -> np.ndarray:
    """Rotates each run of `size` rows by `shift`: +1 replaces each row by the previous one."""
    return np.concatenate([np.roll(part, shift) for part in _cut(rows, size)])


def arranged(labels: Sequence[bool | None], order: str, seed: int) -> np.ndarray:
    """Example indices before they are cut into blocks. order: "shuffled"; "stratified" (shuffled,
    then each label spread evenly, so that any run of rows has about the overall share of each
    label); "given" (unchanged).
    """
    count = len(labels)
    if order == "given":
        return np.arange(count)
    rows = np.random.default_rng((seed, 0)).permutation(count)
    if order == "stratified":
        places = np.empty(count)
        for label in set(labels):
            at = np.flatnonzero([labels[i] == label for i in rows])
            places[at] = (np.arange(len(at)) + 0.5) / len(at)
        rows = rows[np.argsort(places, kind="stable")]
    return rows


def blocks(rows: np.ndarray, batch_size: int, *, paired: bool = True) -> list[np.ndarray]:
    """Rows cut into batches whose sizes differ by at most one.

    Even sizes avoid a remainder of one row, which would have to be its own partner. Only a batch
    size of 2 with an odd count would leave one.
    """
    count = len(rows)
    if paired and (count < 2 or batch_size < 2 or (batch_size == 2 and count % 2)):
        raise UserError(
            f"KTO needs at least two examples in a batch (there are {count} examples, config.train.batch_size is "
            f"{batch_size}), because the reference point of an example needs another example. Add data or raise the batch size."
        )
    return list(np.array_split(rows, -(-count // batch_size)))


def derange(prompt_ids: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """For each row of a batch, the index of a row with another prompt, whose completion it borrows.

    The result is a permutation if one exists (no prompt fills more than half of the batch).
    Otherwise rows of the most frequent prompt share partners. Raises UserError if all prompts are
    equal.
    """
    n = len(prompt_ids)
    counts = Counter(prompt_ids)
    if len(counts) < 2:
        raise UserError(
            f"All {n} examples of a KTO batch have the same prompt, so no mismatched pair exists. Raise "
            "config.train.batch_size, or train on more than one prompt."
        )
    # Sort rows into runs of equal prompts and rotate by the longest run: no row can land in its own
    # run.
    groups = sorted(rng.permutation(sorted(counts)), key=lambda p: -counts[p])
    rank = {prompt: i for i, prompt in enumerate(groups)}
    order = sorted(rng.permutation(n), key=lambda i: rank[prompt_ids[i]])
    shift = counts[groups[0]]
    partner = np.empty(n, int)
    for at, i in enumerate(order):
        j = order[(at + shift) % n]
        # This happens only if one prompt fills more than half of the batch.
        if prompt_ids[j] == prompt_ids[i]:
            j = rng.choice([k for k in range(n) if prompt_ids[k] != prompt_ids[i]])
        partner[i] = j
    return partner


def pairs(blocks_: Sequence[np.ndarray], prompt_ids: Sequence[str], seed: int) -> list[np.ndarray]:
    """The partners of each block's rows, as example indices. They are fixed for the run, so
    reference log-probs can be cached."""
    result = []
    for number, block in enumerate(blocks_):
        rng = np.random.default_rng((seed, 1, number))
        result.append(block[derange([prompt_ids[i] for i in block], rng)])
    return result


def epochs_of(blocks_: Sequence[np.ndarray], count: int, seed: int) -> list[int]:
    """The block of every step: each epoch uses all blocks, in a new order."""
    orders = [np.random.default_rng((seed, 2, epoch)).permutation(len(blocks_)) for epoch in range(count)]
    return [int(b) for order in orders for b in order]
