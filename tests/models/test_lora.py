"""LoRA: where it starts, which layers it touches, and what dropout hides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emjax.config import LoraConfig
from emjax.errors import UserError
from emjax.models import decoder, lora

TOKENS = np.random.default_rng(0).integers(0, 101, (4, 12))


def hidden(tiny, adapter):
    return decoder.forward(tiny.config, tiny.params, TOKENS, adapter=adapter)[0]


def trained(adapter, seed=1):
    """With B as training might leave it."""
    keys = jax.random.split(jax.random.key(seed), len(adapter.weights))
    weights = {
        name: pair | {"B": 0.1 * jax.random.normal(key, pair["B"].shape)}
        for key, (name, pair) in zip(keys, adapter.weights.items(), strict=True)
    }
    return dataclasses.replace(adapter, weights=weights)


def test_it_starts_as_nothing(tiny):
    adapter = lora.init(LoraConfig(4, 8.0), tiny.config, jax.random.key(0))
    np.testing.assert_array_equal(hidden(tiny, adapter), hidden(tiny, None))


@pytest.mark.parametrize("rslora", [False, True])
def test_scale(tiny, rslora):
    """The adapted product is x @ (W + scale A B), with scale alpha / r or alpha / sqrt(r)."""
    config = LoraConfig(4, 6.0, rslora, targets=("up",))
    adapter = trained(lora.init(config, tiny.config, jax.random.key(0)))
    pair = adapter.weights["up"]
    merged = tiny.params["layers"]["up"] + (3.0 if rslora else 1.5) * pair["A"] @ pair["B"]
    layers = tiny.params["layers"] | {"up": merged}
    wanted, _ = decoder.forward(tiny.config, tiny.params | {"layers": layers}, TOKENS)
    np.testing.assert_allclose(hidden(tiny, adapter), wanted, atol=1e-5)


def test_layers_outside_stay_zero(tiny):
    config = LoraConfig(2, 4.0, layers=(1,))
    adapter = lora.init(config, tiny.config, jax.random.key(0))

    slope = jax.random.normal(jax.random.key(1), (*TOKENS.shape, tiny.config.D))

    def loss(weights):
        return (hidden(tiny, lora.Adapter(config, weights)) * slope).sum()

    weights = adapter.weights
    for _ in range(2):  # after the first step B is not zero any more
        slopes = jax.grad(loss)(weights)
        weights = jax.tree.map(lambda w, g: w - 0.1 * g, weights, slopes)
    for pair in weights.values():
        assert not np.any(pair["A"][0])
        assert not np.any(pair["B"][0])
        assert np.any(pair["B"][1])
    assert not np.allclose(weights["q"]["A"][1], adapter.weights["q"]["A"][1])


def test_a_layer_that_does_not_exist(tiny):
    with pytest.raises(UserError, match="layers 0 to 1"):
        lora.init(LoraConfig(2, 4.0, layers=(0, 2)), tiny.config, jax.random.key(0))


def dropped(tiny, share, rows, seed=3):
    config = LoraConfig(4, 8.0, dropout=share)
    adapter = trained(lora.init(config, tiny.config, jax.random.key(0)))
    return lora.with_dropout(adapter, jax.random.key(seed), jnp.asarray(rows))


def test_dropout_follows_the_row_not_its_place(tiny):
    """A row's mask is its own: whatever slice or order it comes in, its result is the same, bit for bit."""
    whole = hidden(tiny, dropped(tiny, 0.3, [0, 1, 2, 3]))
    order = np.array([2, 0, 3, 1])
    turned, _ = decoder.forward(tiny.config, tiny.params, TOKENS[order], adapter=dropped(tiny, 0.3, order))
    np.testing.assert_array_equal(turned, whole[order])
    assert not np.allclose(whole, hidden(tiny, dropped(tiny, 0.3, [0, 1, 2, 3], seed=4)))
    assert not np.allclose(whole, hidden(tiny, dropped(tiny, 0.3, [4, 5, 6, 7])))


def test_dropout_hides_inputs_from_the_adapter_alone():
    """Of one projection: each input is gone with the stated probability, else scaled up; the base's product stays."""
    n = 4000
    config = LoraConfig(n, float(n), targets=("q",), dropout=0.25)
    pair = {"A": jnp.eye(n), "B": jnp.eye(n)}
    stacked = jax.tree.map(lambda x: x[None], {"q": pair})
    adapter = lora.with_dropout(lora.Adapter(config, stacked), jax.random.key(0), jnp.arange(2))
    layer = jax.tree.map(lambda x: x[0], adapter)
    x = jnp.ones((2, 3, n))
    seen = np.asarray(lora.linear(x, 2 * jnp.eye(n), "q", layer)) - 2.0
    np.testing.assert_allclose(np.unique(seen.round(5)), [0.0, 1 / 0.75], atol=1e-4)
    assert abs((seen == 0).mean() - 0.25) < 0.01  # 24,000 draws: the standard error is 0.003
    assert (seen[0, 0] != seen[0, 1]).any()
    assert (seen[0] != seen[1]).any()


def test_no_dropout_no_keys(tiny):
    adapter = lora.init(LoraConfig(2, 4.0), tiny.config, jax.random.key(0))
    assert lora.with_dropout(adapter, jax.random.key(0), jnp.arange(2)) is adapter


def test_a_bias_is_rounded_once():
    """In bfloat16 the biased product is the float32 one, rounded; its gradients are those of the plain product."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, w, bias, g = (
        jax.random.normal(key, shape).astype(jnp.bfloat16)
        for key, shape in zip(keys, ((2, 5, 64), (64, 32), (32,), (2, 5, 32)), strict=True)
    )
    wide = [a.astype(jnp.float32) for a in (x, w, bias)]
    exact = wide[0] @ wide[1] + wide[2]
    np.testing.assert_array_equal(lora.linear(x, w, "q", None, bias), exact.astype(jnp.bfloat16))
    _, pull = jax.vjp(lambda *a: lora.linear(a[0], a[1], "q", None, a[2]), x, w, bias)
    _, pull_wide = jax.vjp(lambda x, w, b: x @ w + b, *wide)
    for ours, wanted in zip(pull(g), pull_wide(g.astype(jnp.float32)), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), wanted, rtol=2**-7, atol=2**-7)
