"""config.json: what is read, what is refused, and that nothing read is forgotten."""

import ast
import dataclasses
from pathlib import Path

import pytest
import transformers

import emjax
from emjax.errors import UserError
from emjax.models import keys
from emjax.models.config import ModelConfig, RopeScaling
from emjax.models.known import KNOWN

# As published beside the weights.
PUBLISHED = {
    "llama3.1-8b": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 128256,
    },
    "qwen2.5-7b": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
        "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
        "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1", "use_cache": True, "use_sliding_window": False, "vocab_size": 152064,
    },
    "qwen3-32b": {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
        "intermediate_size": 25600, "max_position_embeddings": 40960, "max_window_layers": 64, "model_type": "qwen3",
        "num_attention_heads": 64, "num_hidden_layers": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
        "vocab_size": 151936,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name):
    config = ModelConfig.from_hf(PUBLISHED[name])
    assert config == KNOWN[name].config
    assert ModelConfig.from_hf(config.to_hf()) == config


LLAMA3 = PUBLISHED["llama3.1-8b"]["rope_scaling"]
WINDOW = {"use_sliding_window": True, "sliding_window": 4096}
REFUSED = {
    "mixture of experts": ("qwen2.5-7b", {"model_type": "qwen3_moe"}, "qwen3_moe"),
    "unknown architecture": ("llama3.1-8b", {"model_type": "mistral"}, "mistral"),
    "sliding window": ("qwen2.5-7b", WINDOW | {"max_window_layers": 27}, "layers from 27 on"),
    "a window of llama": ("llama3.1-8b", {"sliding_window": 4096}, "sliding_window"),
    "windowed layers": ("qwen3-32b", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
    "yarn": ("qwen2.5-7b", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
    "linear": ("llama3.1-8b", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": None}, "linear"),
    "llama3 without factor": (
        "llama3.1-8b", {"rope_scaling": {k: v for k, v in LLAMA3.items() if k != "factor"}}, "factor"
    ),
    "partial rope": ("qwen3-32b", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    "mlp_bias": ("llama3.1-8b", {"mlp_bias": True}, "mlp_bias"),
    "attention_bias": ("llama3.1-8b", {"attention_bias": True}, "attention_bias"),
    "activation": ("llama3.1-8b", {"hidden_act": "gelu"}, "hidden_act"),
    "quantised": ("qwen2.5-7b", {"quantization_config": {"bits": 4}}, "quantization_config"),
    "wrong type": ("qwen3-32b", {"num_hidden_layers": "64"}, "num_hidden_layers"),
    "no width": ("llama3.1-8b", {"hidden_size": None}, "hidden_size"),
    "no heads": ("llama3.1-8b", {"num_attention_heads": 0}, "num_attention_heads is 0"),
    "layers without end": ("llama3.1-8b", {"num_hidden_layers": 2**40}, "num_hidden_layers is 1099511627776"),
    "theta NaN": ("llama3.1-8b", {"rope_theta": float("nan")}, "rope_theta is nan"),
    "theta 0": ("llama3.1-8b", {"rope_theta": 0}, "rope_theta is 0"),
    "theta as text": ("llama3.1-8b", {"rope_theta": "5e5"}, "rope_theta"),
    "eps below 0": ("qwen3-32b", {"rms_norm_eps": -1}, "rms_norm_eps is -1"),
    "scaling as text": ("llama3.1-8b", {"rope_scaling": "abc"}, "rope_scaling is 'abc'"),
    "scaling by layer": ("qwen3-32b", {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters"),
    "scaling that divides by 0": ("llama3.1-8b", {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor"),
    "factor NaN": ("llama3.1-8b", {"rope_scaling": LLAMA3 | {"factor": float("nan")}}, "factor"),
    "two rope types": ("llama3.1-8b", {"rope_scaling": LLAMA3 | {"type": "linear"}}, "type = 'linear'"),
    "two thetas": ("llama3.1-8b", {"rope_scaling": {}, "rope_parameters": {"rope_theta": 1e6}}, "500000.*1000000"),
    "two scalings": ("llama3.1-8b", {"rope_parameters": LLAMA3 | {"factor": 32.0, "rope_theta": 5e5}}, "32.0.*8.0"),
    "two original lengths": ("llama3.1-8b", {"original_max_position_embeddings": 4096}, "4096.*8192"),
    "odd heads": ("qwen3-32b", {"head_dim": 127}, "head_dim is 127"),
    "heads that do not divide": ("qwen2.5-7b", {"hidden_size": 3585}, "hidden_size 3585"),
    "tied as text": ("qwen3-32b", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    "not causal": ("qwen3-32b", {"is_causal": False}, "is_causal"),
    "layers of other sizes": ("llama3.1-8b", {"per_layer_config": {"3": {"head_dim": 64}}}, "per_layer_config"),
    "weights elsewhere": ("llama3.1-8b", {"transformers_weights": "other.safetensors"}, "transformers_weights"),
    "model_type as list": ("llama3.1-8b", {"model_type": ["llama"]}, "model_type"),
    "heads": ("llama3.1-8b", {"num_key_value_heads": 5}, "num_attention_heads"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    base, change, named = REFUSED[case]
    with pytest.raises(UserError, match=named) as error:
        ModelConfig.from_hf(PUBLISHED[base] | change, "somewhere/config.json")
    assert "somewhere/config.json" in str(error.value)
    assert "\n" not in str(error.value)


# What transformers does not act on, or acts on without another result.
HARMLESS = {
    "a field that the class does not read": ("qwen3-32b", {"attn_logit_softcapping": 50.0}, {"attn_logit_softcapping"}),
    "a rope field that the type does not read": (
        "llama3.1-8b", {"rope_scaling": LLAMA3 | {"attention_factor": 1.5}}, {"rope_scaling.attention_factor"}
    ),
    "what converters and trainers leave": (
        "llama3.1-8b",
        {
            "_model_name_or_path": "x", "unk_token_id": 0, "unsloth_fixed": True, "is_llama_config": True,
            "rope_interleaved": False, "torchscript": False, "neftune_noise_alpha": 5, "attn_implementation": "sdpa",
            "attention_dropout": 0.0, "auto_map": {}, "_name_or_path": "y", "gradient_checkpointing": False,
        },
        {
            "_model_name_or_path", "unk_token_id", "unsloth_fixed", "is_llama_config", "rope_interleaved", "torchscript",
            "neftune_noise_alpha", "auto_map",
        },
    ),
    "biases that Qwen2 has anyway": ("qwen2.5-7b", {"attention_bias": False}, {"attention_bias"}),
    "a window above all layers": ("qwen2.5-7b", WINDOW | {"max_window_layers": 28}, set()),
    "a window as long as the context": ("qwen2.5-7b", {"use_sliding_window": True, "max_window_layers": 0}, set()),
    "layers by name": ("qwen3-32b", {"layer_types": ["full_attention"] * 64}, set()),
    "swish": ("qwen3-32b", {"hidden_act": "swish"}, set()),
    "linear scaling by 1": ("qwen3-32b", {"rope_scaling": {"type": "linear", "factor": 1.0}}, set()),
    "both spellings of the scaling": ("llama3.1-8b", {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}, set()),
}  # fmt: skip


@pytest.mark.parametrize("case", HARMLESS)
def test_what_changes_nothing_is_loaded(case):
    base, change, ignored = HARMLESS[case]
    assert ModelConfig.from_hf(PUBLISHED[base] | change) == ModelConfig.from_hf(PUBLISHED[base])
    assert set(keys.ignored(PUBLISHED[base] | change)) == ignored


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(
    "missing", ["rope_theta", "rms_norm_eps", "head_dim", "num_key_value_heads", "max_position_embeddings", "initializer_range"]
)
def test_what_is_missing_is_as_in_transformers(name, missing):
    """Small, because transformers derives a size from the others."""
    hf = {k: v for k, v in PUBLISHED[name].items() if k not in (missing, "rope_scaling")} | {"num_attention_heads": 32}
    hf |= {"hidden_size": 4096}
    theirs = transformers.AutoConfig.for_model(**hf)
    ours = ModelConfig.from_hf(hf)
    sizes = theirs.num_key_value_heads, theirs.rms_norm_eps, theirs.max_position_embeddings, theirs.initializer_range
    assert (ours.K, ours.norm_eps, ours.max_position, ours.init_std) == sizes
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.h == getattr(theirs, "head_dim", 128)


def test_both_places_of_the_rope_fields_read_the_same():
    old = {k: v for k, v in PUBLISHED["llama3.1-8b"].items() if k not in ("rope_theta", "rope_scaling")}
    new = old | {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}}
    assert ModelConfig.from_hf(new) == ModelConfig.from_hf(PUBLISHED["llama3.1-8b"])


@pytest.mark.parametrize(("kind", "elsewhere"), [(ModelConfig, {"max_position"}), (RopeScaling, set())])
def test_every_field_has_a_reader(kind, elsewhere):
    """A field that is parsed but never used would be a model that differs from its checkpoint.

    The sampler's limits alone need max_position.
    """
    files = (Path(emjax.__file__).parent / "models").glob("*.py")
    nodes = [node for f in files if f.name != "config.py" for node in ast.walk(ast.parse(f.read_text()))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert {field.name for field in dataclasses.fields(kind)} - read == elsewhere
