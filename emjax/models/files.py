"""What checkpoints and adapters share as files: tensor names, safetensors, the model card."""

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


def open_tensors(file: Path) -> Any:
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
