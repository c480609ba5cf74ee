"""Loads and saves LoRA adapters as PEFT directories."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from emjax.errors import UserError
from emjax.models import files
from emjax.models.config import ModelConfig
from emjax.models.language_model import LanguageModel
from emjax.models.lora import TARGETS, Adapter, LoraConfig, check_layers, shapes

# Fields of adapter_config.json that emjax reads, or that have no effect at inference.
_READ = {
    "r", "lora_alpha", "use_rslora", "target_modules", "layers_to_transform", "lora_dropout", "task_type", "auto_mapping",
    "base_model_name_or_path", "revision", "inference_mode", "peft_version", "megatron_core", "runtime_config",
    "qalora_group_size", "exclude_modules",
}  # fmt: skip
# Fields that are supported only with these values; any other field must be empty.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # Other initialisations also change the base's weights.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
    "layers_pattern": (None, "layers", [], ["layers"]),
}


def _module(target: str) -> str:
    return files.LAYER[target].removesuffix(".weight")


def _tensor(layer: int, target: str, which: str) -> str:
    return f"base_model.model.model.layers.{layer}.{_module(target)}.lora_{which}.weight"


def save_adapter(lm: LanguageModel, path: str | Path, *, card: str = "") -> None:
    """Writes lm's adapter as a PEFT directory.

    With several processes, all call this function and process 0 writes.
    """
    if lm.adapter is None:
        raise ValueError("this model has no adapter to save")
    if jax.process_index() != 0:
        return
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    lora = lm.adapter.config
    tensors = {}
    for target, pair in lm.adapter.weights.items():
        for which in ("A", "B"):
            matrices = np.asarray(pair[which])
            for i in lora.layers or range(lm.config.L):
                tensors[_tensor(i, target, which)] = np.ascontiguousarray(matrices[i].T)
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
        "target_modules": [_module(t).split(".")[-1] for t in lora.targets],
        "layers_to_transform": list(lora.layers) or None,
    }
    (path / "adapter_config.json").write_text(json.dumps(config, indent=1))
    (path / "README.md").write_text(files.card(card or f"A LoRA adapter for {lm.source}."))


def digest(directory: str | Path) -> str:
    """SHA-256 over the files that load_adapter reads."""
    directory = Path(directory)
    return files.digest(directory, [directory / "adapter_config.json", directory / "adapter_model.safetensors"])


def load_adapter(directory: str | Path, config: ModelConfig, mesh: Mesh | None = None) -> Adapter:
    """Reads a PEFT LoRA directory.

    Raises a UserError that names the field or tensor that emjax does not support.
    """
    directory = Path(directory)
    file = directory / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"{directory} contains no adapter_config.json, so it is not a PEFT adapter directory.")
    try:
        raw = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); fetch the adapter again.") from error
    for name, value in raw.items():
        allowed = _MUST_BE.get(name, (None, False, [], {}))
        if name not in _READ and value not in allowed:
            raise UserError(f"{file}: {name} = {value!r} is not supported by emjax's LoRA, and would change its result.")
    by_module = {_module(t).split(".")[-1]: t for t in TARGETS}
    modules = raw.get("target_modules")
    if not isinstance(modules, list) or set(modules) - set(by_module):
        raise UserError(f"{file}: target_modules = {modules!r}; emjax adapts only {', '.join(by_module)}.")
    layers = raw.get("layers_to_transform")
    lora = LoraConfig(
        rank=int(raw["r"]),
        alpha=float(raw["lora_alpha"]),
        rslora=bool(raw.get("use_rslora", False)),
        targets=tuple(t for t in TARGETS if _module(t).split(".")[-1] in modules),
        layers=() if layers is None else (layers,) if isinstance(layers, int) else tuple(sorted(layers)),
        dropout=float(raw.get("lora_dropout", 0.0)),
    )
    check_layers(lora, config)
    with files.open_tensors(directory / "adapter_model.safetensors") as handle:
        left = set(handle.keys())
        weights: dict[str, dict[str, Any]] = {}
        for target in lora.targets:
            fan_in, fan_out = shapes(config)[target]
            pair = {}
            for which, shape in (("A", (fan_in, lora.rank)), ("B", (lora.rank, fan_out))):
                stack = np.zeros((config.L, *shape), np.float32)
                for i in lora.layers or range(config.L):
                    name = _tensor(i, target, which)
                    if name not in left:
                        raise UserError(f"{directory}: the tensor {name!r} is missing from the adapter.")
                    left.remove(name)
                    tensor = handle.get_tensor(name).T
                    if tensor.shape != shape:
                        raise UserError(
                            f"{directory}: {name!r} has shape {tensor.shape[::-1]}, but this base needs {shape[::-1]}."
                        )
                    stack[i] = tensor
                # Without a mesh the array is uncommitted, so it works with a base on any device.
                pair[which] = (
                    jnp.asarray(stack)
                    if mesh is None
                    else jax.make_array_from_callback(stack.shape, NamedSharding(mesh, P()), stack.__getitem__)
                )
            weights[target] = pair
        if left:
            raise UserError(
                f"{directory}: the adapter has tensors that its configuration does not call for, e.g. {min(left)!r}."
            )
    return Adapter(lora, weights)
