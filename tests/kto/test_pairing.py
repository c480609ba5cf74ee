"""Which completion stands in for which."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.kto import pairing
from emjax.kto import step as kto_step

prompts = st.lists(st.integers(0, 6).map(str), min_size=2, max_size=24).filter(lambda p: len(set(p)) > 1)


@given(prompts, st.integers(0, 99))
@settings(deadline=None)
def test_derange(ids, seed):
    partner = pairing.derange(ids, np.random.default_rng(seed))
    assert all(ids[i] != ids[j] for i, j in enumerate(partner))
    assert np.array_equal(partner, pairing.derange(ids, np.random.default_rng(seed)))
    if max(Counter(ids).values()) <= len(ids) / 2:
        assert sorted(partner) == list(range(len(ids)))


def test_derange_is_random():
    ids = [str(i) for i in range(8)]
    partners = {tuple(pairing.derange(ids, np.random.default_rng(seed))) for seed in range(20)}
    assert len(partners) > 10


def test_equal_prompts_are_refused():
    with pytest.raises(UserError, match="same prompt"):
        pairing.derange(["a"] * 5, np.random.default_rng(0))


@given(st.integers(2, 300), st.integers(2, 40), st.integers(0, 9))
@settings(deadline=None)
def test_blocks(count, batch_size, seed):
    if batch_size == 2 and count % 2:
        with pytest.raises(UserError, match=r"config\.train\.batch_size"):
            pairing.blocks(pairing.arranged([None] * count, "shuffled", seed), batch_size)
        return
    blocks = pairing.blocks(pairing.arranged([None] * count, "shuffled", seed), batch_size)
    assert sorted(np.concatenate(blocks)) == list(range(count))
    sizes = [len(b) for b in blocks]
    assert 2 <= min(sizes) <= max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert all(
        np.array_equal(a, b)
        for a, b in zip(blocks, pairing.blocks(pairing.arranged([None] * count, "shuffled", seed), batch_size), strict=True)
    )


@pytest.mark.parametrize(("count", "batch_size"), [(1, 8), (0, 8), (9, 1)])
def test_too_few(count, batch_size):
    with pytest.raises(UserError, match="two examples"):
        pairing.blocks(pairing.arranged([None] * count, "shuffled", 0), batch_size)


def test_pairs_and_epochs():
    ids = [f"p{i % 7}" for i in range(30)]
    blocks = pairing.blocks(np.arange(30), 8)
    partners = pairing.pairs(blocks, ids, 3)
    for block, partner, again in zip(blocks, partners, pairing.pairs(blocks, ids, 3), strict=True):
        assert set(partner) <= set(block)
        assert np.array_equal(partner, again)
        assert all(ids[i] != ids[j] for i, j in zip(block, partner, strict=True))
    order = pairing.epochs_of(blocks, 3, 3)
    each = [order[i : i + len(blocks)] for i in range(0, len(order), len(blocks))]
    assert [sorted(e) for e in each] == [list(range(len(blocks)))] * 3
    assert len({tuple(e) for e in each}) > 1
    assert order == pairing.epochs_of(blocks, 3, 3)


def examples():
    """Prompts [10 i, ...], completions [10 i + 9, 99]: an id tells whose it is."""
    made = []
    for i in range(1, 4):
        prompt, answer = (10 * i,) * i, (10 * i + 9, 99)
        weights = (0.0,) * i + (1.0, 1.0)
        made.append(Example(f"e{i}", prompt + answer, weights, start=i, prompt_id=f"p{i}", label=i != 2))
    return made


@pytest.mark.parametrize(("partners", "mean"), [([2, 0, 1], 3100 / 3), ([1, 2, 0], 230 / 3)])
def test_detector(partners, mean):
    """Log-ratios M[i][j] of (x_i, y_j), any wrong pairing of which has another mean."""
    M = np.array([[1, 10, 100], [1000, 2, 20], [200, 2000, 3]], float)
    made = kto_step.batch(examples(), np.arange(3), np.array(partners), 4, (8,))

    rows, kl = made["rows"], made["kl"]
    starts = made["kl"]["starts"]
    matched, mixed = [], []
    for i in range(3):
        own = rows["tokens"][i][rows["positions"][i][rows["weights"][i] > 0]]
        other = kl["tokens"][i][kl["weights"][i] > 0]
        for found, scored in ((matched, own), (mixed, other)):
            assert (len(scored), scored[-1]) == (2, 99)
            found.append(M[rows["tokens"][i, starts[i] - 1] // 10 - 1, scored[0] // 10 - 1])
    assert matched == [1, 2, 3]
    assert np.isclose(np.mean(mixed), mean)


def test_batch():
    made = kto_step.batch(examples(), np.array([2, 0]), np.array([0, 2]), 4, (4, 8))
    assert made["rows"]["tokens"].tolist()[:2] == [[30, 30, 30, 39, 99, 0, 0, 0], [10, 19, 99, 0, 0, 0, 0, 0]]
    assert made["kl"]["tokens"].tolist() == [[19, 99], [39, 99], [0, 0], [0, 0]]
    assert made["kl"]["starts"].tolist() == [3, 1, 1, 1]
    assert made["desirable"].tolist() == [True, True, False, False]
    assert made["valid"].tolist() == [1, 1, 0, 0]
    for rows in (made["rows"], made["kl"]):
        assert not rows["tokens"][2:].any()
        assert not rows["weights"][2:].any()


def test_no_mismatched_pair_is_cut():
    """Both examples fit in 8, the longer prompt with the longer answer does not: it goes on from its own prompt."""
    made = []
    for i, (start, length) in enumerate([(6, 7), (2, 7)]):
        ids = tuple(range(10 * (i + 1), 10 * (i + 1) + length))
        made.append(Example(f"e{i}", ids, (0.0,) * start + (1.0,) * (length - start), start, f"p{i}", True))
    batch = kto_step.batch(made, np.array([0, 1]), np.array([1, 0]), 2, (4, 8))
    assert batch["kl"]["starts"].tolist() == [6, 2]
    assert batch["kl"]["tokens"].tolist() == [[22, 23, 24, 25, 26, 0, 0, 0], [16] + [0] * 7]
    assert batch["kl"]["weights"].sum(axis=1).tolist() == [5.0, 1.0]
    assert batch["rows"]["tokens"].tolist()[0][:7] == list(range(10, 17))
