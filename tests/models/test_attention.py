"""Attention's kernels against each other, and the shapes that they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emjax.errors import UserError
from emjax.models import attention, decode_kernel


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


# Of one decode step: rows, query heads, kv heads, cache length, head size. Groups of 2, of 7 (no power of two) and of 16;
# caches that are no multiple of a block.
@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [((6, 4, 2, 40, 16), "float32", 1e-6), ((6, 14, 2, 200, 32), "float32", 1e-6), ((5, 16, 1, 136, 64), "bfloat16", 2e-2)],
)
def test_decode_kernel_equals_xla(shape, dtype, tolerance):
    B, H, K, S, h = shape
    keys = iter(jax.random.split(jax.random.key(S), 5))
    q, k, v, k_cache, v_cache = (
        jax.random.normal(next(keys), x, dtype) for x in ((B, H, h), (B, K, h), (B, K, h), (B, K, S, h), (B, K, S, h))
    )
    lengths = jnp.array([0, 1, S - 1, 64, 65, 7][:B]).clip(max=S - 1)
    active = jnp.arange(B) != 3
    dirty = jnp.arange(S) > lengths[:, None]  # what stands behind a row must not be seen, whatever it is
    k_cache, v_cache = (jnp.where(dirty[:, None, :, None], jnp.nan, x) for x in (k_cache, v_cache))
    out, *caches = decode_kernel.attend(q, k, v, k_cache, v_cache, lengths, active, interpret=True)
    clean = [jnp.where(dirty[:, None, :, None], 0, x) for x in (k_cache, v_cache)]
    wanted, (k_wanted, v_wanted) = attention.decode(q, k, v, clean, lengths, active, "xla")
    np.testing.assert_allclose(out[active].astype("float32"), wanted[active].astype("float32"), atol=tolerance, rtol=0)
    for cache, old, one in zip(caches, (k_cache, v_cache), (k_wanted, v_wanted), strict=True):
        # One position is another, of active rows.
        kept = jnp.where(dirty[:, None, :, None] | ~active[:, None, None, None], old, one)
        np.testing.assert_array_equal(cache.astype("float32"), kept.astype("float32"))


def test_a_decode_kernels_row_depends_on_itself_alone():
    keys = iter(jax.random.split(jax.random.key(1), 5))
    shapes = ((4, 4, 16), (4, 2, 16), (4, 2, 16), (4, 2, 80, 16), (4, 2, 80, 16))
    rows = [jax.random.normal(next(keys), x) for x in shapes]
    lengths, active = jnp.array([5, 70, 79, 33]), jnp.ones(4, bool)
    out = decode_kernel.attend(*rows, lengths, active, interpret=True)[0]
    other = [x[::-1].at[1:].add(1.0) for x in rows]
    turned = decode_kernel.attend(*other, jnp.array([33, 2, 1, 70]), active.at[2].set(False), interpret=True)[0]
    np.testing.assert_array_equal(out[3], turned[0])


@pytest.mark.parametrize(("H", "h"), [(32, 128), (28, 128), (8, 64)])
def test_decode_kernel_lowers_for_a_gpu(H, h):
    """Without one: what Triton cannot express is refused here already."""
    x = jax.ShapeDtypeStruct
    heads, new, cache = x((3, H, h), "bfloat16"), x((3, 4, h), "bfloat16"), x((3, 4, 200, h), "bfloat16")
    card = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "cuda")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=card)):
        traced = jax.jit(decode_kernel.attend).trace(heads, new, new, cache, cache, x((3,), "int32"), x((3,), "bool"))
        assert "gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(("h", "dtype"), [(64, "float32"), (96, "bfloat16"), (8, "bfloat16")])
def test_decode_refuses(h, dtype):
    heads, cache = jnp.zeros((1, 2, h), dtype), jnp.zeros((1, 2, 16, h), dtype)
    with pytest.raises(UserError, match=f"cannot decode head size {h} in {dtype}"):
        attention.decode(heads, heads, heads, (cache, cache), jnp.zeros(1, int), jnp.ones(1, bool), "cudnn")
