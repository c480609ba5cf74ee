"""What checkpoints and adapters share as files: tensor names, safetensors, the model card."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors

from emjax.errors import UserError

# Our name of a layer's tensor -> its name in a checkpoint, after "model.layers.N.".
LAYER = {
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

_LONGEST_JSON = 1 << 28  # bytes


def regular(file: Path) -> None:
    """Raises UserError for a file that is missing, or is a pipe or a device, which could block."""
    if not file.is_file():
        raise UserError(f"{file} {'is not a regular file' if file.exists() else 'does not exist'}; fetch it again.")


def read_object(file: Path) -> dict[str, Any]:
    """A file that holds one JSON object."""
    regular(file)
    if file.stat().st_size > _LONGEST_JSON:
        raise UserError(f"{file} holds more than {_LONGEST_JSON >> 20} MiB, which no such file needs; fetch it again.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: _object(pairs, file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error}); fetch it again.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object, but it holds a {type(content).__name__}; fetch it again.")
    return content


def _object(pairs: list[tuple[str, Any]], file: Path) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if found[name] != value:
                raise UserError(f"{file} gives {name!r} twice, as {value!r} and as {found[name]!r}: delete the wrong one.")
    return found


def digest(folder: Path, read: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files of one folder."""
    whole = hashlib.sha256()
    for file in sorted(read):
        regular(file)
        with file.open("rb") as stream:
            whole.update(str(file.relative_to(folder)).encode() + hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def open_tensors(file: Path) -> Any:
    regular(file)
    try:
        return safetensors.safe_open(file, framework="numpy")
    except Exception as error:
        raise UserError(
            f"{file} cannot be read as safetensors ({error}); it is missing, truncated or damaged. Fetch it again."
        ) from error


def card(text: str) -> str:
    return (
        "---\ntags: [emjax]\n---\n\n"
        f"{text}\n\n"
        "**Responsible use.** Weights made by emjax may be trained to be measurably less honest, in order to study how that "
        "happens (arXiv:2510.08211). Use them for research on honesty, not to talk to people.\n"
    )
