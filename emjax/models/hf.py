"""Loads and saves Hugging Face checkpoint directories and tokenizers. No pickle, no remote code."""

import functools
import hashlib
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
from emjax.models import decoder, files, sharding
from emjax.models.config import ModelConfig, read_config
from emjax.models.decoder import Params
from emjax.models.language_model import LanguageModel
from emjax.models.lora import TARGETS
from emjax.models.peft import load_adapter

# --- names ---------------------------------------------------------------------------------------

_TOP = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
_TRANSPOSED = {*TARGETS, "head"}  # torch keeps linear weights as [out, in]
_SHARD_BYTES = 5 * 10**9
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def _tensor_names(config: ModelConfig, shapes_tree: Params) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yields (path in our tree, the checkpoint's tensor names): one name, or one per layer."""
    for name in shapes_tree:
        if name != "layers":
            yield (name,), [_TOP[name]]
    for name in shapes_tree["layers"]:
        yield ("layers", name), [f"model.layers.{i}.{files.LAYER[name]}" for i in range(config.L)]


# --- loading ------------------------------------------------------------------------------------


def resolve(path: str | Path) -> Path:
    """Returns a local directory as it is; downloads a hub id, or takes it from the cache.

    A Path is always local. Pickled files are not downloaded. An interrupted download resumes where
    it stopped. Raises UserError, with the reason, if neither exists.
    """
    local = Path(path)
    if local.is_dir():
        return local
    if isinstance(path, Path) or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(
            f"The checkpoint directory {str(path)!r} does not exist. Give a directory written by save_pretrained, "
            "or a hub id of the form owner/name."
        )
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=_FILES, ignore_patterns=["*/*"]))
    except errors.GatedRepoError as error:
        advice = f"Accept its licence at https://huggingface.co/{path} and log in with `hf auth login`."
        raise UserError(f"The checkpoint {path!r} is gated, and access was not granted. {advice}") from error
    except errors.RepositoryNotFoundError as error:
        advice = "Check the name; if it is private, log in with `hf auth login`."
        raise UserError(f"The checkpoint {path!r} is neither a local directory nor a hub id that exists. {advice}") from error
    except Exception as error:  # a network or a cache can fail in many ways
        raise UserError(
            f"The checkpoint {path!r} is not a local directory, and the download from the hub failed "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). If you are offline, download it elsewhere with "
            f"`hf download {path}` and pass the directory, or copy the cache directory that HF_HOME names."
        ) from error


def load(
    path: str | Path, *, adapter: str | Path | None = None, mesh: Mesh | None = None, dtype: str = "bfloat16"
) -> LanguageModel:
    """Loads a Hugging Face directory or hub id, and a PEFT adapter directory if one is given.

    Raises UserError for a missing directory, an unsupported architecture or field, and tensors that
    are missing, surplus or of the wrong shape.
    """
    directory = resolve(path)
    config, raw = read_config(directory)
    if mesh is not None:
        sharding.check(config, mesh.shape)
    return LanguageModel(
        config=config,
        params=_load_params(directory, config, mesh, dtype),
        tokenizer=load_tokenizer(directory),
        eos_ids=_eos_ids(directory, raw),
        adapter=None if adapter is None else load_adapter(adapter, config, mesh, base=str(path)),
        source=str(path),
        mesh=mesh,
    )


def _weight_files(directory: Path) -> list[Path]:
    """The files that transformers would read: those in the index, or the only file."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        if not (directory / "model.safetensors").is_file():
            raise UserError(
                f"{directory} contains no model.safetensors and no model.safetensors.index.json. emjax does not read "
                "pickled weights; convert them with transformers (save_pretrained)."
            )
        return [directory / "model.safetensors"]
    try:
        return [directory / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is not an index of weight files ({error!r}); fetch the checkpoint again.") from error


def _load_params(directory: Path, config: ModelConfig, mesh: Mesh | None, dtype: str) -> Params:
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
    for file in _weight_files(directory):
        with files.open_tensors(file) as handle:
            for name in handle.keys():  # noqa: SIM118 - a handle is not a dict
                if name not in left:
                    problem = "occurs twice" if name in places else "is not called for by config.json"
                    raise UserError(
                        f"{file}: the tensor {name!r} {problem}. The checkpoint belongs to another architecture or "
                        "configuration; fetch it again."
                    )
                keys, layer = left.pop(name)
                source = _checked(handle.get_slice(name), keys, wanted, f"{file}: the tensor {name!r}")
                spec = specs["layers"][keys[1]] if keys[0] == "layers" else specs[keys[0]]
                spec = P(*spec[1:]) if keys[0] == "layers" else spec
                transposed = keys[-1] in _TRANSPOSED
                tensor = _to_devices(source, mesh, P(*spec[::-1]) if transposed else spec)
                if keys[0] == "layers":
                    stack = params["layers"][keys[1]]
                    params["layers"][keys[1]] = _put(stack, tensor, layer, transposed=transposed, on=stack.sharding)
                else:
                    params[keys[0]] = _cast(tensor, wanted[keys[0]].dtype, transposed=transposed, on=_on(mesh, spec))
                jax.block_until_ready(tensor)
                del tensor  # this also frees its copy on the host
    if left:
        raise UserError(
            f"{directory}: the tensor {next(iter(left))!r} that config.json calls for is missing from the checkpoint "
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


def load_tokenizer(directory: Path) -> Any:
    """The directory's tokenizer; it must have a chat template."""
    from transformers import AutoTokenizer

    # Transformers would continue with an empty vocabulary.
    if not (directory / "tokenizer.json").is_file():
        raise UserError(f"{directory} contains no tokenizer.json; fetch the checkpoint again, with its tokenizer.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except Exception as error:
        raise UserError(
            f"{directory}: the tokenizer cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "The directory needs tokenizer.json and tokenizer_config.json."
        ) from error
    if not tokenizer.chat_template:
        raise UserError(
            f"{directory}: the tokenizer has no chat template, so conversations cannot be rendered. Use an instruct "
            "checkpoint, or add chat_template.jinja to the directory."
        )
    return tokenizer


def _eos_ids(directory: Path, raw: dict[str, Any]) -> tuple[int, ...]:
    """Every end-of-sequence id.

    Llama 3.1 has three, and only generation_config.json lists them all.
    """
    file = directory / "generation_config.json"
    ids = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    ids = raw.get("eos_token_id") if ids is None else ids
    if ids is None:
        raise UserError(f"{directory}: neither generation_config.json nor config.json names an eos_token_id; add one.")
    return tuple(ids) if isinstance(ids, list) else (int(ids),)


def fingerprint(directory: str | Path) -> str:
    """SHA-256 over the files that define the model: configuration, weights, tokenizer."""
    digest = hashlib.sha256()
    for file in sorted(p for p in Path(directory).iterdir() if p.suffix in (".json", ".safetensors", ".jinja")):
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


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
