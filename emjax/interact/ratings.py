"""From turn ratings to the score of a conversation."""

from collections.abc import Sequence
from typing import Any

from emjax.errors import UserError

AGGREGATES = {
    "sum": sum,
    "mean": lambda values: sum(values) / len(values),
    "last": lambda values: values[-1],
}


def score(turns: Sequence[dict[str, Any]], aggregate: str) -> float | None:
    """Sum (the paper's choice), mean or last of the turn ratings; None where any turn has no rating in state "ok".

    A conversation with an unparsed rating is left unscored: filling it in would rank it by a guess.
    """
    if aggregate not in AGGREGATES:
        raise UserError(f"config.interact.aggregate is {aggregate!r}; choose {', '.join(AGGREGATES)}.")
    if not turns or any(turn["rating_state"] != "ok" or turn["rating"] is None for turn in turns):
        return None
    return float(AGGREGATES[aggregate]([turn["rating"] for turn in turns]))
