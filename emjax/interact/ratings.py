"""What a user thinks of an answer, as a number: read from token probabilities or from text, then summed up and put on a scale.

A reading that fails is a state and never a number.
"""

import dataclasses
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from emjax.api import Reply
from emjax.errors import UserError

AGGREGATES = {
    "sum": sum,
    "mean": lambda values: sum(values) / len(values),
    "last": lambda values: values[-1],
}
NORMALISE = {
    "none": None,
    "user_type": lambda t: t["user_type"],
    "scenario": lambda t: t["scenario"],
}


@dataclasses.dataclass(frozen=True)
class Rating:
    """A user's satisfaction with one assistant turn; `value` is None unless `state` is "ok"."""

    value: float | None
    state: str  # ok | unparsed | a failure of `emjax.api` | too_long
    raw: str = ""
    mass: float | None = None  # probability of the scale's numbers before they were normalised
    error: str | None = None  # what an endpoint said where it failed


@dataclasses.dataclass(frozen=True)
class Scale:
    """Whole numbers from low to high, as config.interact.<field> gives them."""

    low: int
    high: int
    field: str = "rating"

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise UserError(f"config.interact.{self.field}: low is {self.low} and high {self.high}; 0 <= low < high is needed.")

    @property
    def values(self) -> range:
        return range(self.low, self.high + 1)


def expected(probabilities: Mapping[int, float], least: float) -> Rating:
    """Sum of value x probability over the scale, after normalising; "unparsed" where the scale has less mass than `least`.

    Williams et al. give 0 where there is no mass; that would rank a failure below every answer.
    """
    mass = sum(probabilities.values())
    if mass < least or mass <= 0:
        return Rating(None, "unparsed", mass=mass)
    return Rating(sum(value * p for value, p in probabilities.items()) / mass, "ok", mass=mass)


def from_logprobs(reply: Reply, scale: Scale, least: float) -> Rating:
    """The expectation over an endpoint's alternatives to the first token of its answer.

    Tokens are lower-cased and stripped, and the same ones merged. That an answer goes on until it is cut does not matter. An
    endpoint that returns no log-probs gives "unparsed". Raises UserError where it spells a number of the scale in several
    tokens: its first token says nothing of 10 apart from 1.
    """
    if reply.state not in ("ok", "length"):
        return Rating(None, reply.state, reply.text, error=reply.error)
    if not reply.logprobs:
        return Rating(None, "unparsed", reply.text)
    first, second = [*(token["token"] for token in reply.logprobs[:2]), "", ""][:2]
    if first.strip().isdecimal() and second.isdecimal() and int(first + second) in scale.values:
        raise UserError(
            f"config.interact.{scale.field}: the endpoint spells {first.strip() + second} in several tokens, so the scale "
            f"{scale.low} to {scale.high} has no probabilities to read. Choose another scale (such as 0 to 9), or readout "
            "'text'."
        )
    found: dict[int, float] = defaultdict(float)
    alternatives = reply.logprobs[0].get("top_logprobs") or [reply.logprobs[0]]
    for token in alternatives:
        text = token["token"].strip().lower()
        if text.isdecimal() and str(int(text)) == text and int(text) in scale.values:
            found[int(text)] += math.exp(token["logprob"])
    return dataclasses.replace(expected(found, least), raw=reply.text)


_MARKED = re.compile(r"(?:rating|score|satisfaction)[^\w-]{0,6}(?:is[^\w-]{0,3})?(-?\d+(?:\.\d+)?)", re.IGNORECASE)
_ALONE = re.compile(r"[^\w-]{0,6}(-?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*(\d+))?\W{0,6}")


def from_text(reply: Reply, scale: Scale) -> Rating:
    """The number that the text gives: the text itself where it is nothing else ("8", "8/10", "**8**"), else what follows the
    last "rating", "score" or "satisfaction". A number off the scale, or "8/5", is "unparsed"."""
    if reply.state != "ok":
        return Rating(None, reply.state, reply.text, error=reply.error)
    text = reply.text.strip()
    if alone := _ALONE.fullmatch(text):
        number, of = float(alone[1]), alone[2]
        good = of is None or int(of) == scale.high
    elif marked := _MARKED.findall(text):
        number, good = float(marked[-1]), True
    else:
        return Rating(None, "unparsed", text)
    if not good or not scale.low <= number <= scale.high:
        return Rating(None, "unparsed", text)
    return Rating(number, "ok", text)


def score(turns: Sequence[dict[str, Any]], aggregate: str) -> float | None:
    """Sum (the paper's choice), mean or last of the turn ratings; None where any turn has no rating in state "ok".

    A conversation with an unparsed rating is left unscored: filling it in would rank it by a guess.
    """
    if aggregate not in AGGREGATES:
        raise UserError(f"config.interact.aggregate is {aggregate!r}; choose {', '.join(AGGREGATES)}.")
    if not turns or any(turn["rating_state"] != "ok" or turn["rating"] is None for turn in turns):
        return None
    return float(AGGREGATES[aggregate]([turn["rating"] for turn in turns]))


def normalised(pool: Sequence[dict[str, Any]], how: str) -> list[float]:
    """The scores of scored conversations, each less the mean of its group and over its standard deviation; "none": as they are.

    It takes out that one type of user, or the users of one scenario, rate higher or wider than others. A group that rates
    everything alike gets zeros.
    """
    if how not in NORMALISE:
        raise UserError(f"config.select.normalise is {how!r}; choose {', '.join(NORMALISE)}.")
    group = NORMALISE[how]
    if group is None:
        return [t["score"] for t in pool]
    scores: dict[str, list[float]] = defaultdict(list)
    for t in pool:
        scores[group(t)].append(t["score"])
    means = {name: statistics.fmean(values) for name, values in scores.items()}
    spreads = {name: statistics.pstdev(values) for name, values in scores.items()}
    return [(t["score"] - means[group(t)]) / spreads[group(t)] if spreads[group(t)] > 0 else 0.0 for t in pool]
