"""Batches as a pure function of the step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emjax.data import batches
from emjax.data.batches import Example
from emjax.errors import UserError

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=200)


@given(lengths, st.integers(1, 9), st.integers(1, 3), st.integers(0, 9), st.booleans())
@settings(deadline=None)
def test_an_epoch_is_every_example_once(sizes, batch_size, epochs, seed, group):
    steps = batches.plan(sizes, batch_size, epochs, seed, group=group)
    per_epoch = -(-len(sizes) // batch_size)
    assert len(steps) == epochs * per_epoch
    for epoch in range(epochs):
        part = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(np.concatenate(part)) == list(range(len(sizes)))
        assert sum(len(s) < batch_size for s in part) <= 1
    again = batches.plan(sizes, batch_size, epochs, seed, group=group)
    assert all(np.array_equal(a, b) for a, b in zip(steps, again, strict=True))


def test_order_depends_on_seed_and_epoch():
    first, second = batches.plan([1] * 50, 50, 2, 0, group=False)
    (other,) = batches.plan([1] * 50, 50, 1, 1, group=False)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_grouping_puts_like_lengths_together():
    sizes = np.random.default_rng(0).integers(1, 100, 640)

    def padding(group):
        return sum(sizes[s].max() * len(s) - sizes[s].sum() for s in batches.plan(sizes, 10, 1, 0, group=group))

    assert padding(True) < padding(False) / 5


BUCKETS = (4, 8, 32)


def test_rows():
    made = batches.rows([((5, 6, 7), (0.0, 1.0, 0.5)), ((8, 9), (1.0, 2.0)), ((4,), (0.0,))], 4, BUCKETS, "it")
    assert made["tokens"].tolist() == [[5, 6, 7, 0], [8, 9, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]]
    # The first token of a row has nothing before it: it is never scored.
    assert made["positions"].tolist() == [[1, 2], [1, 1], [1, 1], [1, 1]]
    assert made["weights"].tolist() == [[1.0, 0.5], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert [made[k].dtype for k in ("tokens", "positions", "weights")] == [np.int32, np.int32, np.float32]


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=32), min_size=1, max_size=5))
@settings(deadline=None)
def test_rows_hold_exactly_the_weighted_tokens(weights):
    examples = [(tuple(range(1, len(w) + 1)), tuple(w)) for w in weights]
    made = batches.rows(examples, 6, BUCKETS, "it")
    longest = max(map(len, weights))
    assert made["tokens"].shape == (6, min(b for b in BUCKETS if b >= longest))
    P = made["positions"].shape[1]
    assert made["tokens"].shape[1] >= P
    assert P & (P - 1) == 0
    for i, (ids, w) in enumerate(examples):
        scored = {(t, x) for t, x in enumerate(w) if t and x}
        found = {(t, x) for t, x in zip(made["positions"][i].tolist(), made["weights"][i].tolist(), strict=True) if x}
        assert found == scored
        assert made["tokens"][i].tolist() == [*ids, *[0] * (made["tokens"].shape[1] - len(ids))]
    assert not made["weights"][len(weights) :].any()


def test_a_row_beyond_the_largest_bucket():
    assert [batches.bucket(n, BUCKETS, "it") for n in (1, 4, 5, 32)] == [4, 4, 8, 32]
    with pytest.raises(UserError, match=r"example 'x'.*33.*config\.train\.buckets.*32"):
        batches.bucket(33, BUCKETS, "example 'x'")


EXAMPLES = [Example(str(i), tuple(range(1, 2 + i % 30)), (1.0,) * (1 + i % 30)) for i in range(23)]


def test_serving_from_a_step_on_is_the_tail():
    pytest.importorskip("grain")
    steps = batches.plan([len(e.ids) for e in EXAMPLES], 4, 2, 0, group=False)
    build = batches.sft(EXAMPLES, steps, 4, BUCKETS)
    whole = list(batches.serve(build, len(steps), 0))
    assert len(whole) == 12
    for start in (0, 1, 5, 11, 12):
        tail = list(batches.serve(build, len(steps), start))
        assert len(tail) == len(whole) - start
        for a, b in zip(whole[start:], tail, strict=True):
            assert a.keys() == b.keys()
            assert all(np.array_equal(a[k], b[k]) for k in a)
    assert whole[5]["tokens"].shape[0] == 4  # the short last batch of an epoch is padded
