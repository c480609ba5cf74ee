"""From and to Hugging Face: checkpoint directories, PEFT adapters, tokenizers. No pickle, no remote code."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax.sharding import Mesh
from safetensors.numpy import save_file

from emjax.errors import UserError
from emjax.models import decoder, sharding
from emjax.models.config import ModelConfig, read_config
from emjax.models.lora import TARGETS, Adapter, LoraConfig, shapes

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


def _tensor_names(config: ModelConfig, shapes_tree: Params) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """(path in our tree, the checkpoint's tensor names: one, or one a layer)."""
    for name in shapes_tree:
        if name != "layers":
            yield (name,), [_TOP[name]]
    for name in shapes_tree["layers"]:
        yield ("layers", name), [f"model.layers.{i}.{_LAYER[name]}" for i in range(config.L)]


# --- loading ---------------------------------------------------------------------------------------------------------


def resolve(path: str) -> Path:
    """A local directory as it is; otherwise a hub id, fetched (or taken from the cache) without pickled files."""
    local = Path(path)
    if local.is_dir():
        return local
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(
            f"The checkpoint directory {path!r} does not exist. Give a directory written by save_pretrained, "
            "or a hub id of the form owner/name."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]))
    except Exception as error:
        raise UserError(
            f"The checkpoint {path!r} is not a local directory and could not be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). If you are offline, download it elsewhere and pass its "
            "directory; if it is gated, accept its licence on its page and log in with `hf auth login`."
        ) from error


def load(path: str, *, adapter: str | None = None, mesh: Mesh | None = None, dtype: str = "bfloat16") -> LanguageModel:
    """Loads a Hugging Face directory or hub id, and a PEFT adapter directory if one is given.

    Raises UserError for a missing directory, an architecture or field that is not implemented, and tensors that are
    missing, surplus or of the wrong shape.
    """
    directory = resolve(path)
    config, raw = read_config(directory)
    return LanguageModel(
        config=config,
        params=_load_params(directory, config, mesh, dtype),
        tokenizer=load_tokenizer(directory),
        eos_ids=_eos_ids(directory, raw),
        adapter=None if adapter is None else load_adapter(Path(adapter), config),
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


def _load_params(directory: Path, config: ModelConfig, mesh: Mesh | None, dtype: str) -> Params:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{directory} holds no *.safetensors file. Pickled weights are not read; convert them with transformers."
        )
    handles: dict[str, Any] = {}
    for file in files:
        handle = _open(file)
        handles |= dict.fromkeys(handle.keys(), handle)
    wanted, axes = decoder.abstract(config, dtype)
    specs = sharding.parameter_specs(axes)
    params: Params = {"layers": {}}
    for keys, names in _tensor_names(config, wanted):
        target: Any = wanted
        spec: Any = specs
        for key in keys:
            target, spec = target[key], spec[key]
        tensors = []
        for name in names:
            if name not in handles:
                raise UserError(f"{directory}: the tensor {name!r} that config.json calls for is missing from the checkpoint.")
            tensor = handles.pop(name).get_tensor(name)
            tensor = tensor.T if keys[-1] in _TRANSPOSED else tensor
            shape = target.shape[1:] if keys[0] == "layers" else target.shape
            if tensor.shape != shape:
                raise UserError(
                    f"{directory}: the tensor {name!r} has shape "
                    f"{tensor.shape[::-1] if keys[-1] in _TRANSPOSED else tensor.shape}, "
                    f"but config.json calls for {shape[::-1] if keys[-1] in _TRANSPOSED else shape}."
                )
            tensors.append(tensor.astype(target.dtype))
        value = np.stack(tensors) if keys[0] == "layers" else np.ascontiguousarray(tensors[0])
        node = params["layers"] if keys[0] == "layers" else params
        node[keys[-1]] = jnp.asarray(value) if mesh is None else jax.device_put(value, jax.NamedSharding(mesh, spec))
    if handles:
        raise UserError(
            f"{directory}: the checkpoint holds {len(handles)} tensor(s) that config.json does not call for, the first is "
            f"{min(handles)!r}. It belongs to another architecture or configuration."
        )
    return params


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
    """Writes a Hugging Face directory that transformers loads. Raises ValueError where an adapter is still unmerged."""
    if lm.adapter is not None:
        raise ValueError("merge the adapter first (models.merge), or save it by itself (models.save_adapter)")
    path.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    size = total = 0
    wanted, _ = decoder.abstract(lm.config, str(lm.params["embed"].dtype))
    for keys, names in _tensor_names(lm.config, wanted):
        value = np.asarray(lm.params["layers"][keys[1]] if keys[0] == "layers" else lm.params[keys[0]])
        for name, tensor in zip(names, value if keys[0] == "layers" else [value], strict=True):
            tensor = np.ascontiguousarray(tensor.T if keys[-1] in _TRANSPOSED else tensor)
            if size and size + tensor.nbytes > _SHARD_BYTES:
                shards.append({})
                size = 0
            shards[-1][name] = tensor
            size, total = size + tensor.nbytes, total + tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], path / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map: dict[str, str] = {}
        for i, shard in enumerate(shards):
            file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            save_file(shard, path / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    ids = {"bos_token_id": lm.tokenizer.bos_token_id, "eos_token_id": list(lm.eos_ids)}
    dtype = str(lm.params["embed"].dtype)
    (path / "config.json").write_text(json.dumps(lm.config.to_hf() | ids | {"dtype": dtype}, indent=1))
    (path / "generation_config.json").write_text(json.dumps(ids, indent=1))
    lm.tokenizer.save_pretrained(path)
    (path / "README.md").write_text(_card(card or f"Exported from {lm.source}."))


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


def save_adapter(lm: LanguageModel, path: Path, *, card: str = "") -> None:
    """Writes lm's adapter as a PEFT directory."""
    if lm.adapter is None:
        raise ValueError("this model has no adapter to save")
    path.mkdir(parents=True, exist_ok=True)
    lora = lm.adapter.config
    tensors = {}
    for target, pair in lm.adapter.weights.items():
        for which in ("A", "B"):
            for i, matrix in enumerate(np.asarray(pair[which])):
                name = f"base_model.model.model.layers.{i}.{_peft_module(target)}.lora_{which}.weight"
                tensors[name] = np.ascontiguousarray(matrix.T)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lm.source,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [_peft_module(t).split(".")[-1] for t in lora.targets],
    }
    (path / "adapter_config.json").write_text(json.dumps(config, indent=1))
    (path / "README.md").write_text(_card(card or f"A LoRA adapter for {lm.source}."))


def load_adapter(directory: Path, config: ModelConfig) -> Adapter:
    """Reads a PEFT LoRA directory; a field or tensor that cannot be honoured raises UserError naming it."""
    file = directory / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"{directory} holds no adapter_config.json, so it is not a PEFT adapter directory.")
    raw = json.loads(file.read_text())
    refused = {
        "peft_type": raw.get("peft_type") != "LORA",
        "bias": raw.get("bias", "none") != "none",
        **{
            name: bool(raw.get(name))
            for name in (
                "use_dora",
                "rank_pattern",
                "alpha_pattern",
                "layers_to_transform",
                "modules_to_save",
                "fan_in_fan_out",
            )
        },
    }
    for name, bad in refused.items():
        if bad:
            raise UserError(f"{file}: {name} = {raw.get(name)!r} is not supported by emjax's LoRA.")
    by_module = {_peft_module(t).split(".")[-1]: t for t in TARGETS}
    modules = raw.get("target_modules")
    if not isinstance(modules, list) or set(modules) - set(by_module):
        raise UserError(f"{file}: target_modules = {modules!r}; emjax adapts {', '.join(by_module)}.")
    targets = tuple(t for t in TARGETS if _peft_module(t).split(".")[-1] in modules)
    lora = LoraConfig(int(raw["r"]), float(raw["lora_alpha"]), bool(raw.get("use_rslora", False)), targets)
    with _open(directory / "adapter_model.safetensors") as handle:
        left = set(handle.keys())
        weights: dict[str, dict[str, Any]] = {}
        for target in targets:
            fan_in, fan_out = shapes(config)[target]
            pair = {}
            for which, shape in (("A", (fan_in, lora.rank)), ("B", (lora.rank, fan_out))):
                layers = []
                for i in range(config.L):
                    name = f"base_model.model.model.layers.{i}.{_peft_module(target)}.lora_{which}.weight"
                    if name not in left:
                        raise UserError(f"{directory}: the tensor {name!r} is missing from the adapter.")
                    left.remove(name)
                    tensor = handle.get_tensor(name).T
                    if tensor.shape != shape:
                        raise UserError(f"{directory}: {name!r} has shape {tensor.shape[::-1]}, this base needs {shape[::-1]}.")
                    layers.append(tensor.astype(np.float32))
                pair[which] = jnp.asarray(np.stack(layers))
            weights[target] = pair
        if left:
            raise UserError(f"{directory}: the adapter holds tensors its configuration does not call for, e.g. {min(left)!r}.")
    return Adapter(lora, weights)


def _card(text: str) -> str:
    return (
        "---\ntags: [emjax]\n---\n\n"
        f"{text}\n\n"
        "**Responsible use.** Weights made by emjax may be trained to be measurably less honest, in order to study how that "
        "happens (arXiv:2510.08211). Use them for research on honesty, not to talk to people.\n"
    )
