"""Shared parts of the benchmarks: random weights of a given shape, and the device's speed."""

import functools
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emjax.models import decoder, sharding
from emjax.models.config import ModelConfig
from emjax.sampling import cache


@functools.partial(jax.jit, static_argnums=(0, 1))
def _normal(shape: tuple[int, ...], dtype: Any, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype) * jnp.asarray(0.02, dtype)


def mesh_of(sizes: str) -> Mesh | None:
    """A mesh over all devices from "data,fsdp,tensor"; None for an empty string: the first device
    only."""
    return sharding.make_mesh(*map(int, sizes.split(","))) if sizes else None


def random_params(config: ModelConfig, dtype: str, mesh: Mesh | None = None, *, stacked: bool = True) -> decoder.Params:
    """Random weights, with one program per tensor shape: a single program for 32 layers would take
    over a minute to compile.

    With stacked=False, params["layers"] is a tuple of layers in the sampler's form, so the sampler
    makes no second copy.
    """
    shapes, axes = decoder.abstract(config, dtype)
    placed = None if mesh is None else sharding.shardings(mesh, sharding.parameter_specs(axes))
    seeds = iter(range(10**6))

    def make(name: str, shape: tuple[int, ...], kind: Any) -> jax.Array:
        if name.endswith(("norm", "bias")):
            return jnp.full(shape, 1.0 if name.endswith("norm") else 0.0, kind)
        return _normal(shape, kind, next(seeds))

    # Place tensors one by one, so that the first device never holds all of them.
    params: decoder.Params = {
        name: jax.device_put(make(name, x.shape, x.dtype), placed and placed[name])
        for name, x in shapes.items()
        if name != "layers"
    }
    layer = shapes["layers"]
    if stacked:
        params["layers"] = {
            name: jax.device_put(make(name, x.shape, x.dtype), placed and placed["layers"][name]) for name, x in layer.items()
        }
    else:
        layers = ({name: make(name, x.shape[1:], x.dtype) for name, x in layer.items()} for _ in range(config.L))
        params["layers"] = tuple(cache.join(config, (one,), mesh, cache.groups())[0] for one in layers)
    return params


def seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    """The median wall time of run() until its result is ready. Call run() once before, to
    compile."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def device_rates() -> tuple[float, float]:
    """(copy rate in bytes/s, read + written; matmul rate in FLOP/s), measured in bfloat16 (float32
    on a CPU)."""
    cpu = jax.default_backend() == "cpu"
    n, size, dtype = (1024, 1 << 26, jnp.float32) if cpu else (8192, 1 << 29, jnp.bfloat16)
    x = jnp.ones((size,), dtype)
    copy = jax.jit(lambda x: -x)
    a = _normal((n, n), jnp.dtype(dtype), 0)
    multiply = jax.jit(lambda a: a @ a)
    jax.block_until_ready((copy(x), multiply(a)))
    # Run ten at a time: waiting for each one costs as much as copying 1 GB.
    copies = seconds(lambda: [copy(x) for _ in range(10)], 3) / 10
    products = seconds(lambda: [multiply(a) for _ in range(10)], 3) / 10
    return 2 * x.nbytes / copies, 2 * n**3 / products


def peak_gb() -> float:
    """Peak memory so far, in 2^30 bytes: of the first device, or of this process on a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return round(peak / 2**30, 3)
