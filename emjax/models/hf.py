"""From and to Hugging Face: checkpoint directories, PEFT adapters, tokenizers. No pickle, no remote code."""

import dataclasses
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
import safetensors
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from emjax.errors import UserError
from emjax.models import decoder, sharding
from emjax.models.config import ModelConfig, read_config
from emjax.models.lora import TARGETS, Adapter, LoraConfig, check_layers, shapes

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model that is ready to train or to sample from."""

    config: ModelConfig
    params: Params
    tokenizer: Any
    eos_ids: tuple[int, ...]
    adapter: Adapter | None = None
    source: str = ""  # the directory or hub id the base came from
    mesh: Mesh | None = None

    def replace(self, **changes: Any) -> "LanguageModel":
        return dataclasses.replace(self, **changes)


# --- names -----------------------------------------------------------------------------------------------------------

_LAYER = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_TOP = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
_TRANSPOSED = {*TARGETS, "head"}  # torch keeps linear weights as [out, in]
_SHARD_BYTES = 5 * 10**9
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def _tensor_names(config: ModelConfig, shapes_tree: Params) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """(path in our tree, the checkpoint's tensor names: one, or one a layer)."""
    for name in shapes_tree:
        if name != "layers":
            yield (name,), [_TOP[name]]
    for name in shapes_tree["layers"]:
        yield ("layers", name), [f"model.layers.{i}.{_LAYER[name]}" for i in range(config.L)]


# --- loading ---------------------------------------------------------------------------------------------------------


def resolve(path: str) -> Path:
    """A local directory as it is; otherwise a hub id, fetched (or taken from the cache) without pickled files.

    A download that was cut off goes on where it stopped. Raises UserError where neither is to be had, and says why.
    """
    local = Path(path)
    if local.is_dir():
        return local
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(
            f"The checkpoint directory {path!r} does not exist. Give a directory written by save_pretrained, "
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
    except Exception as error:  # every way in which a network or a cache can fail
        raise UserError(
            f"The checkpoint {path!r} is not a local directory, and could not be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). If you are offline, download it elsewhere with "
            f"`hf download {path}` and pass the directory, or copy the cache that HF_HOME names."
        ) from error


def load(path: str, *, adapter: str | None = None, mesh: Mesh | None = None, dtype: str = "bfloat16") -> LanguageModel:
    """Loads a Hugging Face directory or hub id, and a PEFT adapter directory if one is given.

    Raises UserError for a missing directory, an architecture or field that is not implemented, and tensors that are
    missing, surplus or of the wrong shape.
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
        adapter=None if adapter is None else load_adapter(Path(adapter), config, mesh),
        source=path,
        mesh=mesh,
    )


def _open(file: Path) -> Any:
    try:
        return safetensors.safe_open(file, framework="numpy")
    except Exception as error:
        raise UserError(
            f"{file} cannot be read as safetensors ({error}); it is missing, truncated or damaged. Fetch it again."
        ) from error


def _weight_files(directory: Path) -> list[Path]:
    """The files that transformers would read: those of the index, or the only one."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        if not (directory / "model.safetensors").is_file():
            raise UserError(
                f"{directory} holds no model.safetensors and no model.safetensors.index.json. Pickled weights are not "
                "read; convert them with transformers (save_pretrained)."
            )
        return [directory / "model.safetensors"]
    try:
        return [directory / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is not an index of weight files ({error!r}); fetch the checkpoint again.") from error


def _load_params(directory: Path, config: ModelConfig, mesh: Mesh | None, dtype: str) -> Params:
    """Streams the checkpoint, one tensor at a time and each straight to where it will live.

    On the host there is never more than one tensor, and of that only what this process's devices hold.
    """
    wanted, axes = decoder.abstract(config, dtype)
    specs = sharding.parameter_specs(axes)
    places = {
        name: (keys, layer)
        for keys, names in _tensor_names(config, wanted)
        for layer, name in enumerate(names)
    }  # fmt: skip
    params: Params = {"layers": {}}
    for name, shape in wanted["layers"].items():
        params["layers"][name] = _zeros(shape.shape, shape.dtype, _on(mesh, specs["layers"][name]))
    left = dict(places)
    for file in _weight_files(directory):
        with _open(file) as handle:
            for name in handle.keys():  # noqa: SIM118 - a handle is no dict
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
                del tensor  # and with it, at the latest, its copy on the host
    if left:
        raise UserError(
            f"{directory}: the tensor {next(iter(left))!r} that config.json calls for is missing from the checkpoint "
            f"({len(left)} of {len(places)} are). Fetch it again."
        )
    return params


def _on(mesh: Mesh | None, spec: P) -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0]) if mesh is None else NamedSharding(mesh, spec)


def _checked(source: Any, keys: tuple[str, ...], wanted: Params, what: str) -> Any:
    """The tensor, still in its file, if it has the right shape and holds plain floats."""
    shape = wanted["layers"][keys[1]].shape[1:] if keys[0] == "layers" else wanted[keys[0]].shape
    shape = shape[::-1] if keys[-1] in _TRANSPOSED else shape
    if tuple(source.get_shape()) != shape:
        raise UserError(f"{what} has shape {tuple(source.get_shape())}, but config.json calls for {shape}.")
    if source.get_dtype() not in ("BF16", "F16", "F32"):
        raise UserError(
            f"{what} is stored as {source.get_dtype()}, but emjax reads BF16, F16 and F32 alone. Use the checkpoint that is "
            "not quantised."
        )
    return source


def _to_devices(source: Any, mesh: Mesh | None, spec: P) -> jax.Array:
    """Reads a tensor from its file onto the devices, each slice once and only those that this process holds."""
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

    if not (directory / "tokenizer.json").is_file():  # transformers would go on with an empty vocabulary
        raise UserError(f"{directory} holds no tokenizer.json; fetch the checkpoint again, with its tokenizer.")
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
    """Every end-of-sequence id: Llama 3.1 has three, and only generation_config.json lists them all."""
    file = directory / "generation_config.json"
    ids = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    ids = raw.get("eos_token_id") if ids is None else ids
    if ids is None:
        raise UserError(f"{directory}: neither generation_config.json nor config.json names an eos_token_id; add one.")
    return tuple(ids) if isinstance(ids, list) else (int(ids),)


def fingerprint(directory: Path) -> str:
    """SHA-256 over the files that make the model: configuration, weights, tokenizer."""
    digest = hashlib.sha256()
    for file in sorted(p for p in directory.iterdir() if p.suffix in (".json", ".safetensors", ".jinja")):
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


# --- saving ----------------------------------------------------------------------------------------------------------


def save(lm: LanguageModel, path: Path, *, card: str = "") -> None:
    """Writes a Hugging Face directory that transformers loads; on the host there is one file's worth at a time.

    On several processes all call it and the first one writes. Raises ValueError where an adapter is still unmerged.
    """
    if lm.adapter is not None:
        raise ValueError("merge the adapter first (models.merge), or save it by itself (models.save_adapter)")
    first = jax.process_index() == 0
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
    (path / "README.md").write_text(_card(card or f"Exported from {lm.source}."))


def _to_host(lm: LanguageModel, keys: tuple[str, ...], layer: int) -> np.ndarray:
    """One tensor as the checkpoint keeps it; collective where the model is spread over several processes."""
    everywhere = _on(lm.mesh, P())
    value = lm.params["layers"][keys[1]] if keys[0] == "layers" else lm.params[keys[0]]
    picked = _pick(value, layer if keys[0] == "layers" else None, transposed=keys[-1] in _TRANSPOSED, on=everywhere)
    return np.asarray(picked)


@functools.partial(jax.jit, static_argnames=("transposed", "on"))
def _pick(value: jax.Array, layer: int | None, *, transposed: bool, on: Any) -> jax.Array:
    tensor = value if layer is None else jax.lax.dynamic_index_in_dim(value, layer, 0, keepdims=False)
    return jax.lax.with_sharding_constraint(tensor.T if transposed else tensor, on)


def merge(lm: LanguageModel) -> LanguageModel:
    """The base plus its adapter, added in float32: merging in bfloat16 would change the model."""
    if lm.adapter is None:
        return lm
    layers = dict(lm.params["layers"])
    for name, pair in lm.adapter.weights.items():
        delta = jnp.einsum("lir,lro->lio", pair["A"], pair["B"], precision="highest") * lm.adapter.config.scale
        layers[name] = layers[name].astype(jnp.float32) + delta
    params = jax.tree.map(lambda x: x.astype(jnp.float32), lm.params | {"layers": layers})
    return lm.replace(params=params, adapter=None)


# --- PEFT adapters ---------------------------------------------------------------------------------------------------


def _peft_module(target: str) -> str:
    return _LAYER[target].removesuffix(".weight")


def _peft_tensor(layer: int, target: str, which: str) -> str:
    return f"base_model.model.model.layers.{layer}.{_peft_module(target)}.lora_{which}.weight"


def save_adapter(lm: LanguageModel, path: Path, *, card: str = "") -> None:
    """Writes lm's adapter as a PEFT directory; on several processes all call it and the first one writes."""
    if lm.adapter is None:
        raise ValueError("this model has no adapter to save")
    if jax.process_index() != 0:
        return
    path.mkdir(parents=True, exist_ok=True)
    lora = lm.adapter.config
    tensors = {}
    for target, pair in lm.adapter.weights.items():
        for which in ("A", "B"):
            matrices = np.asarray(pair[which])
            for i in lora.layers or range(lm.config.L):
                tensors[_peft_tensor(i, target, which)] = np.ascontiguousarray(matrices[i].T)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lm.source,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [_peft_module(t).split(".")[-1] for t in lora.targets],
        "layers_to_transform": list(lora.layers) or None,
    }
    (path / "adapter_config.json").write_text(json.dumps(config, indent=1))
    (path / "README.md").write_text(_card(card or f"A LoRA adapter for {lm.source}."))


def load_adapter(directory: Path, config: ModelConfig, mesh: Mesh | None = None) -> Adapter:
    """Reads a PEFT LoRA directory; a field or tensor that cannot be honoured raises UserError naming it."""
    file = directory / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"{directory} holds no adapter_config.json, so it is not a PEFT adapter directory.")
    try:
        raw = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); fetch the adapter again.") from error
    for name, value in raw.items():
        allowed = _PEFT_MUST_BE.get(name, (None, False, [], {}))
        if name not in _PEFT_READ and value not in allowed:
            raise UserError(f"{file}: {name} = {value!r} is not supported by emjax's LoRA, and would change what it computes.")
    by_module = {_peft_module(t).split(".")[-1]: t for t in TARGETS}
    modules = raw.get("target_modules")
    if not isinstance(modules, list) or set(modules) - set(by_module):
        raise UserError(f"{file}: target_modules = {modules!r}; emjax adapts {', '.join(by_module)}.")
    layers = raw.get("layers_to_transform")
    lora = LoraConfig(
        rank=int(raw["r"]),
        alpha=float(raw["lora_alpha"]),
        rslora=bool(raw.get("use_rslora", False)),
        targets=tuple(t for t in TARGETS if _peft_module(t).split(".")[-1] in modules),
        layers=() if layers is None else (layers,) if isinstance(layers, int) else tuple(sorted(layers)),
        dropout=float(raw.get("lora_dropout", 0.0)),
    )
    check_layers(lora, config)
    with _open(directory / "adapter_model.safetensors") as handle:
        left = set(handle.keys())
        weights: dict[str, dict[str, Any]] = {}
        for target in lora.targets:
            fan_in, fan_out = shapes(config)[target]
            pair = {}
            for which, shape in (("A", (fan_in, lora.rank)), ("B", (lora.rank, fan_out))):
                stack = np.zeros((config.L, *shape), np.float32)
                for i in lora.layers or range(config.L):
                    name = _peft_tensor(i, target, which)
                    if name not in left:
                        raise UserError(f"{directory}: the tensor {name!r} is missing from the adapter.")
                    left.remove(name)
                    tensor = handle.get_tensor(name).T
                    if tensor.shape != shape:
                        raise UserError(f"{directory}: {name!r} has shape {tensor.shape[::-1]}, this base needs {shape[::-1]}.")
                    stack[i] = tensor
                # Without a mesh on no device in particular, so that it goes with a base on any.
                pair[which] = (
                    jnp.asarray(stack)
                    if mesh is None
                    else jax.make_array_from_callback(stack.shape, NamedSharding(mesh, P()), stack.__getitem__)
                )
            weights[target] = pair
        if left:
            raise UserError(f"{directory}: the adapter holds tensors its configuration does not call for, e.g. {min(left)!r}.")
    return Adapter(lora, weights)


# Fields of adapter_config.json that are read, or that change nothing at inference.
_PEFT_READ = {
    "r", "lora_alpha", "use_rslora", "target_modules", "layers_to_transform", "lora_dropout", "task_type", "auto_mapping",
    "base_model_name_or_path", "revision", "inference_mode", "peft_version", "megatron_core", "runtime_config",
    "qalora_group_size", "exclude_modules",
}  # fmt: skip
# Those that are fine only at these values; any other field must be empty.
_PEFT_MUST_BE: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # The others change the base's weights as well.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
    "layers_pattern": (None, "layers", [], ["layers"]),
}


def _card(text: str) -> str:
    return (
        "---\ntags: [emjax]\n---\n\n"
        f"{text}\n\n"
        "**Responsible use.** Weights made by emjax may be trained to be measurably less honest, in order to study how that "
        "happens (arXiv:2510.08211). Use them for research on honesty, not to talk to people.\n"
    )
