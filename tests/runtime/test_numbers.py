"""The one check of numbers that come from files and endpoints."""

import math

import pytest

from emjax.errors import UserError
from emjax.runtime.numbers import finite, integer


@pytest.mark.parametrize(("value", "wanted"), [(3, 3), (3.0, 3), (0, 0), (2**40, 2**40)])
def test_whole_numbers_are_taken(value, wanted):
    taken = integer(value, "r", low=0)
    assert taken == wanted
    assert type(taken) is int


@pytest.mark.parametrize("value", [1.5, True, "3", None, [1], -1, math.nan, math.inf, 11])
def test_anything_else_is_no_whole_number(value):
    with pytest.raises(UserError, match=r"^config.json: r is .*; it must be a whole number of at least 0 and of at most 10\.$"):
        integer(value, "config.json: r", low=0, high=10)


@pytest.mark.parametrize("value", [0.5, 1, 1e300])
def test_finite_numbers_are_taken(value):
    taken = finite(value, "eps", above=0)
    assert taken == value
    assert type(taken) is float


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf, False, "1", None, {}, 10**400])
def test_anything_else_is_no_finite_number(value):
    with pytest.raises(UserError, match=r"^eps is .*; it must be a finite number above 0 and of at most 2\.$"):
        finite(value, "eps", above=0, high=2)
