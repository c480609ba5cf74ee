"""Loads checkpoints, and saves them as Hugging Face directories."""

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from emjax.errors import UserError
from emjax.models import decoder, files, peft, sharding
from emjax.models.config import ModelConfig
from emjax.models.decoder import Params
from emjax.models.language_model import LanguageModel
from emjax.models.lora import TARGETS
from emjax.models.source import Source, open_source

# --- names ---------------------------------------------------------------------------------------

_TOP = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
_TRANSPOSED = {*TARGETS, "head"}  # torch keeps linear weights as [out, in]
_SHARD_BYTES = 5 * 10**9


def _tensor_names(config: ModelConfig, shapes_tree: Params) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yields (path in our tree, the checkpoint's tensor names): one name, or one per layer."""
    for name in shapes_tree:
        if name != "layers":
            yield (name,), [_TOP[name]]
    for name in shapes_tree["layers"]:
        yield ("layers", name), [f"model.layers.{i}.{files.LAYER[name]}" for i in range(config.L)]


# --- loading ------------------------------------------------------------------------------------


def load(
    path: str | Path | Source, *, adapter: str | Path | None = None, mesh: Mesh | None = None, dtype: str = "bfloat16"
) -> LanguageModel:
    """Loads a Hugging Face directory, a GGUF file or a hub id, and a PEFT adapter directory if one
    is given.

    Raises UserError for a missing directory, an unsupported architecture or field, and tensors that
    are missing, surplus or of the wrong shape.
    """
    source = open_source(path) if isinstance(path, str | Path) else path
    raw, generation = source.config(), source.generation()
    config = ModelConfig.from_hf(raw, source.config_file)
    if mesh is not None:
        sharding.check(config, mesh.shape)
    tokenizer, eos_ids = source.tokenizer(), _eos_ids(source, raw, generation)
    if adapter is not None:
        tokenizer, eos_ids = peft.own_template(adapter, tokenizer, eos_ids)
    return LanguageModel(
        config=config,
        params=_load_params(source, config, mesh, dtype),
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        adapter=None if adapter is None else peft.load_adapter(adapter, config, mesh, base=source.name),
        source=source.name,
        revision=source.revision,
        generation=generation,
        mesh=mesh,
    )


def _load_params(source: Source, config: ModelConfig, mesh: Mesh | None, dtype: str) -> Params:
    """Streams the checkpoint tensor by tensor, each straight to its devices.

    The host never holds more than one tensor, and only the parts that this process's devices need.
    """
    wanted, axes = decoder.abstract(config, dtype)
    specs = sharding.parameter_specs(axes)
    places = {name: (keys, layer) for keys, names in _tensor_names(config, wanted) for layer, name in enumerate(names)}
    params: Params = {"layers": {}}
    for name, shape in wanted["layers"].items():
        params["layers"][name] = _zeros(shape.shape, shape.dtype, _on(mesh, specs["layers"][name]))
    left = dict(places)
    for file, handle in source.handles():
        for name in handle.keys():  # noqa: SIM118 - a handle is not a dict
            if name not in left:
                problem = "occurs twice" if name in places else "is not called for by config.json"
                raise UserError(
                    f"{file}: the tensor {name!r} {problem}. The checkpoint belongs to another architecture or "
                    "configuration; fetch it again."
                )
            keys, layer = left.pop(name)
            stored = _checked(handle.get_slice(name), keys, wanted, f"{file}: the tensor {name!r}")
            spec = specs["layers"][keys[1]] if keys[0] == "layers" else specs[keys[0]]
            spec = P(*spec[1:]) if keys[0] == "layers" else spec
            transposed = keys[-1] in _TRANSPOSED
            tensor = _to_devices(stored, mesh, P(*spec[::-1]) if transposed else spec)
            if keys[0] == "layers":
                stack = params["layers"][keys[1]]
                params["layers"][keys[1]] = _put(stack, tensor, layer, transposed=transposed, on=stack.sharding)
            else:
                params[keys[0]] = _cast(tensor, wanted[keys[0]].dtype, transposed=transposed, on=_on(mesh, spec))
            jax.block_until_ready(tensor)
            del tensor  # this also frees its copy on the host
    if left:
        raise UserError(
            f"{source.path}: the tensor {next(iter(left))!r} that config.json calls for is missing from the checkpoint "
            f"({len(left)} of {len(places)} are missing). Fetch it again."
        )
    return params


def _on(mesh: Mesh | None, spec: P) -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0]) if mesh is None else NamedSharding(mesh, spec)


def _checked(source: Any, keys: tuple[str, ...], wanted: Params, what: str) -> Any:
    """Returns the tensor, still in its file.

    Raises UserError unless it has the right shape and holds plain floats.
    """
    shape = wanted["layers"][keys[1]].shape[1:] if keys[0] == "layers" else wanted[keys[0]].shape
    shape = shape[::-1] if keys[-1] in _TRANSPOSED else shape
    if tuple(source.get_shape()) != shape:
        raise UserError(f"{what} has shape {tuple(source.get_shape())}, but config.json calls for {shape}.")
    if source.get_dtype() not in ("BF16", "F16", "F32"):
        raise UserError(
            f"{what} is stored as {source.get_dtype()}, but emjax reads only BF16, F16 and F32. Use the checkpoint that is not "
            "quantised."
        )
    return source


def _to_devices(source: Any, mesh: Mesh | None, spec: P) -> jax.Array:
    """Reads a tensor from its file onto the devices.

    Reads each slice once, and only the slices that this process holds.
    """
    if mesh is None:
        return jax.device_put(source[:], jax.devices()[0])
    parts: dict[tuple[tuple[int | None, int | None], ...], np.ndarray] = {}

    def read(index: Any) -> np.ndarray:
        key = tuple((s.start, s.stop) for s in index)
        if key not in parts:
            parts[key] = source[index]
        return parts[key]

    return jax.make_array_from_callback(tuple(source.get_shape()), NamedSharding(mesh, spec), read)


@functools.partial(jax.jit, static_argnames=("dtype", "transposed", "on"))
def _cast(tensor: jax.Array, dtype: Any, *, transposed: bool, on: Any) -> jax.Array:
    return jax.lax.with_sharding_constraint((tensor.T if transposed else tensor).astype(dtype), on)


@functools.partial(jax.jit, static_argnames=("transposed", "on"), donate_argnames="stack")
def _put(stack: jax.Array, tensor: jax.Array, layer: int, *, transposed: bool, on: Any) -> jax.Array:
    tensor = (tensor.T if transposed else tensor).astype(stack.dtype)
    return jax.lax.with_sharding_constraint(jax.lax.dynamic_update_index_in_dim(stack, tensor, layer, 0), on)


def _zeros(shape: tuple[int, ...], dtype: Any, on: Any) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=on)()


def _eos_ids(source: Source, raw: dict[str, Any], generation: dict[str, Any]) -> tuple[int, ...]:
    """Every end-of-sequence id.

    Llama 3.1 has three, and only generation_config.json lists them all.
    """
    ids = generation.get("eos_token_id")
    ids = raw.get("eos_token_id") if ids is None else ids
    if ids is None:
        raise UserError(f"{source.path}: neither generation_config.json nor config.json names an eos_token_id; add one.")
    return tuple(ids) if isinstance(ids, list) else (int(ids),)


# --- saving -------------------------------------------------------------------------------------


def save(lm: LanguageModel, path: str | Path, *, card: str = "") -> None:
    """Writes a Hugging Face directory that transformers can load.

    The host holds one file's tensors at a time. With several processes, all call this function and
    process 0 writes. Raises ValueError if an adapter is still unmerged.
    """
    if lm.adapter is not None:
        raise ValueError("merge the adapter first (models.merge), or save it by itself (models.save_adapter)")
    first = jax.process_index() == 0
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    dtype = lm.params["embed"].dtype
    wanted, _ = decoder.abstract(lm.config, str(dtype))
    shards: list[dict[str, tuple[tuple[str, ...], int]]] = [{}]
    size = total = 0
    for keys, names in _tensor_names(lm.config, wanted):
        shape = wanted["layers"][keys[1]].shape[1:] if keys[0] == "layers" else wanted[keys[0]].shape
        nbytes = math.prod(shape) * dtype.itemsize
        for layer, name in enumerate(names):
            if size and size + nbytes > _SHARD_BYTES:
                shards.append({})
                size = 0
            shards[-1][name] = keys, layer
            size, total = size + nbytes, total + nbytes
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _to_host(lm, keys, layer) for name, (keys, layer) in shard.items()}
        if first:
            save_file(tensors, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if not first:
        return
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    ids = {"bos_token_id": lm.tokenizer.bos_token_id, "eos_token_id": list(lm.eos_ids)}
    (path / "config.json").write_text(json.dumps(lm.config.to_hf() | ids | {"dtype": str(dtype)}, indent=1))
    (path / "generation_config.json").write_text(json.dumps(ids, indent=1))
    lm.tokenizer.save_pretrained(path)
    (path / "README.md").write_text(files.card(card or f"Exported from {lm.source}."))


def _to_host(lm: LanguageModel, keys: tuple[str, ...], layer: int) -> np.ndarray:
    """One tensor in the checkpoint's layout.

    A collective operation if the model is sharded over several processes.
    """
    everywhere = _on(lm.mesh, P())
    value = lm.params["layers"][keys[1]] if keys[0] == "layers" else lm.params[keys[0]]
    picked = _pick(value, layer if keys[0] == "layers" else None, transposed=keys[-1] in _TRANSPOSED, on=everywhere)
    return np.asarray(picked)


@functools.partial(jax.jit, static_argnames=("transposed", "on"))
def _pick(value: jax.Array, layer: int | None, *, transposed: bool, on: Any) -> jax.Array:
    tensor = value if layer is None else jax.lax.dynamic_index_in_dim(value, layer, 0, keepdims=False)
    return jax.lax.with_sharding_constraint(tensor.T if transposed else tensor, on)


def merge(lm: LanguageModel) -> LanguageModel:
    """Adds the adapter to the base in float32: merging in bfloat16 would change the model."""
    if lm.adapter is None:
        return lm
    layers = dict(lm.params["layers"])
    for name, pair in lm.adapter.weights.items():
        delta = jnp.einsum("lir,lro->lio", pair["A"], pair["B"], precision="highest") * lm.adapter.config.scale
        layers[name] = layers[name].astype(jnp.float32) + delta
    params = jax.tree.map(lambda x: x.astype(jnp.float32), lm.params | {"layers": layers})
    return lm.replace(params=params, adapter=None)
