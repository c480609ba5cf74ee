"""The training state: the trainable tree, the optimizer's moments and the step. The frozen base is
not part of it."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emjax.models import decoder, lora, sharding
from emjax.models.config import ModelConfig
from emjax.models.lora import Adapter, LoraConfig

State = dict[str, Any]  # {"trainable", "opt", "step"}


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The static half of a training step: which tree is trained, and how the forward pass runs."""

    config: ModelConfig
    lora: LoraConfig | None  # None: full fine-tuning, the base is the trainable tree
    implementation: str = "xla"
    remat: str = "none"
    mesh: Mesh | None = None
    seed: int = 0  # of LoRA dropout
    # The base's dtype. Trained weights are kept in float32 and cast to it for the forward pass.
    dtype: str = "float32"

    def assemble(
        self, trainable: Any, frozen: Any, dropout: tuple[jax.Array, jax.Array] | None = None
    ) -> tuple[Any, Adapter | None]:
        """(params, adapter) for the forward pass. `dropout`: in training, the key and each row's
        number in its batch."""
        if self.lora is None:
            return cast(trainable, self.dtype), None
        adapter = Adapter(self.lora, trainable)
        return frozen, lora.with_dropout(adapter, *dropout) if dropout else adapter

    def dropout_key(self, step: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.seed), step)

    @property
    def forward(self) -> dict[str, Any]:
        """Arguments of a differentiated pass."""
        return {"implementation": self.implementation, "remat": self.remat, "mesh": self.mesh}

    @property
    def scoring(self) -> dict[str, Any]:
        """Arguments of a pass without gradient."""
        return {"implementation": self.implementation, "mesh": self.mesh}


def cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def create(trainable: Any, optimizer: optax.GradientTransformation, tuning: Tuning) -> State:
    """The state of step 0. Weights and moments are float32 whatever the base's dtype: bfloat16
    would lose an update smaller than 1/256 of its weight."""
    found = {str(x.dtype) for x in jax.tree.leaves(trainable)}
    if tuning.lora is None and found != {tuning.dtype}:
        raise ValueError(f"the base is {', '.join(sorted(found))}, but Tuning.dtype is {tuning.dtype}")
    # Copy: the step donates its state, and the caller may keep using the trainable tree as a model.
    trainable = jax.tree.map(lambda x: jnp.array(x, jnp.float32), trainable)
    return _placed({"trainable": trainable, "opt": optimizer.init(trainable), "step": jnp.zeros((), jnp.int32)}, tuning)


def apply(
    state: State, grads: Any, optimizer: optax.GradientTransformation, learning_rate: jax.Array, tuning: Tuning
) -> tuple[State, jax.Array]:
    """(next state, global norm of the gradients before clipping)."""
    norm = optax.tree.norm(grads)
    updates, opt = optimizer.update(grads, state["opt"], state["trainable"])
    updates = jax.tree.map(lambda u: learning_rate * u, updates)
    trainable = optax.apply_updates(state["trainable"], updates)
    return _placed({"trainable": trainable, "opt": opt, "step": state["step"] + 1}, tuning), norm


def _placed(state: State, tuning: Tuning) -> State:
    """The state with explicit shardings. Without them the compiler might return other shardings
    than it was given and recompile the next step, and a restored state on one device would not
    match a base spread over several."""
    return state if tuning.mesh is None else jax.lax.with_sharding_constraint(state, placement(state, tuning))


def placement(state: State, tuning: Tuning) -> Any:
    """The shardings of a state on tuning.mesh. A trained base and its moments are sharded like the
    base; everything else (an adapter, counters) is replicated."""
    assert tuning.mesh is not None
    wanted = {}
    if tuning.lora is None:
        _, axes = decoder.abstract(tuning.config, "float32")
        placed = sharding.shardings(tuning.mesh, sharding.parameter_specs(axes))
        wanted = {tuple(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(placed)}
    everywhere = NamedSharding(tuning.mesh, P())

    def place(path: Any, _: Any) -> NamedSharding:
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))[1:]
        return wanted[names] if wanted and names else everywhere

    return jax.tree_util.tree_map_with_path(place, state)


def accumulate(
    value_and_grad: Callable[[Any, Any], tuple[tuple[jax.Array, Any], Any]],
    trainable: Any,
    batch: Any,
    count: int,
) -> Any:
    """Sums value_and_grad(trainable, microbatch) over `count` equal slices of the batch's rows,
    with gradient sums in float32.

    `value_and_grad` must return sums, never means, so that the result does not depend on `count`.
    Aux arrays are per row and are returned in the batch's order.
    """
    if count == 1:
        (value, aux), grads = value_and_grad(trainable, batch)
        return value, aux, grads
    micro = split(batch, count)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trainable)

    def body(carry: tuple[jax.Array, Any], part: Any) -> tuple[tuple[jax.Array, Any], Any]:
        (value, aux), grads = value_and_grad(trainable, part)
        total, sums = carry
        return (total + value, jax.tree.map(lambda s, g: s + g.astype(jnp.float32), sums, grads)), aux

    (value, grads), aux = jax.lax.scan(body, (jnp.zeros(()), zeros), micro)
    return value, join(aux), grads


def join(aux: Any) -> Any:
    """The inverse of `split`: [count, B / count, ...] -> [B, ...]."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), aux)


def split(batch: Any, count: int) -> Any:
    """[B, ...] -> [count, B / count, ...]. Slices are strided, so each one still spreads over all
    data shards."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch)


@jax.jit
def _sums(tree: Any) -> list[jax.Array]:
    def one(x: jax.Array) -> jax.Array:
        bits = (
            jax.lax.bitcast_convert_type(x, jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint32).astype(jnp.uint32).reshape(-1)
        )
        odd = jax.lax.iota(jnp.uint32, bits.size) * np.uint32(2654435769) | np.uint32(1)
        return jnp.stack([(bits * odd).sum(dtype=jnp.uint32), ((bits ^ bits >> 15) * (odd + 2)).sum(dtype=jnp.uint32)])

    return [one(x) for x in jax.tree.leaves(tree)]


def checksum(tree: Any, *about: Any) -> str:
    """A checksum of every value, name and shape. It is computed on the devices from integer sums,
    so it does not depend on the sharding."""
    names = [(jax.tree_util.keystr(path), x.shape, str(x.dtype)) for path, x in jax.tree.leaves_with_path(tree)]
    sums = [x.tolist() for x in jax.device_get(_sums(tree))]
    return hashlib.sha256(repr((names, sums, *about)).encode()).hexdigest()
