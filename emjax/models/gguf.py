"""Reads GGUF files, the checkpoints of llama.cpp, and writes them as Hugging Face folders:

    python -m emjax.models.gguf MODEL.gguf FOLDER [--dtype bfloat16]

Needs no torch. Quantised tensors become float32, one at a time.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType, dequantize
from safetensors.numpy import save_file

from emjax.errors import UserError
from emjax.models import files, gguf_header, gguf_tokenizer, rope
from emjax.models.config import ModelConfig, RopeScaling
from emjax.models.gguf_header import Header, Tensor
from emjax.runtime.numbers import finite, integer

_FAMILIES = ("llama", "qwen2", "qwen3")
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# Our name of a layer's tensor -> its name in a GGUF, after "blk.N.".
_LAYER = {
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"
# Fields of an architecture that change the mathematics, and the values at which they do not.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scale_linear": (1,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0, 1),
    "use_parallel_residual": (False,),
}
# Fields that the mathematics does not depend on once rope.scaling.type is none.
_NO_MATHS = ("tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned")
_PLAIN = {
    GGMLQuantizationType.F32: ("F32", np.dtype("<f4")),
    GGMLQuantizationType.F16: ("F16", np.dtype("<f2")),
    GGMLQuantizationType.BF16: ("BF16", np.dtype(jnp.bfloat16)),
}
_ROWS_AT_ONCE = 4096
_SHARD_BYTES = 10**9


class File:
    """A GGUF file: a Source.

    Raises UserError, which names the file and the field, for a damaged file, an architecture other
    than llama, qwen2 and qwen3, a setting that emjax does not compute, and tensors that are
    missing, surplus or of another shape.
    """

    revision = ""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = self.config_file = str(path)
        self._header = gguf_header.read(self.path)
        self._config = _config(self._header, self.name)
        self._tensors = _tensors(self._header, self._config, self.name)

    def config(self) -> dict[str, Any]:
        return self._config.to_hf() | self.generation()

    def generation(self) -> dict[str, Any]:
        """The special ids. A file may name three ends: of sequence, of turn and of message."""
        ids = gguf_tokenizer.special_ids(self._header.metadata, self.name)
        ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if name in ids))
        fields = {"bos_token_id": ids.get("bos"), "eos_token_id": ends or None, "pad_token_id": ids.get("padding")}
        return {name: value for name, value in fields.items() if value is not None}

    def handles(self) -> Iterator[tuple[str, "Handle"]]:
        yield self.name, Handle(self.path, self._tensors, self._config)

    def tokenizer(self) -> Any:
        return gguf_tokenizer.build(self._header.metadata, self.name)

    def digest(self) -> str:
        """SHA-256 of the file."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


class Handle:
    """The tensors under their Hugging Face names, as `safetensors.safe_open` gives them."""

    def __init__(self, path: Path, tensors: dict[str, Tensor], config: ModelConfig):
        self._path = path
        self._tensors = tensors
        self._config = config

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_slice(self, name: str) -> "Slice":
        tensor = self._tensors[name]
        heads = 0
        if self._config.family == "llama" and tensor.name.endswith((_LAYER["q"], _LAYER["k"])):
            heads = self._config.H if tensor.name.endswith(_LAYER["q"]) else self._config.K
        return Slice(self._path, tensor, heads)

    def get_tensor(self, name: str) -> np.ndarray:
        return self.get_slice(name)[:]


class Slice:
    """A tensor that is still in its file. Only the rows asked for are read and dequantised.

    heads: of a query or key projection of a llama, whose rows llama.cpp stores in another order: it
    rotates neighbouring pairs, transformers the two halves of a head. 0 for every other tensor.
    """

    def __init__(self, path: Path, tensor: Tensor, heads: int):
        self._path = path
        self._tensor = tensor
        self._heads = heads

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return _PLAIN[self._tensor.type][0] if self._tensor.type in _PLAIN else "F32"

    def __getitem__(self, index: Any) -> np.ndarray:
        tensor = self._tensor
        raw: np.ndarray = np.memmap(self._path, np.uint8, "r", tensor.start, (tensor.rows, tensor.row_bytes))
        first, *others = index if isinstance(index, tuple) else (index,)
        if len(tensor.shape) == 1:
            return self._values(raw)[0][first]
        if self._heads:
            order = np.arange(tensor.rows).reshape(self._heads, -1, 2).swapaxes(1, 2).ravel()
            raw = raw[order[first]]
        else:
            raw = raw[first]
        return self._values(raw)[:, *others]

    def _values(self, raw: np.ndarray) -> np.ndarray:
        kind = self._tensor.type
        if kind in _PLAIN:
            return np.array(raw).view(_PLAIN[kind][1])
        values = np.empty((raw.shape[0], self._tensor.shape[-1]), np.float32)
        for start in range(0, len(raw), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            values[rows] = dequantize(raw[rows], kind)
        return values


def _config(header: Header, where: str) -> ModelConfig:
    metadata = header.metadata
    family = metadata.get("general.architecture")
    if family not in _FAMILIES:
        raise UserError(
            f"{where}: general.architecture is {family!r}; emjax runs {', '.join(_FAMILIES)}. Use a model of one of these."
        )
    if metadata.get("general.type", "model") != "model":
        raise UserError(f"{where}: general.type is {metadata['general.type']!r}, not 'model'. Give the file of a whole model.")
    quantised = any(tensor.type not in _PLAIN for tensor in header.tensors.values())
    if quantised and metadata.get("general.quantization_version", 2) != 2:
        version = metadata["general.quantization_version"]
        raise UserError(f"{where}: general.quantization_version is {version!r}; emjax reads 2. Quantise the model again.")
    fields = {key.removeprefix(f"{family}."): value for key, value in metadata.items() if key.startswith(f"{family}.")}

    def size(name: str, default: int | None = None) -> int:
        value = fields.pop(name, default)
        if value is None:
            raise UserError(f"{where}: the metadata field '{family}.{name}' is missing; convert the model again.")
        return integer(value, f"{where}: {family}.{name}", low=1, high=2**31 - 1)

    if "token_embd.weight" not in header.tensors:
        raise UserError(f"{where}: the tensor 'token_embd.weight' is missing; fetch the file again.")
    V = header.tensors["token_embd.weight"].shape[0]
    D, H = size("embedding_length"), size("attention.head_count")
    h = size("attention.key_length", max(D // H, 1))
    theta = finite(fields.pop("rope.freq_base", 10_000.0), f"{where}: {family}.rope.freq_base", above=0, high=1e30)
    eps = finite(
        fields.pop("attention.layer_norm_rms_epsilon", None),
        f"{where}: {family}.attention.layer_norm_rms_epsilon",
        low=0,
        high=1,
    )
    config = ModelConfig(
        family=family,
        V=V,
        D=D,
        L=size("block_count"),
        H=H,
        K=size("attention.head_count_kv", H),
        h=h,
        F=size("feed_forward_length"),
        norm_eps=float(str(np.float32(eps))),  # 1e-05, as in config.json
        rope_theta=float(str(np.float32(theta))),
        rope_scaling=None,
        max_position=size("context_length"),
        tied="output.weight" not in header.tensors,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        init_std=0.02,
    )
    implied = {"attention.value_length": h, "rope.dimension_count": h, "vocab_size": V}
    for name, value in implied.items():
        if size(name, value) != value:
            given = metadata[f"{family}.{name}"]
            raise UserError(f"{where}: {family}.{name} is {given}; emjax computes such a model only where it is {value}.")
    if h % 2 or H % config.K:
        raise UserError(
            f"{where}: {H} heads of size {h} with {config.K} key/value heads: the size must be even, and heads divide."
        )
    for name, allowed in _MUST_BE.items():
        if fields.pop(name, allowed[0]) not in allowed:
            raise UserError(
                f"{where}: {family}.{name} is {metadata[f'{family}.{name}']!r}, which emjax does not compute "
                f"(it supports {' or '.join(map(repr, allowed))}). Use a model without it."
            )
    unknown = [name for name in fields if name not in _NO_MATHS]
    if unknown:
        raise UserError(
            f"{where}: emjax does not know the metadata field(s) {', '.join(f'{family}.{name}' for name in unknown)}. "
            "A field of the architecture could change the model's mathematics, so emjax refuses the file."
        )
    return config if family != "llama" else dataclasses.replace(config, rope_scaling=_rope_scaling(header, config, where))


def _rope_scaling(header: Header, config: ModelConfig, where: str) -> RopeScaling | None:
    """The llama3 scaling that llama.cpp's factors came from.

    A GGUF stores what each frequency is divided by instead of the four numbers of config.json. They
    are found by trying those of the published models, then the straight line on which the blended
    frequencies lie. Raises UserError unless they give every frequency back.
    """
    tensor = header.tensors.get(_ROPE_FACTORS)
    if tensor is None:
        return None
    if tensor.shape != (config.h // 2,) or tensor.type is not GGMLQuantizationType.F32:
        raise UserError(f"{where}: the tensor {_ROPE_FACTORS!r} must be float32 of shape [{config.h // 2}].")
    factors = Slice(Path(where), tensor, 0)[:].astype(np.float64)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise UserError(f"{where}: the tensor {_ROPE_FACTORS!r} contains numbers that are no divisors of frequencies.")
    if (factors == 1).all():
        return None
    frequencies = rope.inverse_frequencies(config)
    largest = float(factors.max())
    tried = [(factor, 2**n, 4.0) for factor in (largest, 8.0, 32.0) for n in (13, *range(4, 24))]
    share = (1 / factors - 1 / largest) / (1 - 1 / largest) if largest != 1 else factors
    between = (share > 0) & (share < 1)
    if between.sum() > 1:
        slope, offset = np.polyfit(frequencies[between] / (2 * math.pi), share[between], 1)
        if offset < 0 < slope:
            tried.append((largest, round(slope / -offset), round(1 - 1 / offset, 3)))
    for factor, positions, high in tried:
        scaling = RopeScaling(factor, 1.0, high, positions)
        scaled = rope.inverse_frequencies(dataclasses.replace(config, rope_scaling=scaling))
        # float32 rounds the factors; another whole number of positions changes them by 1e-5 or more
        if np.allclose(scaled, frequencies / factors, rtol=2e-6, atol=0):
            return scaling
    raise UserError(
        f"{where}: the factors in the tensor {_ROPE_FACTORS!r} are not those of a llama3 rope scaling, the only one that "
        "emjax computes. Use a model without them."
    )


def _tensors(header: Header, config: ModelConfig, where: str) -> dict[str, Tensor]:
    """Hugging Face name -> tensor, for exactly the tensors that the config calls for."""
    D, F, q, k = config.D, config.F, config.H * config.h, config.K * config.h
    shapes = {
        "attn_norm": (D,), "q": (q, D), "k": (k, D), "v": (k, D), "o": (D, q), "mlp_norm": (D,), "gate": (F, D), "up": (F, D),
        "down": (D, F),
    }  # fmt: skip
    if config.qkv_bias:
        shapes |= {"q_bias": (q,), "k_bias": (k,), "v_bias": (k,)}
    if config.qk_norm:
        shapes |= {"q_norm": (config.h,), "k_norm": (config.h,)}
    if config.L > len(header.tensors):
        raise UserError(f"{where}: {config.family}.block_count is {config.L}, but the file has {len(header.tensors)} tensors.")
    left = dict(header.tensors)
    if config.family == "llama":
        left.pop(_ROPE_FACTORS, None)
    found = {}

    def take(name: str, called: str, shape: tuple[int, ...]) -> None:
        tensor = left.pop(name, None)
        if tensor is None:
            raise UserError(f"{where}: the tensor {name!r} that the metadata calls for is missing; fetch the file again.")
        if tensor.shape != shape:
            raise UserError(f"{where}: the tensor {name!r} has the shape {tensor.shape}, but the metadata calls for {shape}.")
        found[called] = tensor

    for name, called in _TOP.items():
        if name != "output.weight" or not config.tied:
            take(name, called, (D,) if called.endswith("norm.weight") else (config.V, D))
    for layer in range(config.L):
        for ours, shape in shapes.items():
            take(f"blk.{layer}.{_LAYER[ours]}", f"model.layers.{layer}.{files.LAYER[ours]}", shape)
    if left:
        raise UserError(
            f"{where}: the tensor {next(iter(left))!r} is not part of a {config.family} model as emjax computes it "
            f"({len(left)} such tensors). Use a model without it."
        )
    listed = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(listed, list) and len(listed) > config.V:
        raise UserError(
            f"{where}: tokenizer.ggml.tokens lists {len(listed)} tokens, but the embedding table has {config.V} rows."
        )
    return found


def convert(path: str | Path, folder: str | Path, *, dtype: str = "") -> None:
    """Writes a GGUF as a Hugging Face folder: weights, config, tokenizer, chat template, ids.

    dtype: float32 or bfloat16; by default each tensor as it is read, quantised ones in
    float32. The host holds one shard of a gigabyte, or one larger tensor, at a time.
    Raises UserError for a file that cannot be read and a folder that is not empty.
    """
    source, folder = File(path), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; give another one.")
    tokenizer = source.tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"float32": "F32", "bfloat16": "BF16"}
    numpy_types = dict(_PLAIN.values())
    shards: list[list[str]] = [[]]
    size = total = 0
    (_, handle), *_ = source.handles()
    for name in handle.keys():  # noqa: SIM118 - a handle is not a dict
        tensor = handle.get_slice(name)
        nbytes = math.prod(tensor.get_shape()) * numpy_types[kinds.get(dtype, tensor.get_dtype())].itemsize
        if size and size + nbytes > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size, total = size + nbytes, total + nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name in shard:
            tensor = handle.get_slice(name)
            tensors[name] = tensor[:].astype(numpy_types[kinds.get(dtype, tensor.get_dtype())], copy=False)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
        del tensors
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(source.generation(), indent=1))
    stored = {"dtype": dtype or {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[_common(handle)]}
    (folder / "config.json").write_text(json.dumps(source.config() | stored, indent=1))


def _common(handle: Handle) -> str:
    """What the projections are stored as; norms are float32 in every GGUF."""
    return handle.get_slice("model.layers.0." + files.LAYER["down"]).get_dtype()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m emjax.models.gguf", description="Writes a GGUF as a Hugging Face folder.")
    parser.add_argument("file", help="MODEL.gguf")
    parser.add_argument("folder", help="a new or empty folder")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="", help="default: as stored, else float32")
    given = parser.parse_args(arguments)
    try:
        convert(given.file, given.folder, dtype=given.dtype)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{given.folder}: written from {given.file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
