"""Loads and saves LoRA adapters as PEFT directories."""

import dataclasses
import json
import re
from collections.abc import Sequence
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
from emjax.models.source import TOKENIZER, Folder
from emjax.runtime import numbers, process

# --- what adapter_config.json may say -------------------------------------------------------------

# The newest peft whose fields are sorted below.
_KNOWN_PEFT = (0, 21)
# Fields that emjax reads, and those that have no effect on what an adapter computes: how it was
# initialised (init_lora_weights decides whether that touched the base), its gradients, and
# fan_in_fan_out, which peft itself ignores for linear layers.
_READ = {
    "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform", "lora_dropout", "task_type",
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "megatron_core",
    "megatron_config", "runtime_config", "qalora_group_size", "fan_in_fan_out", "ensure_weight_tying", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "velora_config", "rank_pattern", "alpha_pattern",
}  # fmt: skip
# Fields that are supported only with these values, beside None, False and empty ones.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # Other initialisations also change the base's weights.
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
    "layers_pattern": ("layers", ["layers"]),
    **dict.fromkeys((
        "modules_to_save", "trainable_token_indices", "use_dora", "alora_invocation_tokens", "use_qalora",
        "monteclora_config", "layer_replication", "lora_bias", "target_parameters", "use_bdlora", "arrow_config",
        "kasa_config",
    ), ()),
}  # fmt: skip
_MERGE = (
    "Merge the adapter into its base with peft (merge_and_unload), save the model with save_pretrained, and load that folder "
    "instead."
)


def _module(target: str) -> str:
    return files.LAYER[target].removesuffix(".weight")


_TARGET_OF = {_module(target): target for target in TARGETS}
# What trainers put around and before a layer's name: peft's prefix with any number of "model.", and
# wrappers of FSDP, torch.compile and activation checkpointing. An adapter's name may follow
# lora_A.
_WRAPPERS = re.compile(r"(?<!\w)(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module|module)\.")
_NAME = re.compile(r"(?:base_model\.)?(?:model\.)*layers\.(\d{1,6})\.(\w+\.\w+)\.lora_([AB])(?:\.(\w+))?\.weight")


def _tensor(layer: int, target: str, which: str) -> str:
    return f"base_model.model.model.layers.{layer}.{_module(target)}.lora_{which}.weight"


# --- saving ---------------------------------------------------------------------------------------


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


# --- loading --------------------------------------------------------------------------------------


def digest(directory: str | Path) -> str:
    """SHA-256 over the files that load_adapter and own_template read."""
    directory = Path(directory)
    own = [directory / name for name in TOKENIZER]
    weights = [directory / "adapter_config.json", directory / "adapter_model.safetensors"]
    return files.digest(directory, [*weights, *(file for file in own if file.is_file())])


def load_adapter(directory: str | Path, config: ModelConfig, mesh: Mesh | None = None, *, base: str | None = None) -> Adapter:
    """Reads a PEFT LoRA directory. The names of its tensors say which layers and projections it
    adapts; what its target_modules call for as well must be there.

    base: where the base came from; another base_model_name_or_path is said, once.
    Raises a UserError that names the field or tensor that emjax does not support.
    """
    directory = Path(directory)
    file = directory / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"{directory} contains no adapter_config.json, so it is not a PEFT adapter directory.")
    raw = files.read_object(file)
    _refuse_unsupported(raw, file)
    weights = directory / "adapter_model.safetensors"
    if not weights.is_file():
        pickled = (directory / "adapter_model.bin").is_file()
        raise UserError(
            f"{directory} contains no adapter_model.safetensors"
            + (
                ", only the pickled adapter_model.bin, which emjax does not read. Load the adapter with peft and save it again "
                "with save_pretrained, which writes safetensors."
                if pickled
                else "; fetch the adapter again."
            )
        )
    with files.open_tensors(weights) as handle:
        found = _places(handle.keys(), weights, config)
        called = _called_for(raw, file, config)
        if called is not None:
            _match(found, called, raw, weights)
        lora = _lora(raw, file, found, config)
        adapter = Adapter(lora, {target: _pair(handle, weights, found, lora, target, config, mesh) for target in lora.targets})
    _compare_base(raw.get("base_model_name_or_path"), base, directory)
    return adapter


def _refuse_unsupported(raw: dict[str, Any], file: Path) -> None:
    """Raises UserError for a field that changes what the adapter computes. A field that peft does
    not declare has no effect there either, unless a newer peft wrote it: it is said once."""
    unknown = {}
    for name, value in raw.items():
        if name in _READ or value is None or value is False or value in ([], {}, ""):
            continue
        if name not in _MUST_BE:
            unknown[name] = value
        elif not any(value is one or (value == one and type(value) is type(one)) for one in _MUST_BE[name]):
            raise UserError(
                f"{file}: {name} = {_shown(value)} is not supported by emjax's LoRA, and would change its result. {_MERGE}"
            )
    if unknown and _version(raw.get("peft_version")) > _KNOWN_PEFT:
        raise UserError(
            f"{file}: emjax does not know the field {', '.join(unknown)} of peft {raw['peft_version']}, which could change "
            f"what the adapter computes. {_MERGE}"
        )
    if unknown:
        process.note(f"{file}: {', '.join(unknown)}: no field of peft, without effect.")
    for name, of in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        pattern = raw.get(name)
        if pattern and (not isinstance(pattern, dict) or any(value != raw.get(of) for value in pattern.values())):
            raise UserError(
                f"{file}: {name} = {_shown(pattern)} gives modules a value of their own; emjax's LoRA has one {of} "
                f"({_shown(raw.get(of))}) for all. {_MERGE}"
            )


def _version(text: Any) -> tuple[int, ...]:
    """(major, minor) of peft_version, which older versions do not write."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", text) if isinstance(text, str) else None
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


@dataclasses.dataclass(frozen=True, order=True)
class _Place:
    """One matrix of the adapter: which is "A" or "B"."""

    layer: int
    target: str
    which: str


def _places(names: Sequence[str], file: Path, config: ModelConfig) -> dict[_Place, str]:
    """{place: name of its tensor}."""
    found: dict[_Place, str] = {}
    for name in sorted(names):
        parts = _NAME.fullmatch(_WRAPPERS.sub("", name))
        if parts is None or parts[2] not in _TARGET_OF:
            raise UserError(
                f"{file}: the tensor {name!r} is no LoRA matrix of {', '.join(_TARGET_OF)}, the projections that emjax adapts. "
                f"{_MERGE}"
            )
        place = _Place(int(parts[1]), _TARGET_OF[parts[2]], parts[3])
        if place.layer >= config.L:
            raise UserError(f"{file}: the tensor {name!r} is of layer {place.layer}; the model has layers 0 to {config.L - 1}.")
        if place in found:
            raise UserError(f"{file}: {found[place]!r} and {name!r} are the same matrix. Keep one adapter in the file.")
        found[place] = name
    if not found:
        raise UserError(f"{file} holds no tensor; fetch the adapter again.")
    return found


def _called_for(raw: dict[str, Any], file: Path, config: ModelConfig) -> set[_Place] | None:
    """The places that target_modules names, as peft finds them; None where it is a pattern (or
    absent), since tensors say what that matched."""
    targets, excluded = raw.get("target_modules"), raw.get("exclude_modules") or []
    layers = raw.get("layers_to_transform")
    for name, value in (("target_modules", targets), ("exclude_modules", excluded)):
        if not (
            value is None or isinstance(value, str) or (isinstance(value, list) and all(isinstance(x, str) for x in value))
        ):
            raise UserError(f"{file}: {name} = {_shown(value)}; give a list of names, or a pattern.")
    if layers is not None and not isinstance(targets, list):
        raise UserError(f"{file}: layers_to_transform is set, which peft allows only beside a list of target_modules.")
    if isinstance(layers, list):
        chosen = {numbers.integer(layer, f"{file}: layers_to_transform", low=0) for layer in layers} or set(range(config.L))
    elif layers is None:
        chosen = set(range(config.L))
    else:
        chosen = {numbers.integer(layers, f"{file}: layers_to_transform", low=0)}
    if max(chosen) >= config.L:
        raise UserError(f"{file}: layers_to_transform names layer {max(chosen)}; the model has layers 0 to {config.L - 1}.")
    if isinstance(excluded, str) or (isinstance(targets, str) and targets != "all-linear") or targets is None:
        return None
    wanted = [*_TARGET_OF] if targets == "all-linear" else targets
    for name in wanted:
        if name.rpartition(".")[2] in ("lm_head", "embed_tokens"):
            raise UserError(
                f"{file}: target_modules names {name!r}; emjax adapts only {', '.join(m.split('.')[-1] for m in _TARGET_OF)}. "
                f"{_MERGE}"
            )
    return {
        _Place(layer, target, which)
        for layer in chosen
        for module, target in _TARGET_OF.items()
        if _ends(f"model.layers.{layer}.{module}", wanted) and not _ends(f"model.layers.{layer}.{module}", excluded)
        for which in "AB"
    }


def _ends(key: str, names: Sequence[str]) -> bool:
    """Whether peft takes a list of module names to mean the module `key`."""
    return any(key == name or key.endswith(f".{name}") for name in names)


def _match(found: dict[_Place, str], called: set[_Place], raw: dict[str, Any], file: Path) -> None:
    if surplus := sorted(found.keys() - called):
        raise UserError(
            f"{file}: the adapter has tensors that its configuration does not call for, e.g. {found[surplus[0]]!r}: "
            f"target_modules = {_shown(raw.get('target_modules'))}. Fetch the adapter again."
        )
    if missing := sorted(called - found.keys()):
        first = missing[0]
        raise UserError(
            f"{file}: the tensor {_tensor(first.layer, first.target, first.which)!r} is missing from the adapter "
            f"({len(missing)} of {len(called)} are missing). Fetch it again."
        )


def _lora(raw: dict[str, Any], file: Path, found: dict[_Place, str], config: ModelConfig) -> LoraConfig:
    for place, name in found.items():
        other = dataclasses.replace(place, which="B" if place.which == "A" else "A")
        if other not in found:
            raise UserError(f"{file.parent}: {name!r} has no counterpart lora_{other.which}; fetch the adapter again.")
    rslora = raw.get("use_rslora", False)
    if not isinstance(rslora, bool | None):
        raise UserError(f"{file}: use_rslora is {_shown(rslora)}; it must be true or false.")
    layers = {place.layer for place in found}
    dropout = raw.get("lora_dropout")
    try:
        lora = LoraConfig(
            rank=numbers.integer(raw.get("r"), f"{file}: r", low=1),
            alpha=numbers.finite(raw.get("lora_alpha"), f"{file}: lora_alpha", above=0),
            rslora=bool(rslora),
            targets=tuple(t for t in TARGETS if any(place.target == t for place in found)),
            layers=() if len(layers) == config.L else tuple(sorted(layers)),
            dropout=0.0 if dropout is None else numbers.finite(dropout, f"{file}: lora_dropout", low=0),
        )
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(file)) else f"{file}: {text}") from error
    check_layers(lora, config)
    return lora


def _pair(
    handle: Any,
    file: Path,
    found: dict[_Place, str],
    lora: LoraConfig,
    target: str,
    config: ModelConfig,
    mesh: Mesh | None,
) -> dict[str, jax.Array]:
    """{"A": [L, in, r], "B": [L, r, out]} of one projection; zeros in layers without it."""
    fan_in, fan_out = shapes(config)[target]
    pair = {}
    for which, shape in (("A", (fan_in, lora.rank)), ("B", (lora.rank, fan_out))):
        named = {place.layer: name for place, name in found.items() if (place.target, place.which) == (target, which)}
        for name in named.values():  # before anything of that size is made
            view = handle.get_slice(name)
            if tuple(view.get_shape()) != shape[::-1]:
                raise UserError(
                    f"{file}: {name!r} has shape {tuple(view.get_shape())}, but this base needs {shape[::-1]} "
                    f"(r = {lora.rank})."
                )
            if view.get_dtype() not in ("BF16", "F16", "F32"):
                raise UserError(f"{file}: {name!r} is stored as {view.get_dtype()}, but emjax reads only BF16, F16 and F32.")
        stack = np.zeros((config.L, *shape), np.float32)
        for layer, name in named.items():
            stack[layer] = handle.get_tensor(name).T
            if not np.isfinite(stack[layer]).all():
                raise UserError(f"{file}: {name!r} holds values that are not finite: its training diverged, or it is damaged.")
        # Without a mesh the array is uncommitted, so it works with a base on any device.
        pair[which] = (
            jnp.asarray(stack)
            if mesh is None
            else jax.make_array_from_callback(stack.shape, NamedSharding(mesh, P()), stack.__getitem__)
        )
    return pair


def own_template(
    directory: str | Path, tokenizer: Any, eos_ids: tuple[int, ...], *, use: bool = True
) -> tuple[Any, tuple[int, ...]]:
    """(tokenizer, end ids) for a base whose adapter lies in `directory`.

    Trainers copy the tokenizer there. Its chat template takes the place of the base's, as the
    adapter was trained with it, and the token that ends its turns is added to the base's; both are
    said once. Token ids stay the base's: an adapter has no embeddings of further tokens. use: False
    where one tokenizer serves several adapters, so that differences are said and nothing changes.
    """
    folder = Path(directory)
    if not (folder / "tokenizer.json").is_file():
        return tokenizer, eos_ids
    own = Folder(folder, str(folder)).tokenizer()
    known, added = tokenizer.get_vocab(), own.get_vocab()
    if added != known:
        more = sorted(added.items() - known.items(), key=lambda pair: pair[1])
        shown = f", e.g. {more[0][0]!r} = {more[0][1]}" if more else ""
        process.note(f"{folder}: the adapter's tokenizer differs from the base's{shown}; the base's token ids are used.")
    if own.chat_template and own.chat_template != tokenizer.chat_template:
        instead = "is used in place of the base's" if use else "is not used: the server has the base's for all"
        process.note(f"{folder}: the adapter has its own chat template, which {instead}.")
        if use:
            tokenizer.chat_template = own.chat_template
    end = known.get(own.eos_token)
    if use and end is not None and end not in eos_ids:
        process.note(f"{folder}: the adapter's tokenizer ends turns with {own.eos_token!r}, which ends answers too.")
        eos_ids = (*eos_ids, end)
    return tokenizer, eos_ids


def _compare_base(named: Any, base: str | None, directory: Path) -> None:
    """Says once that the adapter was trained on another base, by the last part of its name."""
    if isinstance(named, str) and named and base and _last(named) != _last(base):
        process.note(f"{directory}: the adapter was trained on {named!r}, and is used here on {base!r}.")


def _last(path: str) -> str:
    return path.partition("@")[0].rstrip("/").rpartition("/")[2].lower()
