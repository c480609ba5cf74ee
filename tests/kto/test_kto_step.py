"""One KTO step and its reference: exact whatever the slices and the padding, right at step 0, cheap."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emjax.config import KtoConfig, LoraConfig
from emjax.data import batches
from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.kto import kto_loss, pairing, reference
from emjax.kto import step as kto_step
from emjax.kto.pairing import Plan
from emjax.models import lora
from emjax.models.logprobs import sequence_logprobs
from emjax.train import state
from emjax.train.state import Tuning

PLAIN = optax.sgd(1.0)  # the new weights are the old ones minus the gradients
LORA = LoraConfig(2, 4.0, targets=("q", "v", "down"))
BETA = KtoConfig(0.2, 1.0, 1.5)
CLOSE = functools.partial(np.testing.assert_allclose, atol=2e-6, rtol=1e-5)


def examples(count):
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        prompt, answer = (tuple(rng.integers(4, 101, rng.integers(2, 6)).tolist()) for _ in range(2))
        weights = (0.0,) * len(prompt) + (1.0,) * (len(answer) + 1)
        made.append(Example(f"e{i}", (*prompt, *answer, 3), weights, len(prompt), f"p{i // 2}", i % 3 != 0))
    return made


EXAMPLES = examples(7)
BLOCK, BUCKETS = np.arange(7), (12,)
PARTNERS = pairing.derange([e.prompt_id for e in EXAMPLES], np.random.default_rng(0))


def adapter(config, shift):
    """A reference has shift 0, so B = 0; a policy that has learned something has not."""
    start = lora.init(LORA, config, jax.random.key(1))
    return jax.tree.map(lambda x: x + shift, start.weights)


def compute(tiny):
    tuning = Tuning(tiny.config, LORA)
    made = reference.compute(tiny.params, None, tuning, EXAMPLES, Plan([BLOCK], [PARTNERS], [0]), 8, BUCKETS, jax.device_put)
    return {name: values[0] for name, values in made.items()}


@pytest.fixture(scope="module")
def cache(tiny):
    return compute(tiny)


def take(tiny, cache, *, size=8, buckets=BUCKETS, shift=0.05, remat="none", **settings):
    batch = kto_step.batch(EXAMPLES, BLOCK, PARTNERS, size, buckets)
    batch |= {name: np.resize(values, size) * (np.arange(size) < 7) for name, values in cache.items()}
    tuning = Tuning(tiny.config, LORA, remat=remat)
    fresh = state.create(adapter(tiny.config, shift), PLAIN, tuning)
    return kto_step.step(fresh, tiny.params, batch, np.float32(1.0), tuning=tuning, optimizer=PLAIN, kto=BETA, **settings)


@pytest.fixture(scope="module")
def whole(tiny, cache):
    return take(tiny, cache)


@pytest.mark.parametrize(
    "settings",
    [
        {"microbatches": 4, "remat": "full"},  # the last slice has one row of two
        {"microbatches": 2, "size": 10, "buckets": (16,), "remat": "projections"},
    ],
    ids=["slices", "slices and padding"],
)
def test_only_the_examples_matter(tiny, cache, whole, settings):
    now, metrics = take(tiny, cache, **settings)
    jax.tree.map(CLOSE, now["trainable"], whole[0]["trainable"])
    jax.tree.map(CLOSE, metrics, whole[1])


def test_metrics_are_those_of_the_loss_on_given_log_probs(tiny, cache, whole):
    """The gradient is compared with torch in tests/parity."""
    batch = kto_step.batch(EXAMPLES, BLOCK, PARTNERS, 7, BUCKETS)
    labels = jnp.asarray(batch["desirable"])
    policy = lora.Adapter(LORA, adapter(tiny.config, 0.05))
    score = jax.jit(functools.partial(sequence_logprobs, tiny.config, tiny.params, policy))
    mixed = [
        (EXAMPLES[i].ids[: EXAMPLES[i].start] + EXAMPLES[j].ids[EXAMPLES[j].start :],
         (0.0,) * EXAMPLES[i].start + EXAMPLES[j].weights[EXAMPLES[j].start :])
        for i, j in zip(BLOCK, PARTNERS, strict=True)
    ]  # fmt: skip
    # Each mismatched row by itself, from its prompt on.
    apart = batches.rows(mixed, 7, (32,), "the mismatched rows")
    wanted, aux = kto_loss(
        score(batch["rows"]), cache["reference"][:7], score(apart), cache["reference_kl"][:7], labels,
        **kto_step._weights(BETA),
    )  # fmt: skip
    _, metrics = whole
    assert aux["kl"] > 0.1  # not clamped
    CLOSE(metrics["loss"], wanted)
    CLOSE(metrics["kl"], aux["kl"])
    assert metrics["desirable_count"] == labels.sum() == 4
    assert metrics["undesirable_count"] == 3
    CLOSE(metrics["reward_desirable_sum"], aux["rewards"][labels].sum())
    CLOSE(metrics["reward_undesirable_sum"], aux["rewards"][~labels].sum())


def test_at_step_0_policy_and_reference_agree(tiny, cache):
    """B = 0: log-ratios vanish, the loss is half the mean weight, and only B has a gradient."""
    now, metrics = take(tiny, cache, shift=0.0)
    start = lora.init(LORA, tiny.config, jax.random.key(1)).weights
    assert abs(metrics["kl_raw"]) < 1e-5
    assert abs(metrics["reward_desirable_sum"]) < 1e-5
    assert abs(metrics["loss"] - (4 * 1.0 + 3 * 1.5) / 7 / 2) < 1e-6
    for name, pair in now["trainable"].items():
        np.testing.assert_array_equal(pair["A"], start[name]["A"])
        assert np.asarray(pair["B"]).any()


def test_donation_and_one_program_for_each_bucket(tiny, cache):
    longer = [dataclasses.replace(e, ids=(9,) * 8 + e.ids, start=8 + e.start, weights=(0.0,) * 8 + e.weights) for e in EXAMPLES]
    made = {name: np.stack([values, values]) for name, values in cache.items()}
    order = [0, 1, 1, 0, 1, 0]
    build = kto_step.build(EXAMPLES + longer, Plan([BLOCK, BLOCK + 7], [PARTNERS, PARTNERS + 7], order), 8, (12, 24), made)
    settings = {"tuning": Tuning(tiny.config, LORA), "optimizer": PLAIN, "kto": BETA}
    size = kto_step.step._cache_size()
    now = state.create(adapter(tiny.config, 0.05), PLAIN, settings["tuning"])
    for step in range(len(order)):
        old = now
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a buffer that could not be donated
            now, _ = kto_step.step(old, tiny.params, build(step), np.float32(0.1 / (step + 1)), **settings)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(tiny.params))
    assert kto_step.step._cache_size() <= size + 2


def test_build_serves_the_block_of_the_step_with_its_reference():
    blocks = [np.array([0, 3]), np.array([5, 2])]
    partners = [np.array([3, 0]), np.array([2, 5])]
    made = {"reference": np.array([[1.0, 2.0, 0], [3, 4, 0]]), "reference_kl": np.array([[5.0, 6, 0], [7, 8, 0]])}
    build = kto_step.build(EXAMPLES, Plan(blocks, partners, [1, 0, 0, 1]), 3, BUCKETS, made)
    for step, block in enumerate([1, 0, 0, 1]):
        found, wanted = build(step), kto_step.batch(EXAMPLES, blocks[block], partners[block], 3, BUCKETS)
        wanted |= {name: values[block] for name, values in made.items()}
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_padding_rows_have_no_reference(cache):
    assert cache["reference"].shape == (8,)
    assert cache["reference"].dtype == np.float32
    for values in cache.values():
        assert values[7] == 0
        assert np.all(values[:7] < -5)


@pytest.mark.parametrize("bad", [-np.inf, np.nan])
@pytest.mark.parametrize("which", [0, 1])
def test_a_reference_that_is_not_finite_is_refused(tiny, monkeypatch, bad, which):
    found = [np.full(8, -9.0), np.full(8, -9.0)]
    found[which][4] = bad
    monkeypatch.setattr(reference, "score", lambda *_, **__: dict(zip(("reference", "reference_kl"), found, strict=True)))
    with pytest.raises(UserError, match=f"'e4' a {['reference', 'reference_kl'][which]} log-probability of {bad}"):
        compute(tiny)


def test_the_cache_is_refused_when_anything_it_depends_on_changes(tmp_path):
    made = {"reference": np.float32([[1.5, 2.5]]), "reference_kl": np.float32([[3.5, 4.5]])}
    path = tmp_path / "reference.npz"
    blocks, partners = [BLOCK[:3], BLOCK[3:]], [PARTNERS[:3], PARTNERS[3:]]
    key = reference.key("model", EXAMPLES, Plan(blocks, partners, []))
    assert reference.cached(path, key, lambda: made) is made
    read = reference.cached(path, key, lambda: pytest.fail("made again"))
    jax.tree.map(np.testing.assert_array_equal, read, made)
    assert not list(tmp_path.glob("*partial*"))
    changed = dataclasses.replace(EXAMPLES[2], weights=EXAMPLES[2].weights[:-1] + (0.0,))
    others = [
        reference.key("another", EXAMPLES, Plan(blocks, partners, [])),
        reference.key("model", [*EXAMPLES[:2], changed, *EXAMPLES[3:]], Plan(blocks, partners, [])),
        reference.key("model", EXAMPLES, Plan(blocks[::-1], partners[::-1], [])),
        reference.key("model", EXAMPLES, Plan(blocks, [PARTNERS[:3][::-1], PARTNERS[3:]], [])),
        reference.key("model", EXAMPLES[:-1], Plan(blocks, partners, [])),
    ]
    assert len({key, *others}) == 6
    for other in others:
        with pytest.raises(UserError, match=r"reference\.npz.*delete"):
            reference.cached(path, other, lambda: pytest.fail("made again"))
