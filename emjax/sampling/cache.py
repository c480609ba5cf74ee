"""What the sampler keeps on the device: weights and caches layer by layer, and the state of every slot."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emjax.errors import UserError
from emjax.models.config import ModelConfig
from emjax.models.decoder import Params
from emjax.models.lora import Adapter
from emjax.sampling.processors import TOP_LOGPROBS, Drawn, Rows

SHORTEST = 32  # padded length of a prompt
Cache = tuple[jax.Array, jax.Array]  # keys and values of one layer, each [slots, K, S, h]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Of every slot. A row's newest token has been drawn but is not in the cache yet."""

    active_B: jax.Array
    length_B: jax.Array  # positions in the cache
    count_B: jax.Array  # tokens drawn
    limit_B: jax.Array  # tokens to draw at most
    drawn: Drawn  # the newest token
    rows: Rows


def empty_state(config: ModelConfig, slots: int, mesh: Mesh | None) -> State:
    def zeros(dtype: Any, *shape: int) -> jax.Array:
        x = jnp.zeros((slots, *shape), dtype)
        return x if mesh is None else jax.device_put(x, NamedSharding(mesh, P()))

    top = min(TOP_LOGPROBS, config.V)
    i32, f32 = jnp.int32, jnp.float32
    return State(
        active_B=zeros(bool),
        length_B=zeros(i32),
        count_B=zeros(i32),
        limit_B=zeros(i32),
        drawn=Drawn(zeros(i32), zeros(f32), zeros(i32, top), zeros(f32, top)),
        rows=Rows(zeros(f32), zeros(f32), zeros(f32), zeros(i32), zeros(i32), zeros(jnp.uint32, 2)),
    )


def empty_caches(config: ModelConfig, slots: int, length: int, dtype: Any, mesh: Mesh | None) -> tuple[Cache, ...]:
    shape = (slots, config.K, length, config.h)
    if mesh is None:
        return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.L))
    if slots % (mesh.shape["data"] * mesh.shape["fsdp"]) or config.K % mesh.shape["tensor"]:
        raise UserError(
            f"The sampler's {slots} slots and the model's {config.K} key/value heads cannot be split over "
            f"the mesh {dict(mesh.shape)}: slots must be a multiple of data x fsdp, the heads one of tensor."
        )
    zeros = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=_sharding(mesh))
    return tuple((zeros(), zeros()) for _ in range(config.L))


def _sharding(mesh: Mesh) -> NamedSharding:
    """Slots are spread like a batch, kv heads like the weights that make them."""
    return NamedSharding(mesh, P(("data", "fsdp"), "tensor"))


def spread(caches: Any, mesh: Mesh | None) -> Any:
    """Under jit: holds caches to their sharding, so that a program returns them as the next one expects."""
    return caches if mesh is None else jax.lax.with_sharding_constraint(caches, _sharding(mesh))


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Under jit: holds all of a tree on every device."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def unstack(layers: Params | tuple[Params, ...]) -> tuple[Params, ...]:
    """{name: [L, ...]} -> L times {name: [...]}, a tensor at a time. Layers that stand apart pass through."""
    if isinstance(layers, tuple):
        return layers
    apart = {name: jnp.unstack(stacked) for name, stacked in layers.items()}
    return tuple(dict(zip(apart, layer, strict=True)) for layer in zip(*apart.values(), strict=True))


def unstack_adapter(adapter: Adapter, dtype: Any) -> tuple[Adapter, ...]:
    """The adapter of each layer, cast once to the dtype it is used in."""
    L = next(iter(adapter.weights.values()))["A"].shape[0]
    return tuple(
        Adapter(
            adapter.config,
            {name: {which: jnp.asarray(x[i], dtype) for which, x in pair.items()} for name, pair in adapter.weights.items()},
        )
        for i in range(L)
    )


def bucket(length: int, longest: int) -> int:
    """The padded length of a row: 32, 48, 64, 96, 128, 192, ... at most `longest`."""
    size = SHORTEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return min(size, longest)
