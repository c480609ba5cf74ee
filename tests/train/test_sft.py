"""One supervised step; its loss itself is compared with torch in tests/parity."""

import functools
import itertools

import jax
import numpy as np
import optax
import pytest

from emjax.config import TrainConfig
from emjax.data.batches import rows
from emjax.errors import UserError
from emjax.train import optimizer, sft, state
from emjax.train.state import Tuning

# The new weights are the old ones minus the gradients, so gradients can be compared.
PLAIN = optax.sgd(1.0)


def examples(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    weights = [rng.choice([0.0, 0.1, 1.0], n) for n in lengths]
    return [(tuple(rng.integers(0, 101, len(w)).tolist()), tuple(w.tolist())) for w in weights]


EXAMPLES = examples(4, 16, 9, 11)
BATCH = rows(EXAMPLES, 4, (16,), "it")
CLOSE = functools.partial(np.testing.assert_allclose, atol=3e-6, rtol=0)


@pytest.fixture(scope="module")
def take(tiny):
    """take(batch) -> (the new state, metrics) of full fine-tuning."""

    def run(batch, rate=1.0, microbatches=1, remat="none"):
        tuning = Tuning(tiny.config, None, remat=remat)
        settings = {"tuning": tuning, "optimizer": PLAIN, "microbatches": microbatches}
        return sft.step(state.create(tiny.params, PLAIN, tuning), None, batch, np.float32(rate), **settings)

    return run


@pytest.mark.parametrize(
    ("size", "buckets", "settings"),
    [
        (4, (16,), {"microbatches": 4, "remat": "projections"}),
        (6, (24,), {"microbatches": 2, "remat": "full"}),
    ],
)
def test_only_the_examples_matter(take, size, buckets, settings):
    """Not their slices, nor the padding, nor what is recomputed."""
    whole, first = take(BATCH)
    other, metrics = take(rows(EXAMPLES, size, buckets, "it"), **settings)
    jax.tree.map(CLOSE, other["trainable"], whole["trainable"])
    jax.tree.map(CLOSE, metrics, first)
    assert metrics["tokens"] == np.count_nonzero(BATCH["weights"])


def test_one_program_for_each_bucket(take):
    size = sft.step._cache_size()
    for seed, longest in itertools.product(range(3), (8, 16)):
        # All tokens but the first are scored, so that their number has one bucket too.
        parts = [(ids, (1.0,) * len(ids)) for ids, _ in examples(longest, longest - 1, seed=seed)]
        take(rows(parts, 4, (8, 16), "it"), 0.1 * seed)
    assert sft.step._cache_size() <= size + 2


def test_unknown_remat(take):
    with pytest.raises(UserError, match="remat"):
        take(BATCH, remat="some")


def test_learning_rates():
    def rates(schedule, warmup=0.25, steps=20):
        return optimizer.learning_rates(
            TrainConfig(
                learning_rate=2.0,
                schedule=schedule,
                warmup=warmup,
                final=0.1,
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                weight_decay=0.0,
                clip=1.0,
            ),
            steps,
        )

    rise = [0.4, 0.8, 1.2, 1.6, 2.0]
    for schedule in ("constant", "linear", "cosine"):
        found = rates(schedule)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[:5], rise, rtol=1e-6)
        assert found[5] == 2.0
        assert rates(schedule, 0.0)[0] == 2.0
    x = np.arange(15) / 15
    np.testing.assert_allclose(rates("constant")[5:], 2.0)
    np.testing.assert_allclose(rates("linear")[5:], 2.0 - 1.8 * x, rtol=1e-6)
    np.testing.assert_allclose(rates("cosine")[5:], 0.2 + 1.8 * (1 + np.cos(np.pi * x)) / 2, rtol=1e-5)
    with pytest.raises(UserError, match="schedule"):
        rates("step")


def test_norms_and_biases_do_not_decay(tiny):
    opt, tuning = optimizer.make(0.9, 0.999, 1e-8, 0.5, 0.0), Tuning(tiny.config, None)
    one = np.ones(2, np.float32)
    params = {"embed": one, "final_norm": one, "layers": {"q": one, "q_bias": one, "k_norm": one, "down": one}}
    fresh = state.create(params, opt, tuning)
    now, norm = state.apply(fresh, jax.tree.map(np.zeros_like, params), opt, 0.1, tuning)
    assert norm == 0
    kept = {"embed": 0.95, "final_norm": 1.0, "layers": {"q": 0.95, "q_bias": 1.0, "k_norm": 1.0, "down": 0.95}}
    jax.tree.map(CLOSE, now["trainable"], kept)
