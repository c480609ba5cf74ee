"""Batches as a pure function of the step: the host plans a table of example indices, and grain
serves it.

Rows are right-padded to one of a few static lengths. A batch is {"tokens": [B, T], "positions": [B,
P], "weights": [B, P]}: `positions` are the indices of scored tokens, `weights` their weights (0 for
padding).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from emjax.errors import UserError

Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Example:
    """One training row. KTO pairs rows with different `prompt_id`; `start` is the index of the
    completion's first token."""

    id: str
    ids: tuple[int, ...]
    weights: tuple[float, ...]
    start: int = 0
    prompt_id: str = ""
    label: bool | None = None


def bucket(length: int, buckets: Sequence[int], what: str) -> int:
    """The smallest bucket that fits `length` tokens."""
    for size in buckets:
        if length <= size:
            return size
    raise UserError(
        f"{what} has {length} tokens, more than the largest length in config.train.buckets ({buckets[-1]}). Raise it."
    )


def rows(examples: Sequence[tuple[Sequence[int], Sequence[float]]], size: int, buckets: Sequence[int], what: str) -> Rows:
    """Pads (ids, weights) pairs to a batch of `size` rows; rows beyond the examples are empty."""
    T = bucket(max(len(ids) for ids, _ in examples), buckets, what)
    scored = [[t for t, w in enumerate(weights) if w and t] for _, weights in examples]
    most = max(1, *(len(s) for s in scored))
    # Powers of two keep the number of compiled shapes small.
    P = min(T, 1 << (most - 1).bit_length())
    tokens_BxT = np.zeros((size, T), np.int32)
    positions_BxP = np.ones((size, P), np.int32)
    weights_BxP = np.zeros((size, P), np.float32)
    for i, ((ids, weights), at) in enumerate(zip(examples, scored, strict=True)):
        tokens_BxT[i, : len(ids)] = ids
        positions_BxP[i, : len(at)] = at
        weights_BxP[i, : len(at)] = [weights[t] for t in at]
    return {"tokens": tokens_BxT, "positions": positions_BxP, "weights": weights_BxP}


def plan(lengths: Sequence[int], batch_size: int, epochs: int, seed: int, *, group: bool) -> list[np.ndarray]:
    """Example indices of every step, in a new order each epoch. With `group`, rows of similar
    length share a batch.

    One batch per epoch may be short: the last one or, with `group`, the batch that holds the last
    rows, at any position.
    """
    size_of = np.asarray(lengths)
    steps: list[np.ndarray] = []
    for epoch in range(epochs):
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(size_of))
        if group:
            window = 64 * batch_size
            parts = [order[i : i + window] for i in range(0, len(order), window)]
            order = np.concatenate([part[np.argsort(size_of[part], kind="stable")] for part in parts])
        blocks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        steps += [blocks[i] for i in rng.permutation(len(blocks))] if group else blocks
    return steps


class _Table:
    """A random-access source for grain: step -> batch."""

    def __init__(self, build: Callable[[int], Any], steps: int):
        self._build, self._steps = build, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Any:
        return self._build(step)


def serve(build: Callable[[int], Any], steps: int, start: int) -> Iterator[Any]:
    """Batches of steps start..steps-1, prefetched in threads. The step is the only state."""
    import grain  # imported here so that the training step and the benchmarks run without it

    if start >= steps:
        return iter(())
    dataset = grain.MapDataset.source(_Table(build, steps))[start:]
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def sft(
    examples: Sequence[Example], steps: Sequence[np.ndarray], batch_size: int, buckets: Sequence[int]
) -> Callable[[int], Rows]:
    """build(step) for supervised fine-tuning."""

    def build(step: int) -> Rows:
        chosen = [examples[i] for i in steps[step]]
        return rows([(e.ids, e.weights) for e in chosen], batch_size, buckets, f"the batch of step {step}")

    return build
