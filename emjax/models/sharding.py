"""Where each parameter is placed: one map from logical axes to mesh axes.

The decoder declares every parameter's logical axes; `RULES` maps each logical axis to one mesh
axis. A logical axis without a rule, or an unknown mesh axis, raises an error; nothing is replicated
by default.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emjax.errors import UserError
from emjax.models import decoder
from emjax.models.config import ModelConfig

AXES = ("data", "fsdp", "tensor")
RULES: dict[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "layers": None,
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of data x fsdp x tensor devices.

    The product must be the number of `devices` (default: all devices that are present).
    """
    devices = jax.devices() if devices is None else devices
    if data * fsdp * tensor != len(devices):
        raise UserError(
            f"config.mesh asks for {data} x {fsdp} x {tensor} = {data * fsdp * tensor} devices (data x fsdp x tensor), "
            f"but {len(devices)} are present. Make the product equal to the number of devices."
        )
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)


def check(config: ModelConfig, sizes: Mapping[str, int]) -> None:
    """Raises UserError if the model cannot be split evenly over a mesh of these sizes."""
    for axis, name in (("tensor", "H"), ("tensor", "K"), ("tensor", "F"), ("tensor", "V"), ("fsdp", "D")):
        if getattr(config, name) % sizes[axis]:
            what = {"H": "query heads", "K": "key/value heads", "F": "feed-forward width", "V": "vocabulary", "D": "width"}
            raise UserError(
                f"config.mesh.{axis} is {sizes[axis]}, but the model's {what[name]} ({getattr(config, name)}) cannot be split "
                "into as many equal parts. Choose a divisor."
            )


class Placed(NamedTuple):
    """One parameter on a mesh."""

    name: str
    shape: tuple[int, ...]
    spec: P
    total: int  # bytes
    device: int  # bytes on each device


def table(config: ModelConfig, dtype: str, sizes: Mapping[str, int]) -> list[Placed]:
    """Where every parameter would be placed on a mesh of these sizes, and its size there.

    Allocates nothing.
    """
    check(config, sizes)
    shapes, axes = decoder.abstract(config, dtype)
    specs = parameter_specs(axes)
    rows = []
    for (path, x), spec in zip(
        jax.tree.leaves_with_path(shapes), jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, P)), strict=True
    ):
        total = math.prod(x.shape) * x.dtype.itemsize
        parts = math.prod(sizes[axis] for axis in spec if axis is not None)
        rows.append(Placed(".".join(key.key for key in path), x.shape, spec, total, total // parts))
    return rows


def parameter_specs(axes: Any) -> Any:
    """Maps the tree of logical axes to the tree of PartitionSpecs."""

    def spec(names: tuple[str | None, ...]) -> P:
        missing = [name for name in names if name is not None and name not in RULES]
        if missing:
            raise ValueError(f"no sharding rule for the logical axis {missing[0]!r}")
        return P(*(None if name is None else RULES[name] for name in names))

    return jax.tree.map(spec, axes, is_leaf=lambda x: isinstance(x, tuple))


def shardings(mesh: Mesh, specs: Any) -> Any:
    """The shardings in the form in which a jitted function returns them.

    That form has no axes of size 1 and no trailing None.
    """

    def sharding(spec: P) -> NamedSharding:
        axes = [axis if axis is not None and mesh.shape[axis] > 1 else None for axis in spec]
        while axes and axes[-1] is None:
            axes.pop()
        return NamedSharding(mesh, P(*axes))

    return jax.tree.map(sharding, specs, is_leaf=lambda x: isinstance(x, P))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Shards the rows of a batch over data and fsdp together."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Puts a tree of host arrays onto the devices.

    Each process sends only what its own devices hold. device_put would first gather the processes'
    copies to compare them.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), tree)
