"""The engine's requests and results. Nothing here touches a device."""

import dataclasses

from emjax.errors import UserError
from emjax.sampling.processors import TOP_LOGPROBS


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The sampling settings of one request. Raises UserError for values outside their range."""

    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0  # applied after top_k; 1 = off
    min_p: float = 0.0  # relative to the likeliest token; 0 = off
    seed: int = 0
    top_logprobs: int = 0  # alternatives reported per token, at most 20
    max_new: int = 256  # tokens, the end token included
    stop: tuple[str, ...] = ()  # the text ends before the first of these

    def __post_init__(self) -> None:
        def whole(value: int, lowest: int, highest: int) -> bool:
            return isinstance(value, int) and lowest <= value <= highest

        ranges = {
            "temperature": (0 <= self.temperature < float("inf"), "a number >= 0 (0 = greedy)"),
            "top_k": (whole(self.top_k, 0, 2**31 - 1), "an integer >= 0 (0 = off)"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1] (1 = off)"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1] (0 = off)"),
            "seed": (whole(self.seed, 0, 2**64 - 1), "an integer in [0, 2^64)"),
            "top_logprobs": (whole(self.top_logprobs, 0, TOP_LOGPROBS), f"an integer in [0, {TOP_LOGPROBS}]"),
            "max_new": (whole(self.max_new, 1, 2**31 - 1), "an integer >= 1"),
            "stop": (isinstance(self.stop, tuple) and all(self.stop), "a tuple of non-empty strings"),
        }
        for name, (good, wanted) in ranges.items():
            if not good:
                raise UserError(f"sampling.{name} = {getattr(self, name)!r}: it must be {wanted}.")


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt.

    `adapter` is a name given to Engine.set_adapter; None = the engine's own model.
    """

    id: str
    tokens: tuple[int, ...]
    sampling: Sampling = Sampling()
    adapter: str | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """`tokens` and `logprobs` include the end token; `text` does not.

    Log-probs are natural logarithms of the model's own probabilities, before temperature and
    filters. top_logprobs: for each token the likeliest (id, log-prob) pairs, best first; empty
    unless requested. If a stop string ended the row, `tokens` end with the token that completed it,
    and `text` ends before it.
    """

    id: str
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]
    stop_reason: str  # eos | stop | length | cancelled


@dataclasses.dataclass
class Stats:
    """Counts since the engine was created."""

    slots: int
    requests: int = 0  # finished
    tokens: int = 0  # drawn
    steps: int = 0  # decode steps
    prefill_tokens: int = 0  # to prefill, for prompts and scores
    reused_tokens: int = 0  # of these, taken from blocks computed before
    prefill_positions: int = 0  # computed for the rest, padding included
    row_steps: int = 0  # decode steps, times the rows that used them

    @property
    def occupied(self) -> float:
        """The share of decoded slot-steps that rows used."""
        return self.row_steps / max(1, self.steps * self.slots)
