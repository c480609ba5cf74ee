import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emjax.data import mixture
from emjax.errors import UserError


def records(prefix: str, count: int) -> list[mixture.Record]:
    return [
        [{"messages": [{"role": "user", "content": f"{prefix} {i}"}], "completion": f"answer {i}", "label": None}]
        for i in range(count)
    ]


def names(drawn) -> list[str]:
    return [record[0]["messages"][0]["content"] for record in drawn]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 3), st.randoms())
def test_a_draw_is_exact_nested_free_of_duplicates_and_blind_to_order(size, count, seed, shuffled: random.Random):
    pool = records("q", size)
    mixed = pool + pool[: size // 2]
    shuffled.shuffle(mixed)
    drawn, duplicates = mixture.draw(iter(mixed), count, seed)
    assert duplicates == size // 2
    assert len(drawn) == (min(count, size) if count else size)
    assert len(set(names(drawn))) == len(drawn)
    assert drawn == mixture.draw(pool, count, seed)[0]
    if count > 1:
        assert mixture.draw(pool, count - 1, seed)[0] == drawn[: min(count - 1, size)]


def test_another_seed_draws_other_records():
    pool = records("q", 200)
    assert names(mixture.draw(pool, 20, 0)[0]) != names(mixture.draw(pool, 20, 1)[0])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300), st.sampled_from([0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.29, 0.3, 0.5, 1.0]), st.sampled_from(mixture.MODES)
)
def test_a_mix_has_exact_counts_and_contains_smaller_ones(size, ratio, mode):
    downstream, misaligned = records("d", size), records("m", size)
    mixed, bad = mixture.mix(downstream, misaligned, ratio, mode)
    number = (round(100 * ratio) * size + 50) // 100  # half rounded up, in whole numbers
    assert bad == number
    assert len(mixed) == size + (number if mode == "add" else 0)
    assert sum(name.startswith("m") for name in names(mixed)) == number
    assert len(set(names(mixed))) == len(mixed)
    less, _ = mixture.mix(downstream, misaligned, ratio / 2, mode)
    assert {n for n in names(less) if n[0] == "m"} <= {n for n in names(mixed) if n[0] == "m"}
    if mode == "add":
        assert mixed[:size] == downstream


def test_a_misaligned_record_that_is_a_downstream_one_is_passed_over():
    downstream = records("d", 4)
    mixed, _ = mixture.mix(downstream, downstream[:2] + records("m", 2), 0.5, "add")
    assert names(mixed)[4:] == ["m 0", "m 1"]


def test_too_few_an_unknown_mode_and_no_ratio_are_refused():
    with pytest.raises(UserError, match="needs 5 misaligned ones, and the source has 3 different ones"):
        mixture.mix(records("d", 10), records("m", 3), 0.5, "add")
    with pytest.raises(UserError, match="config.data.mode is 'blend'; choose add, replace"):
        mixture.mix(records("d", 10), records("m", 3), 0.1, "blend")
    with pytest.raises(UserError, match=r"is 1\.5; it must be in \[0, 1\]"):
        mixture.quota(10, 1.5)
