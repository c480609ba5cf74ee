"""A small version of `python -m benchmarks.intervals`: 300 experiments of each kind of interval, and of each verdict."""

import numpy as np
import pytest

from benchmarks import intervals

LAB = intervals.Lab(np.random.default_rng(1), base=6.2, seed_sd=2.98, pair=1.15)
QUICK = [case for case in intervals.cases(LAB) if "bases" not in case[1] and "5 seeds" not in case[1]]


JUDGED = [case for case in QUICK if case[0] != "aside"]


@pytest.mark.parametrize(("kind", "name", "one"), JUDGED, ids=[f"{kind}: {name}" for kind, name, _ in JUDGED])
def test_an_interval_covers_and_a_verdict_errs_seldom(kind, name, one):
    share = sum(one() for _ in range(300)) / 3
    # Binomial: at 93 % and 6.5 % the standard error of 300 experiments is 1.5 points.
    assert share >= 89.5 if kind == "covers" else share <= 10


def test_the_interval_over_questions_alone_does_not_cover_other_seeds():
    (one,) = [one for kind, name, one in QUICK if kind == "aside" and "not claimed" in name]
    assert sum(one() for _ in range(300)) / 3 < 89.5
