"""What the sampler keeps on the device: weights and caches layer by layer, and the state of every slot."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emjax.errors import UserError
from emjax.models import decoder, sharding
from emjax.models.config import ModelConfig
from emjax.models.decoder import Params
from emjax.models.lora import Adapter, joined, shapes
from emjax.sampling.processors import Rows

KEPT_FREE = 0.25  # of the free memory: logits, activations and what prefill gathers
MOST_SLOTS = 1024  # beyond some hundred rows a step is bound by arithmetic and rows only get slower
CPU_SLOTS = 64
Cache = tuple[jax.Array, jax.Array]  # keys and values of one layer, each [slots, K, S, h]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Of every slot: jax's arrays on the device, numpy's for rows that are about to start.

    The newest token (at first the prompt's last) is not in the cache yet.
    """

    active_B: Any
    length_B: Any  # positions in the cache
    count_B: Any  # tokens drawn
    limit_B: Any  # tokens to draw at most
    token_B: Any  # the newest
    rows: Rows


def host_state(slots: int) -> State:
    """All zero, in numpy."""

    def zeros(dtype: Any, *shape: int) -> np.ndarray:
        return np.zeros((slots, *shape), dtype)

    i32, f32 = np.int32, np.float32
    rows = Rows(zeros(f32), zeros(f32), zeros(f32), zeros(i32), zeros(i32), zeros(np.uint32, 2))
    return State(zeros(bool), zeros(i32), zeros(i32), zeros(i32), zeros(i32), rows)


def empty_state(slots: int, mesh: Mesh | None) -> State:
    def zeros() -> State:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), host_state(slots))

    return jax.jit(zeros, out_shardings=None if mesh is None else NamedSharding(mesh, P()))()


def free_slots(config: ModelConfig, length: int, dtype: Any, mesh: Mesh | None) -> int:
    """How many slots of `length` positions fit: `slots_in` of the memory that is free now on the device that has least.

    Devices that do not tell their memory (CPUs) get CPU_SLOTS.
    """
    stats = [device.memory_stats() for device in (jax.local_devices() if mesh is None else mesh.local_devices)]
    free = min(s["bytes_limit"] - s["bytes_in_use"] for s in stats) if all(stats) else None
    slots = slots_in(free, config, length, dtype, mesh)
    return int(multihost_utils.process_allgather(np.int32(slots)).min())


def slots_in(free: int | None, config: ModelConfig, length: int, dtype: Any, mesh: Mesh | AbstractMesh | None) -> int:
    """How many slots fit where each device has `free` bytes: a multiple of data x fsdp, at most MOST_SLOTS.

    The rule: (1 - KEPT_FREE) of the free memory, divided by a slot's bytes on a device. Raises UserError where none fits.
    """
    rows, heads = (1, 1) if mesh is None else (mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"])
    one = slot_bytes(config, length, dtype, heads)
    slots = CPU_SLOTS if free is None else int((1 - KEPT_FREE) * free) // one * rows
    slots = min(slots, MOST_SLOTS) // rows * rows
    if not slots:
        raise UserError(
            f"config.sampling.slots = 0 takes them from the free memory, but not one slot of {length} positions "
            f"({one / 2**30:.2f} GiB a device) fits beside the weights. Shorten config.sampling.cache_length."
        )
    return slots


def slot_bytes(config: ModelConfig, length: int, dtype: Any, tensor: int) -> int:
    """Of one slot on each of the `tensor` devices that share it."""
    return 2 * config.L * config.K * config.h * length * jnp.dtype(dtype).itemsize // tensor


def check_spread(config: ModelConfig, slots: int, mesh: Mesh | None) -> None:
    """Raises UserError where slots or heads cannot be cut evenly over the mesh."""
    if mesh is not None and (slots % (mesh.shape["data"] * mesh.shape["fsdp"]) or config.K % mesh.shape["tensor"]):
        raise UserError(
            f"The sampler's {slots} slots and the model's {config.K} key/value heads cannot be split over "
            f"the mesh {dict(mesh.shape)}: slots must be a multiple of data x fsdp, the heads one of tensor."
        )


def empty_caches(config: ModelConfig, slots: int, length: int, dtype: Any, mesh: Mesh | None) -> tuple[Cache, ...]:
    shape = (slots, config.K, length, config.h)
    check_spread(config, slots, mesh)
    zeros = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=None if mesh is None else cache_sharding(mesh))
    return tuple((zeros(), zeros()) for _ in range(config.L))


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Slots are spread like a batch, kv heads like the weights that make them; in the form in which programs return it."""
    rows = tuple(axis for axis in ("data", "fsdp") if mesh.shape[axis] > 1)
    heads = "tensor" if mesh.shape["tensor"] > 1 else None
    axes = [rows[0] if len(rows) == 1 else rows or None, heads]
    while axes and axes[-1] is None:
        axes.pop()
    return NamedSharding(mesh, P(*axes))


def spread(caches: Any, mesh: Mesh | None) -> Any:
    """Under jit: holds caches to their sharding, so that a program returns them as the next one expects."""
    return caches if mesh is None else jax.lax.with_sharding_constraint(caches, cache_sharding(mesh))


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Under jit: holds all of a tree on every device."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


Groups = tuple[tuple[str, ...], ...]
TOGETHER: Groups = (("q", "k", "v"), ("gate", "up"))  # the matrices that a layer multiplies one input with


def groups() -> Groups:
    """The matrices that stand side by side.

    A decode step is bound by how fast weights are read, and one large product reads faster than several small ones. On a CPU,
    where products are of other sizes and nothing is gained, each stands alone; the two forms differ by rounding.
    """
    return () if jax.default_backend() == "cpu" else TOGETHER


def join(config: ModelConfig, layers: Params | tuple[Params, ...], mesh: Mesh | None, groups: Groups) -> tuple[Params, ...]:
    """{name: [L, ...]}, or L layers apart -> L layers apart, with the matrices of `groups` side by side (see lora.linears).

    Layers in that form pass through.
    """
    if not isinstance(layers, tuple):
        return tuple(_layer(config, mesh, groups, layers, np.int32(i)) for i in range(config.L))
    if all(joined(names) in layers[0] for names in groups):
        return layers
    return tuple(_layer(config, mesh, groups, layer, None) for layer in layers)


@functools.partial(jax.jit, static_argnames=("config", "mesh", "groups"))
def _layer(config: ModelConfig, mesh: Mesh | None, groups: Groups, layers: Params, i: jax.Array | None) -> Params:
    """Layer i of stacked ones, or (i = None) a layer by itself."""
    layer = {name: x if i is None else x[i] for name, x in layers.items()}
    parts = 1 if mesh is None else mesh.shape["tensor"]
    for names in groups:
        for last in ("", "_bias"):
            if names[0] + last in layer:
                apart = [layer.pop(name + last) for name in names]
                layer[joined(names) + last] = jnp.concatenate([x.reshape(*x.shape[:-1], parts, -1) for x in apart], axis=-1)
    return layer if mesh is None else jax.lax.with_sharding_constraint(layer, placement(config, mesh, groups))


def placement(config: ModelConfig, mesh: Mesh, groups: Groups) -> dict[str, NamedSharding]:
    """Of each weight of a joined layer."""
    axes = {name: axes[1:] for name, axes in decoder.abstract(config, "float32")[1]["layers"].items()}
    for names in groups:
        for last in ("", "_bias"):
            if names[0] + last in axes:
                axes[joined(names) + last] = [axes.pop(name + last) for name in names][0]
    return sharding.shardings(mesh, sharding.parameter_specs(axes))


def join_adapter(config: ModelConfig, adapter: Adapter, dtype: Any, mesh: Mesh | None, groups: Groups) -> tuple[Adapter, ...]:
    """The adapter of each layer, joined like the weights and cast once to the dtype it is used in.

    Where matrices stand side by side, the As do too, and the Bs stand on a diagonal of blocks: two products in all.
    """
    parts, dtype = 1 if mesh is None else mesh.shape["tensor"], jnp.dtype(dtype)
    return tuple(
        Adapter(adapter.config, _adapter_layer(config, parts, groups, dtype, adapter.weights, np.int32(i)))
        for i in range(config.L)
    )


@functools.partial(jax.jit, static_argnames=("config", "parts", "groups", "dtype"))
def _adapter_layer(
    config: ModelConfig, parts: int, groups: Groups, dtype: Any, weights: dict[str, Any], i: jax.Array
) -> dict[str, Any]:
    layer = {name: {which: x[i].astype(dtype) for which, x in pair.items()} for name, pair in weights.items()}
    for names in groups:
        pairs = {name: layer.pop(name) for name in names if name in layer}
        if not pairs:
            continue
        ranks = [pair["A"].shape[1] for pair in pairs.values()]
        columns = []
        for name in names:
            blocks = [
                pair["B"] if name == of else jnp.zeros((rank, shapes(config)[name][1]), dtype)
                for (of, pair), rank in zip(pairs.items(), ranks, strict=True)
            ]
            columns.append(jnp.concatenate(blocks).reshape(sum(ranks), parts, -1))
        layer[joined(names)] = {
            "A": jnp.concatenate([pair["A"] for pair in pairs.values()], axis=1),
            "B": jnp.concatenate(columns, axis=-1).reshape(sum(ranks), -1),
        }
    return layer


def copy(caches: Any, chunk: int, source_N: jax.Array, to_N: jax.Array, block_N: jax.Array, mesh: Mesh | None) -> Any:
    """Under jit: block `block` of slot `source` into slot `to`, N times; those to a slot beyond the last are dropped. No two
    go to one place."""

    def one(x_BxKxSxh: jax.Array) -> jax.Array:
        x_BxKxnxCxh = blocks(x_BxKxSxh, chunk)
        x_BxKxnxCxh = x_BxKxnxCxh.at[to_N, :, block_N].set(x_BxKxnxCxh[source_N, :, block_N], mode="drop", unique_indices=True)
        return spread(x_BxKxnxCxh.reshape(x_BxKxSxh.shape), mesh)

    return jax.tree.map(one, caches)


def write_and_read(
    cache: Cache,
    k_RxCxKxh: jax.Array,
    v_RxCxKxh: jax.Array,
    slot_R: jax.Array,
    block_R: jax.Array,
    reach: int,
    mesh: Mesh | None,
) -> tuple[Cache, Cache]:
    """Under jit: puts R chunks into their blocks and gives (the cache, the first `reach` positions of each chunk's slot).

    Several chunks may be of one slot: all are written before any is read. On a mesh every device has as many chunks as
    others, of its own slots, and `slot` counts from the first of these, so that nothing is sent. Chunks that only fill a
    call up have slots beyond the last, each another; their writes are dropped. Were places not said to be unique, a GPU that
    must repeat its bits would write one after the other.
    """
    C = k_RxCxKxh.shape[1]

    def local(
        x_BxKxSxh: jax.Array, new_RxCxKxh: jax.Array, slot_R: jax.Array, block_R: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        _, K, _, h = x_BxKxSxh.shape
        at = blocks(x_BxKxSxh, C).at[slot_R, :, block_R]
        x_BxKxnxCxh = at.set(new_RxCxKxh.swapaxes(1, 2), mode="drop", unique_indices=True)
        read = x_BxKxnxCxh.at[slot_R, :, : reach // C].get(mode="clip").reshape(len(slot_R), K, reach, h)
        return x_BxKxnxCxh.reshape(x_BxKxSxh.shape), read

    if mesh is not None:
        rows, heads = P(("data", "fsdp")), P(("data", "fsdp"), "tensor")
        inputs = (heads, P(("data", "fsdp"), None, "tensor"), rows, rows)
        local = jax.shard_map(local, mesh=mesh, in_specs=inputs, out_specs=(heads, heads))
    (k, k_read), (v, v_read) = (
        local(old, new, slot_R, block_R) for old, new in zip(cache, (k_RxCxKxh, v_RxCxKxh), strict=True)
    )
    return (spread(k, mesh), spread(v, mesh)), (k_read, v_read)


def blocks(x_BxKxSxh: jax.Array, chunk: int) -> jax.Array:
    """[B, K, S, h] -> [B, K, S / chunk, chunk, h]: the same bytes, on the absolute grid."""
    B, K, S, h = x_BxKxSxh.shape
    return x_BxKxSxh.reshape(B, K, S // chunk, chunk, h)


def reaches(chunk: int, length: int) -> tuple[int, ...]:
    """How many cache positions a chunk may attend to: 8 chunks, 16, 32, ..., the whole cache.

    A chunk takes the first that holds its end, so what it reads follows from its own position alone.
    """
    found = [8 * chunk]
    while found[-1] < length:
        found.append(2 * found[-1])
    return (*found[:-1], length)
