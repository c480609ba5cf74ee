"""Hidden states to log-probs: values, chunks, and what is never materialised."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emjax import models
from emjax.config import KtoConfig, LoraConfig
from emjax.data.batches import rows
from emjax.kto import step as kto_step
from emjax.models import logprobs, lora
from emjax.models.logprobs import pair_logprobs, row_logprobs, sequence_logprobs, token_logprobs
from emjax.train import optimizer, sft, state
from emjax.train.state import Tuning

B, P, D, V = 3, 10, 8, 37
SCORE = jax.jit(row_logprobs, static_argnums=0)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    head, hidden = rng.normal(size=(D, V)), rng.normal(size=(B, P, D))
    targets = rng.integers(0, V, (B, P))
    logits = hidden @ head
    wanted = np.take_along_axis(logits, targets[..., None], -1)[..., 0] - np.logaddexp.reduce(logits, axis=-1)
    return jnp.asarray(head, jnp.float32), jnp.asarray(hidden, jnp.float32), jnp.asarray(targets), wanted


@pytest.mark.parametrize("chunk", [1, B * 3, B * 4, B * P, 1000])  # one token a row ... all of them; 3 and 4 leave a rest
def test_values_in_any_chunks(case, chunk):
    head, hidden, targets, wanted = case
    got = token_logprobs(head, hidden, targets, chunk=chunk)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, atol=2e-6, rtol=0)


def test_gradients_in_any_chunks(case):
    head, hidden, targets, _ = case

    def total(head, hidden, chunk):
        return (token_logprobs(head, hidden, targets, chunk=chunk) * jnp.arange(P)).sum()

    whole, parts = (jax.grad(total, (0, 1))(head, hidden, chunk) for chunk in (1000, B * 4))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_gradients_with_a_constant_head(case):
    """Kept in the forward pass, they are those that the backward pass would make; the head has none."""
    head, hidden, targets, _ = case
    slope = jnp.arange(B * P, dtype=jnp.float32).reshape(B, P) - 20

    def total(hidden, **how):
        return (token_logprobs(head, hidden, targets, **how) * slope).sum()

    for chunk in (1, B * 3, 1000):
        (value, ours), (wanted_value, wanted) = (
            jax.value_and_grad(functools.partial(total, chunk=chunk, train_head=flag))(hidden) for flag in (False, True)
        )
        np.testing.assert_array_equal(value, wanted_value)
        np.testing.assert_allclose(ours, wanted, atol=3e-5, rtol=0)
    assert not np.any(jax.grad(lambda head: token_logprobs(head, hidden, targets, train_head=False).sum())(head))


def test_bfloat16_states_still_give_float32_logits(case):
    head, hidden, targets, _ = case
    low = head.astype(jnp.bfloat16), hidden.astype(jnp.bfloat16)
    wanted = token_logprobs(*(x.astype(jnp.float32) for x in low), targets)
    np.testing.assert_allclose(token_logprobs(*low, targets), wanted, atol=2e-6, rtol=0)


def most_tokens(jaxpr, vocabulary):
    """The largest number of [V] rows in any value of a jaxpr, nested ones included."""
    most = 0
    for eqn in jaxpr.eqns:
        for out in eqn.outvars:
            shape = getattr(out.aval, "shape", ())
            if shape and shape[-1] == vocabulary:
                most = max(most, math.prod(shape[:-1]))
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                most = max(most, most_tokens(inner, vocabulary))
    return most


def test_no_more_logits_than_a_chunk(case):
    head, hidden, targets, _ = case
    for chunk in (B * 2, B * 4, B * P):
        jaxpr = jax.make_jaxpr(jax.grad(lambda h, c=chunk: token_logprobs(head, h, targets, chunk=c).sum()))(hidden)
        assert most_tokens(jaxpr.jaxpr, V) == chunk


def test_other_completions_after_the_same_prompts(tiny):
    """Prompts run once give the log-probs of each whole row, whatever stands in the rows behind their prompts."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 101, n).tolist() for n in (1, 5, 17)]
    owns, others = ([rng.integers(0, 101, n).tolist() for n in sizes] for sizes in ((9, 3, 4), (8, 1, 6)))

    def whole(completions):
        pairs = [(p + c, [0.0] * len(p) + [1.0] * len(c)) for p, c in zip(prompts, completions, strict=True)]
        return rows(pairs, 4, (32,), "")

    kl = {"tokens": np.zeros((4, 8), np.int32), "weights": np.zeros((4, 8), np.float32), "starts": np.array([1, 5, 17, 1])}
    for i, c in enumerate(others):
        kl["tokens"][i, : len(c)], kl["weights"][i, : len(c)] = c, 1.0
    adapter = lora.init(LoraConfig(2, 2.0), tiny.config, jax.random.key(0))
    adapter = dataclasses.replace(adapter, weights=jax.tree.map(lambda x: x + 0.05, adapter.weights))
    score = functools.partial(sequence_logprobs, tiny.config, tiny.params, adapter)
    found = pair_logprobs(tiny.config, tiny.params, adapter, whole(owns), kl, implementation="xla")
    for ours, completions in zip(found, (owns, others), strict=True):
        np.testing.assert_allclose(ours, score(whole(completions)), atol=3e-5, rtol=0)
    assert found[1][3] == 0


def test_other_completions_have_no_gradient(tiny):
    made = rows([((1, 2, 3, 4), (0, 0, 1, 1))], 1, (4,), "")
    kl = {"tokens": np.array([[5, 6]]), "weights": np.ones((1, 2), np.float32), "starts": np.array([2])}
    adapter = lora.init(LoraConfig(2, 2.0), tiny.config, jax.random.key(0))

    def both(weights, use):
        found = pair_logprobs(tiny.config, tiny.params, lora.Adapter(adapter.config, weights), made, kl, implementation="xla")
        return found[use].sum()

    assert any(x.any() for x in jax.tree.leaves(jax.grad(both)(adapter.weights, 0)))
    assert not any(x.any() for x in jax.tree.leaves(jax.grad(both)(adapter.weights, 1)))


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_no_more_logits_than_a_chunk_in_a_whole_step(tiny, method):
    size, T = 4, 1024  # four chunks
    made = {"tokens": np.zeros((size, T), np.int32), "positions": np.ones((size, T), np.int32)}
    made["weights"] = np.ones((size, T), np.float32)
    tuning = Tuning(tiny.config, LoraConfig(2, 2.0))
    opt = optimizer.make(0.9, 0.999, 1e-8, 0.0, 1.0)
    settings = {"tuning": tuning, "optimizer": opt}
    if method == "sft":
        batch, step = made, sft.step
    else:
        four = np.zeros(size, np.float32)
        kl = {"tokens": made["tokens"], "weights": made["weights"], "starts": np.ones(size, np.int32)}
        batch = {"rows": made, "kl": kl, "desirable": four > 0, "valid": four + 1, "row": np.arange(size)}
        batch |= {"reference": four, "reference_kl": four}
        step = functools.partial(kto_step.step, kto=KtoConfig())
    fresh = state.create(lora.init(tuning.lora, tiny.config, jax.random.key(0)).weights, opt, tuning)
    jaxpr = jax.make_jaxpr(functools.partial(step, **settings))(fresh, tiny.params, batch, 1.0)
    assert most_tokens(jaxpr.jaxpr, tiny.config.V) == logprobs.CHUNK


def four_rows(*lengths):
    rng = np.random.default_rng(0)
    made = []
    for n in lengths:
        weights = (rng.random(n) < 0.6) * rng.choice([0.5, 1.0], n)
        made.append((tuple(rng.integers(0, 101, n).tolist()), tuple(weights.tolist())))
    return made


def test_padding_does_not_matter(tiny):
    """Neither the length bucket, nor how many rows stand beside one, nor the ids in the padding."""
    examples = four_rows(5, 12, 16)
    together = rows(examples, 3, (16,), "it")
    wanted = np.asarray(SCORE(tiny.config, tiny.params, None, together))
    wider = rows(examples, 5, (24,), "it")
    for i, (ids, _) in enumerate(examples):
        wider["tokens"][i, len(ids) :] = 7
    got = np.asarray(SCORE(tiny.config, tiny.params, None, wider))
    P = together["positions"].shape[1]
    for i in range(3):
        n = np.count_nonzero(together["weights"][i])
        assert n
        np.testing.assert_allclose(got[i, :n], wanted[i, :n], atol=3e-6, rtol=0)
    assert np.isfinite(got).all()
    assert got.shape == (5, P)


def test_against_the_whole_logits(tiny):
    examples = four_rows(5, 12, 16)
    made = rows(examples, 3, (16,), "it")
    table = np.asarray(jax.nn.log_softmax(models.logits(tiny, made["tokens"])))
    got = SCORE(tiny.config, tiny.params, None, made)
    sums = jax.jit(sequence_logprobs, static_argnums=0)(tiny.config, tiny.params, None, made)
    for i, (ids, weights) in enumerate(examples):
        scored = [t for t, w in enumerate(weights) if w and t]
        wanted = [table[i, t - 1, ids[t]] for t in scored]
        np.testing.assert_allclose(got[i, : len(scored)], wanted, atol=1e-5)
        np.testing.assert_allclose(sums[i], sum(wanted), atol=5e-5)  # a sum: weights other than 0 do not scale it


def fixed_logits(monkeypatch, table):
    """A decoder whose logits at position t are table[t]."""
    hidden = jnp.eye(len(table))[None]
    monkeypatch.setattr(logprobs.decoder, "forward", lambda *_, **__: (hidden, None))
    return {"head": jnp.asarray(table, jnp.float32)}


@pytest.mark.parametrize(
    ("place", "logit", "wanted"),
    [
        (None, 0.0, -2 * math.log(4)),
        ((1, 2), math.log(3), -math.log(2) - math.log(4)),  # position 1 predicts the token at position 2
        ((2, 3), math.log(3), -math.log(2) - math.log(4)),
        ((3, 3), math.log(3), -2 * math.log(4)),  # what the last position predicts is not scored
        ((0, 1), math.log(3), -2 * math.log(4)),  # nor is the prompt
    ],
)
def test_the_shift(tiny, monkeypatch, place, logit, wanted):
    table = np.zeros((4, 4))
    if place:
        table[place] = logit
    params = fixed_logits(monkeypatch, table)
    made = rows([((0, 1, 2, 3), (0.0, 0.0, 1.0, 1.0))], 1, (4,), "it")
    np.testing.assert_allclose(sequence_logprobs(tiny.config, params, None, made), [wanted], atol=1e-6)
