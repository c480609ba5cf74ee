"""Ratings: a user's opinion of an answer as a number, and the scores of conversations.

A rating is read from token probabilities or from text. A rating that cannot be read is a state,
never a number.
"""

import dataclasses
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from emjax.api import Reply
from emjax.errors import UserError

AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {  # of config.names.AGGREGATES
    "sum": sum,
    "mean": lambda values: sum(values) / len(values),
    "last": lambda values: values[-1],
}


@dataclasses.dataclass(frozen=True)
class Rating:
    """A user's satisfaction with one assistant turn; `value` is None unless `state` is "ok"."""

    value: float | None
    state: str  # ok | unparsed | too_long | a failure of `emjax.api`
    raw: str = ""
    mass: float | None = None  # probability of the scale's numbers, before normalisation
    error: str | None = None  # the endpoint's message, if it failed


@dataclasses.dataclass(frozen=True)
class Scale:
    """The whole numbers from low to high, of config.interact.<field>: "rating" or "veto"."""

    low: int
    high: int
    field: str = "rating"

    @property
    def values(self) -> range:
        return range(self.low, self.high + 1)


def expected(probabilities: Mapping[int, float], least: float) -> Rating:
    """Sum of value x probability over the scale, normalised; below the mass `least`, "unparsed".

    Williams et al. give 0 if there is no mass; that would rank a failure below every answer.
    """
    mass = sum(probabilities.values())
    if mass < least or mass <= 0:
        return Rating(None, "unparsed", mass=mass)
    return Rating(sum(value * p for value, p in probabilities.items()) / mass, "ok", mass=mass)


def from_logprobs(reply: Reply, scale: Scale, least: float) -> Rating:
    """The expectation over an endpoint's alternatives to the first token of its answer.

    Tokens are lower-cased and stripped, and equal ones are merged. The answer may be cut after the
    first token. The result is "unparsed" if the endpoint returns no log-probs. Raises UserError if
    the endpoint spells a number of the scale in several tokens, because the first token of 10 is
    the same as that of 1.
    """
    if reply.state not in ("ok", "length"):
        return Rating(None, reply.state, reply.text, error=reply.error)
    if not reply.logprobs:
        return Rating(None, "unparsed", reply.text)
    first, second = [*(token["token"] for token in reply.logprobs[:2]), "", ""][:2]
    if first.strip().isdecimal() and second.isdecimal() and int(first + second) in scale.values:
        raise UserError(
            f"config.interact.{scale.field}: the endpoint spells {first.strip() + second} in several tokens, so the "
            f"probabilities of the scale {scale.low} to {scale.high} cannot be read. Choose another scale (such as 0 to 9), or "
            "set config.interact.rating.readout to 'text'."
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
    """The number that the text gives.

    A text that is only a number ("8", "8/10", "**8**") gives that number. Otherwise the number
    after the last "rating", "score" or "satisfaction" counts. A number off the scale, or with
    another denominator ("8/5"), is "unparsed".
    """
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
    """The aggregate of the turn ratings; None if any turn has no rating in state "ok".

    aggregate: one of config.names.AGGREGATES; the paper's choice is "sum". A conversation with an
    unparsed rating stays unscored, because a filled-in rating would rank it by a guess.
    """
    if not turns or any(turn["rating_state"] != "ok" or turn["rating"] is None for turn in turns):
        return None
    return float(AGGREGATES[aggregate]([turn["rating"] for turn in turns]))


def normalised(pool: Sequence[dict[str, Any]], how: str) -> list[float]:
    """The scores of scored conversations, in standard deviations from the mean of their group.

    how: "user_type" or "scenario", the field that makes the groups, or "none" for the raw scores.
    Normalising removes differences in mean and spread between groups. The scores of a group without
    spread become 0.
    """
    if how == "none":
        return [t["score"] for t in pool]
    scores: dict[str, list[float]] = defaultdict(list)
    for t in pool:
        scores[t[how]].append(t["score"])
    means = {name: statistics.fmean(values) for name, values in scores.items()}
    spreads = {name: statistics.pstdev(values) for name, values in scores.items()}
    return [(t["score"] - means[t[how]]) / spreads[t[how]] if spreads[t[how]] > 0 else 0.0 for t in pool]
