"""Model configuration, read from a Hugging Face config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from emjax.errors import UserError
from emjax.models import keys
from emjax.runtime.numbers import finite, integer


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
    def from_hf(cls, hf: Mapping[str, Any], where: str = "config.json") -> "ModelConfig":
        """The config that transformers makes of the content of a config.json.

        where: the file, for messages. Raises a UserError that names the first key that emjax does
        not implement, or whose value is no such number. Keys that transformers does not act on are
        ignored (keys.ignored lists them).
        """
        family = hf.get("model_type")
        if not isinstance(family, str) or family not in keys.ALL:
            raise UserError(
                f"{where}: model_type {family!r} is not supported. emjax runs dense Llama 3.x, Qwen2.5 "
                f"and Qwen3 checkpoints (model_type {', '.join(keys.ALL)}); choose one of these."
            )

        def size(name: str, high: int) -> int:
            return integer(
                hf.get(name, None if name not in keys.DEFAULTS else keys.default(name, family)),
                f"{where}: {name}",
                low=1,
                high=high,
            )

        D, H = size("hidden_size", _WIDEST), size("num_attention_heads", _MOST_HEADS)
        L, max_position = size("num_hidden_layers", _MOST_LAYERS), size("max_position_embeddings", _LONGEST)
        K = H if _derived(hf, "num_key_value_heads", family) else size("num_key_value_heads", _MOST_HEADS)
        if H % K:
            raise UserError(f"{where}: num_attention_heads {H} is not a multiple of the {K} key/value heads.")
        derived = _derived(hf, "head_dim", family)
        if derived and D % H:
            raise UserError(f"{where}: hidden_size {D} is not a multiple of num_attention_heads {H}, and there is no head_dim.")
        h = D // H if derived else size("head_dim", _WIDEST)
        if h % 2:
            raise UserError(f"{where}: head_dim is {h}; rotary embeddings need an even number.")
        tied = hf.get("tie_word_embeddings", False)
        if not isinstance(tied, bool):
            raise UserError(f"{where}: tie_word_embeddings is {tied!r}; it must be true or false.")
        _refuse_windows(hf, family, L, max_position, where)
        for name, key in keys.known(family).items():
            value = hf.get(name)
            if key.does == "neutral" and name not in _WINDOWS and value is not None and value not in key.neutral:
                supported = " or ".join(repr(one) for one in key.neutral if one not in ({}, []))
                raise UserError(
                    f"{where}: {name} = {keys.shown(value)} changes the model's mathematics in a way that emjax does not "
                    f"implement{f' (it supports {supported})' if supported else ''}. Use a checkpoint without it."
                )
        theta, scaling = _rope(hf, max_position, where)
        return cls(
            family=family,
            V=size("vocab_size", _MOST_TOKENS),
            D=D,
            L=L,
            H=H,
            K=K,
            h=h,
            F=size("intermediate_size", _WIDEST),
            norm_eps=finite(hf.get("rms_norm_eps", keys.default("rms_norm_eps", family)), f"{where}: rms_norm_eps", low=0),
            rope_theta=theta,
            rope_scaling=scaling,
            max_position=max_position,
            tied=tied,
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            init_std=finite(hf.get("initializer_range", 0.02), f"{where}: initializer_range", low=0),
        )

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
            # The same in the words of transformers 5 and 4.
            "rope_parameters": rope,
            **({} if self.rope_scaling is None else {"rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"}}),
            "max_position_embeddings": self.max_position,
            "tie_word_embeddings": self.tied,
            "initializer_range": self.init_std,
            # Qwen2's bias is implied by its model type; Qwen3 and Llama have none.
            **({} if self.qkv_bias else {"attention_bias": False}),
        }


def _derived(hf: Mapping[str, Any], name: str, family: str) -> bool:
    """Whether transformers derives a size from others: it is null or missing and the class has no
    number for it."""
    return hf.get(name) is None and (keys.default(name, family) is None or (name in hf and name == "num_key_value_heads"))


def _refuse_windows(hf: Mapping[str, Any], family: str, L: int, max_position: int, where: str) -> None:
    """Raises UserError if a layer does not attend to all earlier positions."""
    window, types = hf.get("sliding_window", keys.default("sliding_window", family)), hf.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or set(map(str, types)) - _FULL:
            raise UserError(f"{where}: layer_types = {types!r}; emjax implements only layers of full attention.")
        return
    if window is None or family in keys.QWEN and not hf.get("use_sliding_window"):
        return
    window = integer(window, f"{where}: sliding_window", low=1)
    first = 0
    if family in keys.QWEN:
        given = hf.get("max_window_layers", keys.default("max_window_layers", family))
        first = integer(given, f"{where}: max_window_layers", low=0)
    if window < max_position and first < L:
        raise UserError(
            f"{where}: sliding_window = {window} (with use_sliding_window = {hf.get('use_sliding_window')!r}) limits what "
            f"layers from {first} on attend to, which emjax does not implement. Use a checkpoint without it."
        )


def _rope(hf: Mapping[str, Any], max_position: int, where: str) -> tuple[float, RopeScaling | None]:
    """(theta, scaling). What rope_theta, rope_parameters and rope_scaling say must agree: versions
    of transformers read different ones."""
    top = hf.get("rope_theta")
    found = {name: _rope_in(hf, name, where) for name in ("rope_parameters", "rope_scaling") if hf.get(name)}
    rope = next(iter(found.values()), {"rope_type": "default", "rope_theta": keys.THETA if top is None else top})
    if len(found) == 2:
        for name in {**found["rope_parameters"], **found["rope_scaling"]}:
            one, other = (place.get(name) for place in found.values())
            if one != other:
                raise UserError(
                    f"{where}: rope_parameters has {name} = {one!r}, but rope_scaling has {other!r}: two accounts of one "
                    "thing. Correct the one that is wrong."
                )
    theta = finite(rope["rope_theta"], f"{where}: rope_theta", above=0)
    if top is not None and top != theta:
        raise UserError(
            f"{where}: rope_theta is {top!r}, but {next(iter(found))}.rope_theta is {theta!r}. transformers 4 reads the former "
            "and transformers 5 the latter: correct the one that is wrong."
        )
    kind = rope["rope_type"]
    if not isinstance(kind, str) or kind not in keys.ROPE or (kind == "linear" and rope.get("factor") != 1):
        raise UserError(
            f"{where}: rope type {kind!r} is not implemented (emjax knows 'default' and 'llama3'). "
            "Use a checkpoint with one of these."
        )
    if kind != "llama3":
        return theta, None

    def number(name: str, above: float = 0.0) -> float:
        return finite(rope.get(name), f"{where}: {name} of the llama3 rope scaling", above=above)

    beside = hf.get("original_max_position_embeddings")
    length = rope.get("original_max_position_embeddings", max_position if beside is None else beside)
    if beside is not None and beside != length:
        raise UserError(
            f"{where}: original_max_position_embeddings is {beside!r}, but {length!r} in the rope scaling: correct the one "
            "that is wrong."
        )
    low = number("low_freq_factor")
    return theta, RopeScaling(
        factor=number("factor"),
        low_freq_factor=low,
        high_freq_factor=number("high_freq_factor", above=low),
        original_max_position=integer(length, f"{where}: original_max_position_embeddings", low=1, high=_LONGEST),
    )


def _rope_in(hf: Mapping[str, Any], place: str, where: str) -> dict[str, Any]:
    """What rope_parameters or rope_scaling says, with the names of transformers 5."""
    found = hf[place]
    if not isinstance(found, dict) or any(isinstance(value, dict) for value in found.values()):
        raise UserError(f"{where}: {place} is {found!r}; it must be one object with the fields of a rope scaling.")
    rope = {name: value for name, value in found.items() if name != "type" and value is not None}
    kind = found.get("type", rope.get("rope_type", "default"))
    if rope.setdefault("rope_type", kind) != kind:
        raise UserError(f"{where}: {place} has rope_type = {rope['rope_type']!r} and type = {kind!r}; delete the wrong one.")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise UserError(
            f"{where}: {place}.partial_rotary_factor = {rope['partial_rotary_factor']!r} is not implemented (emjax rotates "
            "whole heads). Use a checkpoint without it."
        )
    top = hf.get("rope_theta")
    theta = rope.get("rope_theta", keys.THETA if top is None else top)
    read = keys.ROPE.get(rope["rope_type"], ()) if isinstance(rope["rope_type"], str) else ()
    return {"rope_type": rope["rope_type"], "rope_theta": theta} | {name: rope[name] for name in read if name in rope}


_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_WINDOWS = ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers")
_FULL = {"full_attention", "attention"}
# Beyond every model; a damaged file could name sizes that nothing can hold.
_WIDEST, _MOST_HEADS, _MOST_LAYERS, _MOST_TOKENS, _LONGEST = 1 << 20, 1 << 14, 1 << 12, 1 << 24, 1 << 40
