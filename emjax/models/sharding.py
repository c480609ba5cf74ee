"""Where each parameter lives: logical axes -> mesh axes, in one map.

The decoder's declaration gives every parameter its logical axes; `RULES` maps each of them to one mesh axis. A logical
axis without a rule, or an unknown mesh axis, raises; nothing is replicated by default.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emjax.errors import UserError

AXES = ("data", "fsdp", "tensor")
RULES: dict[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "layers": None,
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over data x fsdp x tensor devices, which must be exactly the devices there are."""
    if data * fsdp * tensor != jax.device_count():
        raise UserError(
            f"config.mesh asks for {data} x {fsdp} x {tensor} = {data * fsdp * tensor} devices (data x fsdp x tensor), "
            f"but {jax.device_count()} are present. Make the product equal to the number of devices."
        )
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def parameter_specs(axes: Any) -> Any:
    """The tree of logical axes -> the tree of PartitionSpecs."""

    def spec(names: tuple[str | None, ...]) -> P:
        missing = [name for name in names if name is not None and name not in RULES]
        if missing:
            raise ValueError(f"no sharding rule for the logical axis {missing[0]!r}")
        return P(*(None if name is None else RULES[name] for name in names))

    return jax.tree.map(spec, axes, is_leaf=lambda x: isinstance(x, tuple))


def shardings(mesh: Mesh, specs: Any) -> Any:
    """In the form in which a jitted function returns them: without axes of size 1 and without trailing None."""

    def sharding(spec: P) -> NamedSharding:
        axes = [axis if axis is not None and mesh.shape[axis] > 1 else None for axis in spec]
        while axes and axes[-1] is None:
            axes.pop()
        return NamedSharding(mesh, P(*axes))

    return jax.tree.map(sharding, specs, is_leaf=lambda x: isinstance(x, P))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are spread over data and fsdp together."""
    return NamedSharding(mesh, P(("data", "fsdp")))
