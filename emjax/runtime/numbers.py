"""Numbers that come from a file or an endpoint are checked here before anything computes with
them."""

import math
from typing import Any

from emjax.errors import UserError


def integer(value: Any, where: str, *, low: float = -math.inf, high: float = math.inf) -> int:
    """`value` as an int. A float that is a whole number is accepted, a bool is not.

    where: the field, and its file and line if it has any; the message begins with it.
    Raises UserError unless the value is a whole number from `low` to `high`, both included.
    """
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (isinstance(value, int) or whole) or not low <= value <= high:
        raise UserError(f"{where} is {_shown(value)}; it must be a whole number{_range(low, high)}.")
    return int(value)


def finite(value: Any, where: str, *, low: float = -math.inf, high: float = math.inf, above: float = -math.inf) -> float:
    """`value` as a float.

    where: as for `integer`. Raises UserError unless the value is a finite number from `low` to
    `high`, both included, and greater than `above`.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if not number or not low <= value <= high or value <= above:
        raise UserError(f"{where} is {_shown(value)}; it must be a finite number{_range(low, high, above)}.")
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the largest float
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _range(low: float, high: float, above: float = -math.inf) -> str:
    ends = [
        *([f" above {above:g}"] if above > -math.inf else []),
        *([f" of at least {low:g}"] if low > -math.inf else []),
        *([f" of at most {high:g}"] if high < math.inf else []),
    ]
    return " and".join(ends)
