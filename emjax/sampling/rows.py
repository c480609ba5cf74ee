"""The rows that the engine works on, and the lanes in which they wait."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from emjax.models.lora import Adapter
from emjax.sampling.requests import Request


class Lane:
    """One adapter's weights and the rows that wait for them. One lane runs at a time."""

    def __init__(self, name: str | None, number: int, adapter: tuple[Adapter, ...] | None):
        self.name = name
        self.number = number
        self.adapter = adapter
        self.waiting: collections.deque[Row] = collections.deque()


# Receives the new (tokens, logprobs, top_logprobs) of a row that continues. Those of its last
# window are in the Result only.
OnTokens = Callable[[tuple[int, ...], tuple[float, ...], tuple[tuple[tuple[int, float], ...], ...]], None]


@dataclasses.dataclass(eq=False)
class Row:
    """A request in progress, or tokens to score.

    A score row draws nothing, and its `request` is None.
    """

    lane: Lane
    tokens: np.ndarray  # int32, to prefill
    # Receives the Result (for a score, this row) or the exception that ended the row.
    deliver: Callable[[Any], None]
    request: Request | None = None
    limit: int = 0  # maximum tokens to draw
    read_from: int = 0  # score: hidden states from this position on are read
    targets: np.ndarray | None = None  # score: int32, the token after each of `tokens`
    top: int = 0  # score: alternatives at each position
    ids: tuple[int, ...] = ()  # score: ids whose probabilities after the last token are requested
    # Progress:
    names: list[bytes] = dataclasses.field(default_factory=list)  # names of its blocks
    order: int = -1
    round: int = -1  # the round in which it got its slot
    next: int = 0  # the next block to prefill
    ahead: int = 0  # maximum tokens drawn, windows in flight included
    cancelled: bool = False  # by its caller, at any time
    done: bool = False  # delivered
    checked: int = 0  # leading tokens that complete no stop string
    on_tokens: OnTokens | None = None
    told: int = 0  # tokens passed to on_tokens
    drawn: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    alternatives: list[tuple[tuple[int, float], ...]] = dataclasses.field(default_factory=list)
    probs: list[float] = dataclasses.field(default_factory=list)
