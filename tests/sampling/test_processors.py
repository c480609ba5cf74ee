"""Drawn tokens against exact probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from emjax.sampling import Engine, Request, Sampling
from emjax.sampling.processors import Rows, sample

from .conftest import NO_EOS, SHAPE, WORDS, tables

SETTINGS = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 7},
    {"top_p": 0.7},
    {"min_p": 0.15},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"top_k": 3, "top_p": 0.5},
]


def exact(logits_V, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Token by token, in float64: temperature, then top-k, then top-p of what is left, then min-p."""
    z = np.asarray(logits_V, np.float64) / temperature
    p = np.exp(z - z.max())
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda t: -p[t])
    if top_k:
        order = order[:top_k]
    total, mass, kept = sum(p[t] for t in order), 0.0, []
    for t in order:
        kept.append(t)
        mass += p[t] / total
        if mass >= top_p:
            break
    kept = [t for t in kept if p[t] >= min_p * p.max()]
    out = np.zeros(len(p))
    out[kept] = p[kept]
    return out / out.sum()


def chi_square(tokens, probs):
    """The p-value of a chi-square test, cells of small expectation pooled."""
    counts = np.bincount(tokens, minlength=len(probs)).astype(float)
    assert not counts[probs == 0].any(), "a token outside the filters was drawn"
    expected = probs * counts.sum()
    small = expected < 10
    cells = [(counts[i], expected[i]) for i in np.flatnonzero(~small)]
    if expected[small].sum() > 0:
        cells.append((counts[small].sum(), expected[small].sum()))
    observed, wanted = np.array(cells).T
    return stats.chisquare(observed, wanted).pvalue if len(cells) > 1 else 1.0


def settings_of(count, **settings):
    s = Sampling(**settings)
    seeds = np.stack([np.zeros(count, np.uint32), np.arange(count, dtype=np.uint32)], axis=1)

    def full(value, dtype):
        return np.full(count, value, dtype)

    return Rows(
        temperature_B=full(s.temperature, np.float32), top_k_B=full(s.top_k, np.int32),
        top_p_B=full(s.top_p, np.float32), min_p_B=full(s.min_p, np.float32),
        top_logprobs_B=full(0, np.int32), seed_Bx2=seeds,
    )  # fmt: skip


draw = jax.jit(sample, static_argnums=4)


@pytest.mark.parametrize("settings", SETTINGS)
def test_20000_draws_follow_the_exact_distribution(settings):
    N = 20_000
    logits_V = np.random.default_rng(5).normal(0, 1.5, 50).astype(np.float32)
    logits_NxV = jnp.broadcast_to(logits_V, (N, 50))
    drawn = draw(logits_NxV, settings_of(N, **settings), np.full(N, 3), np.ones(N, bool), 47)
    masked_V = np.where(np.arange(50) < 47, logits_V, -np.inf)
    tokens = np.asarray(drawn.token_B)
    assert chi_square(tokens, exact(masked_V, **settings)) > 1e-3
    full_V = logits_V - np.log(np.exp(logits_V.astype(np.float64)).sum())
    np.testing.assert_allclose(drawn.logprob_B, full_V[tokens], atol=1e-5)


def test_rows_keep_their_own_settings(lm):
    """Through the engine, first and second tokens: four settings side by side."""
    kinds = [SETTINGS[1], SETTINGS[3], SETTINGS[4], SETTINGS[5]]
    prompt = (20, 21, 22)
    requests = [Request(f"{i % 4}", prompt, Sampling(seed=i, max_new=2, **kinds[i % 4])) for i in range(3000)]
    model = lm.replace(eos_ids=NO_EOS)
    results = list(Engine(model, **SHAPE).generate(requests))
    masked = np.where(np.arange(67) < WORDS, 0, -np.inf)
    for kind, settings in enumerate(kinds):
        tokens = np.array([r.tokens for r in results if r.id == str(kind)])
        first = exact(tables(model, [(prompt, [0])])[0][0] + masked, **settings)
        assert chi_square(tokens[:, 0], first) > 1e-3
        common = int(np.bincount(tokens[:, 0]).argmax())
        after = tables(model, [((*prompt, common), [0])])[0][0] + masked
        assert chi_square(tokens[tokens[:, 0] == common, 1], exact(after, **settings)) > 1e-3


def test_first_and_later_tokens_have_their_own_noise(lm):
    """The same logits at two positions of one row are drawn independently."""
    N = 2_000
    logits_NxV = jnp.zeros((N, 16))
    first, second = (np.asarray(draw(logits_NxV, settings_of(N), np.full(N, t), np.ones(N, bool), 16).token_B) for t in (0, 1))
    assert 0.03 < (first == second).mean() < 0.1
