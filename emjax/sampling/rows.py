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


# New (tokens, logprobs, top_logprobs) of a row that goes on; what its last window brings is in the
# Result alone.
OnTokens = Callable[[tuple[int, ...], tuple[float, ...], tuple[tuple[tuple[int, float], ...], ...]], None]


@dataclasses.dataclass(eq=False)
class Row:
    """A request on its way, or tokens to be scored.

    Of tokens to be scored nothing is drawn; their `request` is None.
    """

    lane: Lane
    tokens: np.ndarray  # int32, to be prefilled
    # Takes the Result (of a score, this row), or the exception that ended it.
    deliver: Callable[[Any], None]
    request: Request | None = None
    limit: int = 0  # tokens to draw at most
    read_from: int = 0  # of a score: the hidden states from here on are read
    targets: np.ndarray | None = None  # of a score: int32, the token after each of `tokens`
    top: int = 0  # of a score: alternatives at each position
    ids: tuple[int, ...] = ()  # of a score: whose probabilities after the last token are asked for
    # On the way:
    names: list[bytes] = dataclasses.field(default_factory=list)  # of its blocks
    order: int = -1
    round: int = -1  # in which it got its slot
    next: int = 0  # the block to be prefilled
    ahead: int = 0  # tokens drawn at most, windows in flight included
    cancelled: bool = False  # by its caller, at any time
    done: bool = False  # delivered
    checked: int = 0  # tokens in which no stop string ends
    on_tokens: OnTokens | None = None
    told: int = 0  # tokens that on_tokens was given
    drawn: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    alternatives: list[tuple[tuple[int, float], ...]] = dataclasses.field(default_factory=list)
    probs: list[float] = dataclasses.field(default_factory=list)
