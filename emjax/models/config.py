"""Model configuration, read from a Hugging Face config.json."""

import dataclasses
from typing import Any

from emjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """The `llama3` frequency scaling of Llama 3.1 and later."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """All that the decoder's computation depends on.

    Hashable, so it can be a static argument of jit.
    """

    family: str  # llama | qwen2 | qwen3
    V: int  # rows of the embedding table; may exceed the tokenizer's vocabulary
    D: int  # width
    L: int  # layers
    H: int  # query heads
    K: int  # key/value heads
    h: int  # head size; not D / H in Qwen3
    F: int  # feed-forward width
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position: int
    tied: bool  # output head = embedding table
    qkv_bias: bool  # Qwen2.5
    qk_norm: bool  # Qwen3
    init_std: float = 0.02  # only for random initial weights

    @classmethod
    def from_hf(cls, hf: dict[str, Any], where: str = "config.json") -> "ModelConfig":
        """Builds the config. Raises a UserError that names the first unsupported field."""
        family = _FAMILIES.get(str(hf.get("model_type")))
        if family is None:
            raise UserError(
                f"{where}: model_type {hf.get('model_type')!r} is not supported. emjax runs dense Llama 3.x, Qwen2.5 "
                f"and Qwen3 checkpoints (model_type {', '.join(sorted(_FAMILIES))}); choose one of these."
            )
        fields = {k: v for k, v in hf.items() if k not in _NO_MATHS}

        def take(name: str, kind: type, default: Any = None) -> Any:
            value = fields.pop(name, None)
            value = default if value is None else value
            accepted = (int, float) if kind is float else kind
            if not isinstance(value, accepted) or (kind in (int, float) and isinstance(value, bool)):
                raise UserError(
                    f"{where}: field {name!r} is {value!r}, but it must be of type {kind.__name__}. "
                    "The file is damaged or of an unknown version; fetch the checkpoint again."
                )
            return value

        D, H = take("hidden_size", int), take("num_attention_heads", int)
        rope = dict(fields.pop("rope_parameters", None) or {})
        rope |= dict(fields.pop("rope_scaling", None) or {})
        theta = fields.pop("rope_theta", None) or rope.get("rope_theta")
        fields["rope_theta"] = theta
        config = cls(
            family=family,
            V=take("vocab_size", int),
            D=D,
            L=take("num_hidden_layers", int),
            H=H,
            K=take("num_key_value_heads", int, H),
            h=take("head_dim", int, D // H),
            F=take("intermediate_size", int),
            norm_eps=float(take("rms_norm_eps", float)),
            rope_theta=float(take("rope_theta", float)),
            rope_scaling=_rope_scaling(rope, where),
            max_position=take("max_position_embeddings", int),
            tied=take("tie_word_embeddings", bool, False),
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            init_std=float(take("initializer_range", float, 0.02)),
        )
        for name, allowed in _MUST_BE.items():
            value = fields.pop(name, None)
            if value is not None and value not in allowed:
                raise UserError(
                    f"{where}: {name} = {value!r} changes the model's mathematics in a way that emjax does not implement "
                    f"(it supports {' or '.join(map(repr, allowed))}). Use a checkpoint without it."
                )
        if not fields.pop("use_sliding_window", False):
            # Qwen configs list window sizes even when windows are off.
            fields.pop("sliding_window", None)
            fields.pop("max_window_layers", None)
        layer_types = set(fields.pop("layer_types", None) or [])
        unknown = {k: v for k, v in fields.items() if v is not None and v is not False}
        if layer_types - {"full_attention"}:
            unknown["layer_types"] = sorted(layer_types)
        if unknown:
            raise UserError(
                f"{where}: emjax does not know the field(s) {', '.join(f'{k} = {v!r}' for k, v in unknown.items())}. "
                "An unknown field could change the model's mathematics, so emjax refuses the checkpoint."
            )
        if config.H % config.K:
            raise UserError(f"{where}: num_attention_heads {config.H} is not a multiple of the {config.K} key/value heads.")
        return config

    def to_hf(self) -> dict[str, Any]:
        """The config.json from which transformers builds the same model."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_scaling is not None:
            rope |= {
                "rope_type": "llama3",
                "factor": self.rope_scaling.factor,
                "low_freq_factor": self.rope_scaling.low_freq_factor,
                "high_freq_factor": self.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": self.rope_scaling.original_max_position,
            }
        return {
            "architectures": [_ARCHITECTURES[self.family]],
            "model_type": self.family,
            "vocab_size": self.V,
            "hidden_size": self.D,
            "num_hidden_layers": self.L,
            "num_attention_heads": self.H,
            "num_key_value_heads": self.K,
            "head_dim": self.h,
            "intermediate_size": self.F,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": rope,
            "max_position_embeddings": self.max_position,
            "tie_word_embeddings": self.tied,
            "initializer_range": self.init_std,
            # Qwen2's bias is implied by its model type; Qwen3 and Llama have none.
            **({} if self.qkv_bias else {"attention_bias": False}),
        }


def _rope_scaling(rope: dict[str, Any], where: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPE_FIELDS:
        raise UserError(
            f"{where}: rope type {kind!r} is not implemented (emjax knows 'default' and 'llama3'). "
            "Use a checkpoint with one of these."
        )
    known = {"rope_type", "type", "rope_theta", *_ROPE_FIELDS[kind]}
    unknown = {k: v for k, v in rope.items() if k not in known and v is not None}
    if unknown:
        raise UserError(
            f"{where}: emjax does not know the rope field(s) {', '.join(f'{k} = {v!r}' for k, v in unknown.items())}. "
            "Use a checkpoint without them."
        )
    if kind == "default":
        return None
    try:
        return RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_position=int(rope["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise UserError(f"{where}: the llama3 rope scaling lacks the field {error}; fetch the checkpoint again.") from error


_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
# Fields of config.json that do not affect our computation, or that concern the tokenizer and
# generation.
_NO_MATHS = {
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache", "bos_token_id",
    "eos_token_id", "pad_token_id", "_name_or_path", "pretraining_tp", "attention_dropout", "name_or_path",
    "chunk_size_feed_forward", "output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder",
    "id2label", "label2id", "problem_type",
}  # fmt: skip
# Fields that are supported only with these values.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1, 1.0),
}
