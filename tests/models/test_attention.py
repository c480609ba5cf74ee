"""Attention's kernels against each other, and the shapes that they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emjax.errors import UserError
from emjax.models import attention


def arrays(T, H, K, h, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(T), 4)
    heads = (H, K, K, H)
    return [jax.random.normal(key, (2, T, n, h)).astype(dtype) for key, n in zip(keys, heads, strict=True)]


def value_and_gradients(kernel, q, k, v, slope):
    def total(q, k, v):
        out = kernel(q, k, v)
        return (out.astype(jnp.float32) * slope).sum(), out

    gradients, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)
    return [out, *gradients]


# bfloat16: the kernels round the weights of the average before (xla) or after (splash) they are normalised, and splash the
# scaled query: two roundings of 2^-9 on values of up to 4.
@pytest.mark.parametrize(
    ("T", "H", "K", "h", "dtype", "tolerance"),
    [(128, 4, 2, 64, "float32", 1e-5), (384, 2, 1, 128, "float32", 1e-5), (256, 4, 4, 64, "bfloat16", 3e-2)],
)
def test_splash_equals_xla(T, H, K, h, dtype, tolerance):
    q, k, v, slope = arrays(T, H, K, h, dtype)
    ours = value_and_gradients(functools.partial(attention.splash, interpret=True), q, k, v, slope)
    wanted = value_and_gradients(functools.partial(attention.causal, implementation="xla"), q, k, v, slope)
    for a, b in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance, rtol=0)


def test_later_tokens_change_nothing():
    q, k, v, _ = arrays(128, 2, 1, 64)
    out = attention.splash(q, k, v, interpret=True)
    changed = attention.splash(q, k.at[:, 100:].add(1.0), v.at[:, 100:].add(1.0), interpret=True)
    np.testing.assert_array_equal(out[:, :100], changed[:, :100])


@pytest.mark.parametrize(
    ("implementation", "T", "h", "named"),
    [
        ("flash", 128, 64, "'flash' is unknown"),
        ("splash", 128, 64, "TPU kernel, but this is a cpu"),
        ("cudnn", 128, 64, "head size 64 in float32"),
    ],
)
def test_refused(implementation, T, h, named):
    q, k, v, _ = arrays(T, 2, 1, h)
    with pytest.raises(UserError, match=named):
        attention.causal(q, k, v, implementation)


@pytest.mark.parametrize(("T", "h", "named"), [(100, 64, "rows of 100 tokens"), (128, 40, "head size 40")])
def test_shapes_that_splash_cannot_serve(T, h, named):
    q, k, v, _ = arrays(T, 2, 1, h)
    with pytest.raises(UserError, match=named):
        attention.splash(q, k, v, interpret=True)


@pytest.mark.parametrize(("h", "dtype"), [(12, "bfloat16"), (264, "bfloat16"), (64, "float32")])
def test_shapes_that_cudnn_cannot_serve(h, dtype):
    q, k, v, _ = arrays(128, 2, 1, h, dtype)
    with pytest.raises(UserError, match=f"head size {h} in {dtype}"):
        attention.causal(q, k, v, "cudnn")
