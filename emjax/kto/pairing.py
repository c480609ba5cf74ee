"""Which completion stands in for which in KTO's reference point: made on the host, by index, from prompt identity."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from emjax.errors import UserError


def blocks(count: int, batch_size: int, seed: int) -> list[np.ndarray]:
    """Example indices of each batch: shuffled once, so labels mix, then cut; sizes differ by at most one.

    Even sizes leave no remainder of one row, which would have to be its own partner; only pairs of an odd count would.
    """
    if count < 2 or batch_size < 2 or (batch_size == 2 and count % 2):
        raise UserError(
            f"KTO needs at least two examples in a batch (there are {count} examples, config.train.batch_size is "
            f"{batch_size}), because each one's reference point comes from another. Add data or raise the batch size."
        )
    order = np.random.default_rng((seed, 0)).permutation(count)
    return list(np.array_split(order, -(-count // batch_size)))


def derange(prompt_ids: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """For each row of a batch the index of a row with another prompt, whose completion it borrows.

    A permutation wherever one exists (no prompt fills more than half of the batch); otherwise rows of the crowded prompt
    share partners. Raises UserError where all prompts are equal.
    """
    n = len(prompt_ids)
    counts = Counter(prompt_ids)
    if len(counts) < 2:
        raise UserError(
            f"All {n} examples of a KTO batch have the same prompt, so no mismatched pair exists. Raise "
            "config.train.batch_size, or train on more than one prompt."
        )
    # Rows in runs of equal prompts, rotated by the longest run: no row can land in its own run.
    groups = sorted(rng.permutation(sorted(counts)), key=lambda p: -counts[p])
    rank = {prompt: i for i, prompt in enumerate(groups)}
    order = sorted(rng.permutation(n), key=lambda i: rank[prompt_ids[i]])
    shift = counts[groups[0]]
    partner = np.empty(n, int)
    for at, i in enumerate(order):
        j = order[(at + shift) % n]
        if prompt_ids[j] == prompt_ids[i]:  # only where one prompt fills more than half of the batch
            j = rng.choice([k for k in range(n) if prompt_ids[k] != prompt_ids[i]])
        partner[i] = j
    return partner


def pairs(blocks_: Sequence[np.ndarray], prompt_ids: Sequence[str], seed: int) -> list[np.ndarray]:
    """For each block the partner of each of its rows, as example indices. Fixed for the run, so a reference can be cached."""
    result = []
    for number, block in enumerate(blocks_):
        rng = np.random.default_rng((seed, 1, number))
        result.append(block[derange([prompt_ids[i] for i in block], rng)])
    return result


def epochs(blocks_: Sequence[np.ndarray], count: int, seed: int) -> list[int]:
    """The block of every step: all blocks in each epoch, in a new order each time."""
    orders = [np.random.default_rng((seed, 2, epoch)).permutation(len(blocks_)) for epoch in range(count)]
    return [int(b) for order in orders for b in order]
