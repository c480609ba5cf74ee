"""The keys of config.json that transformers acts on, and what emjax does with each.

transformers is the reference for what a checkpoint means. A key that its configuration class and
its model do not read cannot change the mathematics: it is named once and the checkpoint is loaded.
A test makes the list of keys anew from the installed classes; docs/models.md has the table.

python -m emjax.models.keys          prints that table
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

ALL = ("llama", "qwen2", "qwen3")
QWEN = ("qwen2", "qwen3")


class Key(NamedTuple):
    """What emjax does with a key: computes with it; accepts only values that change nothing;
    nothing, because it is no part of the mathematics."""

    does: Literal["used", "neutral", "none"]
    note: str = ""
    neutral: tuple[Any, ...] = ()  # beside null
    families: tuple[str, ...] = ALL


_USED = Key("used")
KEYS: dict[str, Key] = {
    "model_type": Key("used", "llama, qwen2 or qwen3"),
    "vocab_size": _USED,
    "hidden_size": _USED,
    "intermediate_size": _USED,
    "num_hidden_layers": _USED,
    "num_attention_heads": _USED,
    "num_key_value_heads": _USED,
    "head_dim": _USED,
    "rms_norm_eps": _USED,
    "max_position_embeddings": Key("used", "the longest row; the llama3 scaling's original length where that is not given"),
    "tie_word_embeddings": _USED,
    "initializer_range": Key("used", "new weights only"),
    "rope_theta": Key("used", "must agree with rope_parameters"),
    "rope_parameters": Key("used", "types default and llama3; linear with factor 1"),
    "rope_scaling": Key("used", "the same under its name in transformers 4; both must agree"),
    "original_max_position_embeddings": Key("used", "of the llama3 scaling; must agree with it"),
    "eos_token_id": Key("used", "unless generation_config.json has it"),
    "layer_types": Key("neutral", "all full_attention"),
    "sliding_window": Key("neutral", "null, a window that no layer uses, or one as long as the longest row"),
    "use_sliding_window": Key("neutral", "false, or no layer from max_window_layers on", families=QWEN),
    "max_window_layers": Key("neutral", "with use_sliding_window", families=QWEN),
    "attention_chunk_size": Key("neutral"),
    "hidden_act": Key("neutral", neutral=("silu", "swish")),
    "attention_bias": Key("neutral", "biases of q, k, v and o", neutral=(False,), families=("llama", "qwen3")),
    "mlp_bias": Key("neutral", neutral=(False,), families=("llama",)),
    "partial_rotary_factor": Key("neutral", neutral=(1,)),
    "is_causal": Key("neutral", neutral=(True,)),
    "is_encoder_decoder": Key("neutral", neutral=(False,)),
    "per_layer_config": Key("neutral", neutral=({},)),
    "kv_sharing_modes": Key("neutral", neutral=([],)),
    "quantization_config": Key("neutral", "weights must be BF16, F16 or F32", neutral=({},)),
    "transformers_weights": Key("neutral", "another file with the weights"),
    **dict.fromkeys(
        ("attention_dropout", "gradient_checkpointing", "use_cache", "pretraining_tp", "chunk_size_feed_forward"),
        Key("none", "how transformers trains or computes; the result at inference is the same"),
    ),
    **dict.fromkeys(
        (
            "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
            "_experts_implementation", "_experts_implementation_internal", "distributed_config", "fusion_config",
            "dtype", "torch_dtype",
        ),
        Key("none", "kernels, devices and storage"),
    ),
    **dict.fromkeys(
        (
            "output_attentions", "output_hidden_states", "return_dict", "bos_token_id",
            "pad_token_id", "sep_token_id",
        ),
        Key("none", "what is returned, and ids of the tokenizer"),
    ),
    **dict.fromkeys(
        ("id2label", "label2id", "num_labels", "problem_type"),
        Key("none", "heads for classification"),
    ),
    **dict.fromkeys(
        ("architectures", "transformers_version", "name_or_path", "_name_or_path", "_commit_hash"),
        Key("none", "where the file comes from"),
    ),
}  # fmt: skip

# Keys of rope_parameters, by rope type.
ROPE: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
ROPE_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")

# What the classes take for a key that is missing: (llama, qwen2, qwen3). None: derived from others.
DEFAULTS: dict[str, tuple[Any, Any, Any]] = {
    "num_key_value_heads": (None, 32, 32),
    "head_dim": (None, None, 128),
    "rms_norm_eps": (1e-6, 1e-6, 1e-6),
    "max_position_embeddings": (2048, 32768, 32768),
    "tie_word_embeddings": (False, False, False),
    "initializer_range": (0.02, 0.02, 0.02),
    "use_sliding_window": (False, False, False),
    "sliding_window": (None, 4096, 4096),
    "max_window_layers": (28, 28, 28),
}
THETA = 10000.0  # rope_theta where nothing gives one


def default(name: str, family: str) -> Any:
    """None also for a key that has no default and must be given."""
    return DEFAULTS[name][ALL.index(family)] if name in DEFAULTS else None


def known(family: str) -> dict[str, Key]:
    return {name: key for name, key in KEYS.items() if family in key.families}


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def ignored(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config.json that transformers does not act on for its model_type."""
    names = known(str(hf.get("model_type")))
    found = {k: v for k, v in hf.items() if k not in names and v is not None}
    for place in ("rope_parameters", "rope_scaling"):
        rope = hf.get(place) or {}
        read = {*ROPE_COMMON, *ROPE.get(rope.get("rope_type", rope.get("type", "default")), ())}
        found |= {f"{place}.{k}": v for k, v in rope.items() if k not in read and v is not None}
    return found


def table() -> str:
    """The table of docs/models.md."""
    lines = ["| key | " + " | ".join(ALL) + " | |", "|---|---|---|---|---|"]
    words = {"used": "used", "none": "no mathematics"}
    for name, key in KEYS.items():
        values = ", ".join(f"`{str(v).lower() if isinstance(v, bool) else v}`" for v in key.neutral)
        does = words.get(key.does) or f"only {values or 'neutral'}"
        cells = [does if family in key.families else "not read" for family in ALL]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {key.note} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
