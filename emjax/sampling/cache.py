"""The sampler's state on the device: weights and caches by layer, and the state of every slot."""

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

KEPT_FREE = 0.25  # share of free memory kept for logits, activations and what prefill gathers
# Beyond some hundred rows a step is compute-bound, and more rows only make it slower.
MOST_SLOTS = 1024
CPU_SLOTS = 64
Cache = tuple[jax.Array, jax.Array]  # keys and values of one layer, each [slots, K, S, h]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The state of every slot.

    Its arrays are JAX's on the device, and NumPy's for rows that are about to start. The newest
    token (at first the prompt's last) is not in the cache yet.
    """

    active_B: Any
    length_B: Any  # positions in the cache
    count_B: Any  # tokens drawn
    limit_B: Any  # maximum tokens to draw
    token_B: Any  # the newest token
    rows: Rows


def host_state(slots: int) -> State:
    """A state of zeros, in NumPy."""

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
    """The number of slots of `length` positions that fit in memory.

    Applies `slots_in` to the free memory of the device that has least. Devices that do not report
    their memory (CPUs) get CPU_SLOTS.
    """
    stats = [device.memory_stats() for device in (jax.local_devices() if mesh is None else mesh.local_devices)]
    free = min(s["bytes_limit"] - s["bytes_in_use"] for s in stats) if all(stats) else None
    slots = slots_in(free, config, length, dtype, mesh)
    return int(multihost_utils.process_allgather(np.int32(slots)).min())


def slots_in(free: int | None, config: ModelConfig, length: int, dtype: Any, mesh: Mesh | AbstractMesh | None) -> int:
    """The number of slots that fit if each device has `free` bytes.

    It is a multiple of data x fsdp, and at most MOST_SLOTS. The rule: (1 - KEPT_FREE) of the free
    memory, divided by a slot's bytes on a device. Raises UserError if no slot fits.
    """
    rows, heads = (1, 1) if mesh is None else (mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"])
    one = slot_bytes(config, length, dtype, heads)
    slots = CPU_SLOTS if free is None else int((1 - KEPT_FREE) * free) // one * rows
    slots = min(slots, MOST_SLOTS) // rows * rows
    if not slots:
        raise UserError(
            f"config.engine.slots = 0 takes as many slots as fit in free memory, but not one slot of {length} positions "
            f"({one / 2**30:.2f} GiB per device) fits beside the weights. Reduce config.engine.cache_length."
        )
    return slots


def slot_bytes(config: ModelConfig, length: int, dtype: Any, tensor: int) -> int:
    """Bytes of one slot on each of the `tensor` devices that share it."""
    return 2 * config.L * config.K * config.h * length * jnp.dtype(dtype).itemsize // tensor


def check_spread(config: ModelConfig, slots: int, mesh: Mesh | None) -> None:
    """Raises UserError if slots or heads cannot be split evenly over the mesh."""
    if mesh is not None and (slots % (mesh.shape["data"] * mesh.shape["fsdp"]) or config.K % mesh.shape["tensor"]):
        raise UserError(
            f"The sampler's {slots} slots and the model's {config.K} key/value heads cannot be split over "
            f"the mesh {dict(mesh.shape)}: slots must be a multiple of data x fsdp, and heads a multiple of tensor."
        )


def empty_caches(config: ModelConfig, slots: int, length: int, dtype: Any, mesh: Mesh | None) -> tuple[Cache, ...]:
    shape = (slots, config.K, length, config.h)
    check_spread(config, slots, mesh)
    zeros = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=None if mesh is None else cache_sharding(mesh))
    return tuple((zeros(), zeros()) for _ in range(config.L))


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """The caches' sharding, in the form in which programs return it.

    Slots are sharded like a batch, kv heads like the weights that produce them.
    """
    rows = tuple(axis for axis in ("data", "fsdp") if mesh.shape[axis] > 1)
    heads = "tensor" if mesh.shape["tensor"] > 1 else None
    axes = [rows[0] if len(rows) == 1 else rows or None, heads]
    while axes and axes[-1] is None:
        axes.pop()
    return NamedSharding(mesh, P(*axes))


def spread(caches: Any, mesh: Mesh | None) -> Any:
    """Under jit: constrains caches to their sharding.

    So a program returns them as the next one expects.
    """
    return caches if mesh is None else jax.lax.with_sharding_constraint(caches, cache_sharding(mesh))


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Under jit: replicates a tree on every device."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


Groups = tuple[tuple[str, ...], ...]
TOGETHER: Groups = (("q", "k", "v"), ("gate", "up"))  # matrices of a layer with the same input


def groups() -> Groups:
    """The matrices that are kept side by side.

    Reading weights bounds a decode step, and one large product reads faster than several small
    ones. On a CPU, where products have other sizes and nothing is gained, the matrices stay
    separate. The two forms differ by rounding.
    """
    return () if jax.default_backend() == "cpu" else TOGETHER


def join(config: ModelConfig, layers: Params | tuple[Params, ...], mesh: Mesh | None, groups: Groups) -> tuple[Params, ...]:
    """Stacked layers {name: [L, ...]}, or L separate layers -> L separate layers.

    The matrices of `groups` are side by side in the result (see lora.linears). Layers that already
    have this form are returned unchanged.
    """
    if not isinstance(layers, tuple):
        return tuple(_layer(config, mesh, groups, layers, np.int32(i)) for i in range(config.L))
    if all(joined(names) in layers[0] for names in groups):
        return layers
    return tuple(_layer(config, mesh, groups, layer, None) for layer in layers)


@functools.partial(jax.jit, static_argnames=("config", "mesh", "groups"))
def _layer(config: ModelConfig, mesh: Mesh | None, groups: Groups, layers: Params, i: jax.Array | None) -> Params:
    """Layer i of stacked layers, or, if i is None, one separate layer."""
    layer = {name: x if i is None else x[i] for name, x in layers.items()}
    parts = 1 if mesh is None else mesh.shape["tensor"]
    for names in groups:
        for last in ("", "_bias"):
            if names[0] + last in layer:
                apart = [layer.pop(name + last) for name in names]
                layer[joined(names) + last] = jnp.concatenate([x.reshape(*x.shape[:-1], parts, -1) for x in apart], axis=-1)
    return layer if mesh is None else jax.lax.with_sharding_constraint(layer, placement(config, mesh, groups))


def placement(config: ModelConfig, mesh: Mesh, groups: Groups) -> dict[str, NamedSharding]:
    """The sharding of each weight of a joined layer."""
    axes = {name: axes[1:] for name, axes in decoder.abstract(config, "float32")[1]["layers"].items()}
    for names in groups:
        for last in ("", "_bias"):
            if names[0] + last in axes:
                axes[joined(names) + last] = [axes.pop(name + last) for name in names][0]
    return sharding.shardings(mesh, sharding.parameter_specs(axes))


def join_adapter(config: ModelConfig, adapter: Adapter, dtype: Any, mesh: Mesh | None, groups: Groups) -> tuple[Adapter, ...]:
    """Each layer's adapter, joined like the weights and cast once to the dtype that it is used in.

    Where matrices are side by side, so are their As, and their Bs are blocks on a diagonal: two
    products in all.
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
    """Under jit: copies block `block` of slot `source` into slot `to`, N times.

    Copies to a slot beyond the last are dropped. All destinations must differ.
    """

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
    """Under jit: writes R chunks into their blocks, and reads the slots of the chunks.

    Returns (the cache, the first `reach` positions of each chunk's slot). Several chunks may belong
    to one slot: all are written before any is read. On a mesh every device has the same number of
    chunks, for its own slots, and `slot` counts from the first of these, so no data is sent. Chunks
    that only pad a call have distinct slots beyond the last; their writes are dropped. The places
    are declared unique, because a GPU in deterministic mode would otherwise write them one by one.
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
    """The numbers of cache positions that a chunk may attend to.

    They are 8 chunks, 16, 32, ..., the whole cache. A chunk uses the smallest one that covers its
    end, so only its own position determines what it reads.
    """
    positions = [8 * chunk]
    while positions[-1] < length:
        positions.append(2 * positions[-1])
    return (*positions[:-1], length)
