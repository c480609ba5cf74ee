"""Loads checkpoints, and saves them as Hugging Face directories."""

import functools
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from emjax.errors import UserError
from emjax.models import decoder, files, keys, peft, sharding
from emjax.models.config import ModelConfig
from emjax.models.decoder import Params
from emjax.models.language_model import LanguageModel
from emjax.models.lora import TARGETS
from emjax.models.source import INDEX, TEMPLATES, TOKENIZER, Source, open_source
from emjax.runtime import process
from emjax.runtime.numbers import integer

# --- names ---------------------------------------------------------------------------------------

_TOP = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
_TRANSPOSED = {*TARGETS, "head"}  # torch keeps linear weights as [out, in]
_SHARD_BYTES = 5 * 10**9
_ROWS = 1024  # of a table, read at a time
# What a folder may hold of an earlier checkpoint; transformers would read some of it before ours.
_CHECKPOINT = (
    "model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json",
    "config.json", "generation_config.json", "adapter_config.json", "adapter_model.*", *TOKENIZER,
)  # fmt: skip
Place = tuple[tuple[str, ...], int]  # path in our tree, layer


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
    if ignored := keys.ignored(raw):
        listed = ", ".join(f"{name} = {keys.shown(value)}" for name, value in ignored.items())
        process.note(f"{source.config_file}: ignored, as transformers does for this model_type: {listed}.")
    if mesh is not None:
        sharding.check(config, mesh.shape)
    tokenizer, eos_ids = source.tokenizer(), _eos_ids(source, raw, generation, config.V)
    _check_vocabulary(tokenizer, config, source)
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
    Names and shapes are checked before anything is allocated.
    """
    wanted, axes = decoder.abstract(config, dtype)
    specs = sharding.parameter_specs(axes)
    places: dict[str, Place] = {
        name: (path, layer) for path, names in _tensor_names(config, wanted) for layer, name in enumerate(names)
    }
    stored = _stored(source, places, wanted)
    params: Params = {"layers": {}}
    for name, shape in wanted["layers"].items():
        params["layers"][name] = _zeros(shape.shape, shape.dtype, _on(mesh, specs["layers"][name]))
    for _, handle in source.handles():
        for name in handle.keys():  # noqa: SIM118 - a handle is not a dict
            if name not in stored:
                continue
            path, layer = places[stored[name]]
            spec = specs["layers"][path[1]] if path[0] == "layers" else specs[path[0]]
            spec = P(*spec[1:]) if path[0] == "layers" else spec
            transposed = path[-1] in _TRANSPOSED
            tensor = _to_devices(handle.get_slice(name), mesh, P(*spec[::-1]) if transposed else spec)
            if path[0] == "layers":
                stack = params["layers"][path[1]]
                params["layers"][path[1]] = _put(stack, tensor, layer, transposed=transposed, on=stack.sharding)
            else:
                params[path[0]] = _cast(tensor, wanted[path[0]].dtype, transposed=transposed, on=_on(mesh, spec))
            jax.block_until_ready(tensor)
            del tensor  # this also frees its copy on the host
    return params


def _stored(source: Source, places: Mapping[str, Place], wanted: Params) -> dict[str, str]:
    """{the name of a stored tensor: the name under which config.json calls for it}.

    Raises UserError unless there is exactly one tensor of the right shape for each, and a head that
    is stored beside a tied table equals the table.
    """
    found: dict[str, str] = {}
    tied = _TOP["head"] not in places
    for file, handle in source.handles():
        for name in handle.keys():  # noqa: SIM118 - a handle is not a dict
            what = f"{file}: the tensor {name!r}"
            if name.endswith("rotary_emb.inv_freq"):
                continue  # it follows from config.json, but old trainers store it
            place = _TOP["embed"] if tied and name == _TOP["head"] else name
            if place not in places or name in found:
                problem = "occurs twice" if name in found else "is not called for by config.json"
                raise UserError(
                    f"{what} {problem}. The checkpoint belongs to another architecture or configuration; fetch it again."
                )
            _check(handle.get_slice(name), places[place][0], wanted, what)
            found[name] = place
    if _TOP["head"] in found and tied and _TOP["embed"] in found:
        _check_tied(source)
        del found[_TOP["head"]]
    if left := places.keys() - found.values():
        raise UserError(
            f"{source.path}: the tensor {min(left)!r} that config.json calls for is missing from the checkpoint "
            f"({len(left)} of {len(places)} are missing). Fetch it again."
        )
    return found


def _check_tied(source: Source) -> None:
    """Raises UserError unless the stored head equals the table to which config.json ties it."""
    contents = set()
    for _, handle in source.handles():
        for name in {_TOP["embed"], _TOP["head"]} & set(handle.keys()):
            tensor, content = handle.get_slice(name), hashlib.sha256()
            rows = tensor.get_shape()[0]
            for row in range(0, rows, _ROWS):
                content.update(np.asarray(tensor[row : min(rows, row + _ROWS)], np.float32).tobytes())
            contents.add(content.digest())
    if len(contents) > 1:
        raise UserError(
            f"{source.path}: config.json ties the output head to the embedding table, but {_TOP['head']!r} is stored with "
            f"other values than {_TOP['embed']!r}. transformers 5 uses the stored head, transformers 4 the table; "
            "set tie_word_embeddings to false for the former, or delete the tensor."
        )


def _check_vocabulary(tokenizer: Any, config: ModelConfig, source: Source) -> None:
    """Raises UserError for a token that has no row in the embedding table: JAX would read the last
    row in its place."""
    beyond = {text: id for text, id in tokenizer.get_vocab().items() if id >= config.V}
    if beyond:
        text = min(beyond, key=beyond.__getitem__)
        raise UserError(
            f"{source.path}: the tokenizer has ids up to {max(beyond.values())}, but the embedding table has {config.V} rows "
            f"(vocab_size): {len(beyond)} tokens have none, the first is {text!r} with id {beyond[text]}. Use the tokenizer "
            "that belongs to these weights, or resize the table with transformers (resize_token_embeddings)."
        )


def _on(mesh: Mesh | None, spec: P) -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0]) if mesh is None else NamedSharding(mesh, spec)


def _check(source: Any, path: tuple[str, ...], wanted: Params, what: str) -> None:
    """Raises UserError unless a tensor has the right shape and holds plain floats."""
    shape = wanted["layers"][path[1]].shape[1:] if path[0] == "layers" else wanted[path[0]].shape
    shape = shape[::-1] if path[-1] in _TRANSPOSED else shape
    if tuple(source.get_shape()) != shape:
        raise UserError(f"{what} has shape {tuple(source.get_shape())}, but config.json calls for {shape}.")
    if source.get_dtype() not in ("BF16", "F16", "F32"):
        raise UserError(
            f"{what} is stored as {source.get_dtype()}, but emjax reads only BF16, F16 and F32. Use the checkpoint that is not "
            "quantised."
        )


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


def _eos_ids(source: Source, raw: dict[str, Any], generation: dict[str, Any], V: int) -> tuple[int, ...]:
    """Every end-of-sequence id.

    Llama 3.1 has three, and only generation_config.json lists them all.
    """
    ids, file = generation.get("eos_token_id"), "generation_config.json"
    if ids is None:
        ids, file = raw.get("eos_token_id"), "config.json"
    if ids is None or ids == []:
        raise UserError(f"{source.path}: neither generation_config.json nor config.json names an eos_token_id; add one.")
    where = f"{source.path}: eos_token_id of {file}, a row of the embedding table,"
    return tuple(integer(one, where, low=0, high=V - 1) for one in (ids if isinstance(ids, list) else [ids]))


# --- saving -------------------------------------------------------------------------------------


def save(lm: LanguageModel, path: str | Path, *, card: str = "") -> None:
    """Writes a Hugging Face directory that transformers 4 and 5 can load.

    A checkpoint that the directory holds already is replaced once the new one is complete; other
    files stay. The host holds one file's tensors at a time. With several processes, all call this
    function and process 0 writes. Raises ValueError if an adapter is still unmerged.
    """
    if lm.adapter is not None:
        raise ValueError("merge the adapter first (models.merge), or save it by itself (models.save_adapter)")
    path = Path(path)
    new = path / ".new"
    if jax.process_index() == 0:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
    _save_weights(lm, new)
    if jax.process_index() != 0:
        return
    ids = {"bos_token_id": lm.tokenizer.bos_token_id, "eos_token_id": list(lm.eos_ids)}
    dtype = {"dtype": str(lm.params["embed"].dtype)}
    (new / "config.json").write_text(json.dumps(lm.config.to_hf() | ids | dtype, indent=1))
    (new / "generation_config.json").write_text(json.dumps({**lm.generation, **ids}, indent=1))
    lm.tokenizer.save_pretrained(new)
    (new / "README.md").write_text(files.card(card or f"Exported from {lm.source}."))
    for pattern in _CHECKPOINT:
        for old in path.glob(pattern):
            old.unlink()
    shutil.rmtree(path / TEMPLATES, ignore_errors=True)
    for file in new.iterdir():
        file.replace(path / file.name)
    new.rmdir()


def _save_weights(lm: LanguageModel, path: Path) -> None:
    dtype = lm.params["embed"].dtype
    wanted, _ = decoder.abstract(lm.config, str(dtype))
    shards: list[dict[str, Place]] = [{}]
    size = total = 0
    for leaf, names in _tensor_names(lm.config, wanted):
        shape = wanted["layers"][leaf[1]].shape[1:] if leaf[0] == "layers" else wanted[leaf[0]].shape
        nbytes = math.prod(shape) * dtype.itemsize
        for layer, name in enumerate(names):
            if size and size + nbytes > _SHARD_BYTES:
                shards.append({})
                size = 0
            shards[-1][name] = leaf, layer
            size, total = size + nbytes, total + nbytes
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _to_host(lm, place, layer) for name, (place, layer) in shard.items()}
        if jax.process_index() == 0:
            save_file(tensors, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1 and jax.process_index() == 0:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / INDEX).write_text(json.dumps(index, indent=1))


def _to_host(lm: LanguageModel, leaf: tuple[str, ...], layer: int) -> np.ndarray:
    """One tensor in the checkpoint's layout.

    A collective operation if the model is sharded over several processes.
    """
    everywhere = _on(lm.mesh, P())
    value = lm.params["layers"][leaf[1]] if leaf[0] == "layers" else lm.params[leaf[0]]
    picked = _pick(value, layer if leaf[0] == "layers" else None, transposed=leaf[-1] in _TRANSPOSED, on=everywhere)
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
