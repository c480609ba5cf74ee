"""config.json: what is read, what is refused, and that nothing read is forgotten."""

import ast
import dataclasses
from pathlib import Path

import pytest

import emjax
from emjax.errors import UserError
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
REFUSED = {
    "mixture of experts": ("qwen2.5-7b", {"model_type": "qwen3_moe"}, "qwen3_moe"),
    "unknown architecture": ("llama3.1-8b", {"model_type": "mistral"}, "mistral"),
    "sliding window": ("qwen2.5-7b", {"use_sliding_window": True}, "use_sliding_window"),
    "windowed layers": ("qwen3-32b", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
    "yarn": ("qwen2.5-7b", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
    "linear": ("llama3.1-8b", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": None}, "linear"),
    "llama3 without factor": (
        "llama3.1-8b", {"rope_scaling": {k: v for k, v in LLAMA3.items() if k != "factor"}}, "factor"
    ),
    "rope field": ("llama3.1-8b", {"rope_scaling": LLAMA3 | {"attention_factor": 1.5}}, "attention_factor"),
    "partial rope": ("qwen3-32b", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    "mlp_bias": ("llama3.1-8b", {"mlp_bias": True}, "mlp_bias"),
    "attention_bias": ("llama3.1-8b", {"attention_bias": True}, "attention_bias"),
    "activation": ("llama3.1-8b", {"hidden_act": "gelu"}, "hidden_act"),
    "quantised": ("qwen2.5-7b", {"quantization_config": {"bits": 4}}, "quantization_config"),
    "unknown field": ("qwen3-32b", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    "wrong type": ("qwen3-32b", {"num_hidden_layers": "64"}, "num_hidden_layers"),
    "no width": ("llama3.1-8b", {"hidden_size": None}, "hidden_size"),
    "heads": ("llama3.1-8b", {"num_key_value_heads": 5}, "num_attention_heads"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    base, change, named = REFUSED[case]
    with pytest.raises(UserError, match=named) as error:
        ModelConfig.from_hf(PUBLISHED[base] | change, "somewhere/config.json")
    assert "somewhere/config.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_both_places_of_the_rope_fields_read_the_same():
    old = {k: v for k, v in PUBLISHED["llama3.1-8b"].items() if k not in ("rope_theta", "rope_scaling")}
    new = old | {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}}
    assert ModelConfig.from_hf(new) == ModelConfig.from_hf(PUBLISHED["llama3.1-8b"])


@pytest.mark.parametrize(("kind", "elsewhere"), [(ModelConfig, {"family", "max_position"}), (RopeScaling, set())])
def test_every_field_has_a_reader(kind, elsewhere):
    """A field that is parsed but never used would be a model that differs from its checkpoint.

    Only the export needs the family, and the sampler's limits max_position.
    """
    files = (Path(emjax.__file__).parent / "models").glob("*.py")
    nodes = [node for f in files if f.name != "config.py" for node in ast.walk(ast.parse(f.read_text()))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert {field.name for field in dataclasses.fields(kind)} - read == elsewhere
