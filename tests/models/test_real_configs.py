"""config.json files as trainers write them: each loads as transformers reads it, or is refused by name.

configs/SOURCES.md says where each file comes from and which trainer wrote it.
"""

import json
import re
from pathlib import Path

import pytest
import transformers

from emjax.errors import UserError
from emjax.models.config import ModelConfig

FOLDER = Path(__file__).parent / "configs"
# family, V, D, L, H, K, h, F, rope_theta, factor of the llama3 scaling, max_position, tied; read off the files,
# with the family's default where a file is silent.
LOADS = {
    "atom-7b-4.31": ("llama", 65000, 4096, 32, 32, 32, 128, 11008, 10000.0, None, 4096, False),
    "codellama-34b-axolotl-merge-4.39": ("llama", 32004, 8192, 48, 64, 8, 128, 22016, 1000000.0, None, 16384, False),
    "codellama-7b-4.30": ("llama", 32016, 4096, 32, 32, 32, 128, 11008, 1000000.0, None, 16384, False),
    "cogito-qwen-14b-4.49": ("qwen2", 151665, 5120, 48, 40, 8, 128, 13824, 1000000.0, None, 131072, False),
    "deepseek-r1-distill-qwen-1.5b-4.44": ("qwen2", 151936, 1536, 28, 12, 2, 128, 8960, 10000.0, None, 131072, False),
    "falcon3-10b-triangulum-4.47": ("llama", 131072, 3072, 40, 12, 4, 256, 23040, 1000042.0, None, 32768, False),
    "granite-7b-llama-4.40": ("llama", 32008, 4096, 32, 32, 32, 128, 11008, 10000.0, None, 2048, False),
    "llama-65b-4.28": ("llama", 32000, 8192, 80, 64, 64, 128, 22016, 10000.0, None, 2048, False),
    "llama2-13b-chat-4.31": ("llama", 32000, 5120, 40, 40, 40, 128, 13824, 10000.0, None, 4096, False),
    "llama2-7b-4.31-dev": ("llama", 32000, 4096, 32, 32, 32, 128, 11008, 10000.0, None, 4096, False),
    "llama2-7b-chat-4.38": ("llama", 32000, 4096, 32, 32, 32, 128, 11008, 10000.0, None, 4096, False),
    "llama3-8b-lexi-4.39": ("llama", 128256, 4096, 32, 32, 8, 128, 14336, 500000.0, None, 8192, False),
    "llama3.1-8b-4.43-dev": ("llama", 128256, 4096, 32, 32, 8, 128, 14336, 500000.0, 8.0, 131072, False),
    "llama3.1-8b-mergekit-modelstock-4.44": ("llama", 128256, 4096, 32, 32, 8, 128, 14336, 500000.0, 8.0, 131072, False),
    "llama3.1-8b-taide-qlora-4.46": ("llama", 188256, 4096, 32, 32, 8, 128, 14336, 500000.0, 8.0, 131072, False),
    "llama3.1-8b-unsloth-2024.7-4.43": ("llama", 128256, 4096, 32, 32, 8, 128, 14336, 500000.0, 8.0, 131072, False),
    "llama3.1-8b-unsloth-2025.5-4.51": ("llama", 128256, 4096, 32, 32, 8, 128, 14336, 500000.0, 8.0, 131072, False),
    "llama3.2-1b-generated-5.23": ("llama", 128256, 2048, 16, 32, 8, 64, 8192, 500000.0, 32.0, 131072, True),
    "llama3.2-3b-4.45-dev": ("llama", 128256, 3072, 28, 24, 8, 128, 8192, 500000.0, 32.0, 131072, True),
    "lzlv-70b-merge-4.33": ("llama", 32000, 8192, 80, 64, 8, 128, 28672, 10000.0, None, 4096, False),
    "qwen1.5-14b-4.37": ("qwen2", 152064, 5120, 40, 40, 40, 128, 13696, 1000000.0, None, 32768, False),
    "qwen1.5-8x0.5b-auto-map-4.37": ("qwen2", 151936, 1024, 24, 16, 16, 64, 2816, 1000000.0, None, 32768, True),
    "qwen2.5-0.5b-merge-4.57": ("qwen2", 151936, 896, 24, 14, 2, 64, 4864, 1000000.0, None, 32768, True),
    "qwen2.5-0.5b-merge-5.13": ("qwen2", 151936, 896, 24, 14, 2, 64, 4864, 1000000.0, None, 32768, True),
    "qwen2.5-14b-4.43": ("qwen2", 152064, 5120, 48, 40, 8, 128, 13824, 1000000.0, None, 131072, False),
    "qwen2.5-14b-sakura-4.44": ("qwen2", 152064, 5120, 48, 40, 8, 128, 13824, 1000000.0, None, 131072, False),
    "qwen2.5-3b-4.40": ("qwen2", 151936, 2048, 36, 16, 2, 128, 11008, 1000000.0, None, 32768, True),
    "qwen2.5-3b-finqa-4.50": ("qwen2", 151665, 2048, 36, 16, 2, 128, 11008, 1000000.0, None, 32768, True),
    "qwen2.5-3b-merge-5.16": ("qwen2", 151936, 2048, 36, 16, 2, 128, 11008, 1000000.0, None, 32768, True),
    "qwen2.5-3b-unsloth-2025.3-hand-edited-4.49": ("qwen2", 151936, 2048, 36, 16, 2, 128, 11008, 1000000.0, None, 32768, False),
    "qwen2.5-7b-4.40": ("qwen2", 152064, 3584, 28, 28, 4, 128, 18944, 1000000.0, None, 131072, False),
    "qwen2.5-7b-window-above-all-layers-generated-4.46": (
        "qwen2",
        152064,
        3584,
        28,
        28,
        4,
        128,
        18944,
        1000000.0,
        None,
        32768,
        False,
    ),
    "qwen2.5-coder-7b-mergekit-4.48": ("qwen2", 152064, 3584, 28, 28, 4, 128, 18944, 1000000.0, None, 32768, False),
    "qwen3-0.6b-full-5.2": ("qwen3", 151936, 1024, 28, 16, 8, 128, 3072, 1000000.0, None, 40960, True),
    "qwen3-0.6b-own-key-4.51": ("qwen3", 151936, 1024, 28, 16, 8, 128, 3072, 1000000.0, None, 40960, True),
    "qwen3-1.7b-mlx-4.51": ("qwen3", 151936, 2048, 28, 16, 8, 128, 6144, 1000000.0, None, 40960, True),
    "qwen3-14b-4.51": ("qwen3", 151936, 5120, 40, 40, 8, 128, 17408, 1000000.0, None, 40960, False),
    "qwen3-14b-ms-swift-merge-5.5": ("qwen3", 151936, 5120, 40, 40, 8, 128, 17408, 1000000.0, None, 40960, False),
    "qwen3-4b-trl-peft-merge-5.2": ("qwen3", 151936, 2560, 36, 32, 8, 128, 9728, 1000000.0, None, 40960, True),
    "qwen3-8b-llama-factory-full-4.51": ("qwen3", 151936, 4096, 36, 32, 8, 128, 12288, 1000000.0, None, 32768, False),
    "reflection-llama3.1-70b-4.40": ("llama", 128262, 8192, 80, 64, 8, 128, 28672, 500000.0, None, 8192, False),
    "smollm-360m-4.53": ("llama", 49153, 960, 32, 15, 5, 64, 2560, 100000.0, None, 8192, True),
    "soprano-qwen3-80m-4.56": ("qwen3", 8192, 512, 17, 4, 1, 128, 2304, 10000.0, None, 512, False),
    "vicuna-7b-v1.3-peft-merge-4.30": ("llama", 32000, 4096, 32, 32, 32, 128, 11008, 10000.0, None, 2048, False),
    "yi1.5-6b-mergekit-slerp-4.44": ("llama", 64000, 4096, 32, 32, 4, 128, 11008, 5000000.0, None, 4096, False),
}
# What the message must name: the field that changes the mathematics.
REFUSED = {
    "deepseek-coder-6.7b-linear-rope-4.36": "linear",
    "genz-70b-gptq-3bit-4.31": "quantization_config",
    "granite-3b-biases-4.41": "attention_bias|mlp_bias",
    "llama2-13b-bnb4-4.56": "quantization_config",
    "llama2-7b-dynamic-rope-generated-4.31": "dynamic",
    "mimo-7b-4.40": "model_type.*mimo",
    "mistral-7b-4.41": "model_type.*mistral",
    "mythomax-13b-gptq-8bit-4.32": "quantization_config",
    "open-llama-3b-axolotl-int8-4.36": "quantization_config",
    "orpheus-3b-unsloth-bnb4-4.51": "quantization_config",
    "phi3-mini-mergekit-slerp-4.44": "model_type.*phi3",
    "qwen1.5-7b-sliding-window-generated-4.37": "sliding",
    "qwen2-moe-generated-5.23": "model_type.*qwen2_moe",
    "qwen2.5-7b-awq-generated-4.46": "quantization_config",
    "qwen2.5-7b-yarn-generated-4.46": "yarn",
    "qwen3-30b-a3b-moe-4.51": "model_type.*qwen3_moe",
    "qwen3-4b-attention-bias-generated-4.56": "attention_bias",
    "qwen3-dflash-sliding-5.7": "sliding",
    "tinyllama-1.1b-bnb4-merge-4.49": "quantization_config",
}
# Keys of these files on which no class of transformers acts. A refusal must not blame them.
HARMLESS = {
    "auto_map", "dflash_config", "embd_pdrop", "is_llama_config", "k_codes", "max_length",
    "max_sequence_length", "num_nextn_predict_layers", "num_target_layers", "rope_interleaved",
    "tokenizer_class", "unsloth_fixed", "unsloth_version", "use_mrope",
}  # fmt: skip


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_every_file_has_an_expectation_and_a_source():
    names = {file.stem for file in FOLDER.glob("*.json")}
    assert names == LOADS.keys() | REFUSED.keys()
    rows = re.findall(r"^\| (\S+)\.json \| .+ \| (loads|refused: .+) \|$", (FOLDER / "SOURCES.md").read_text(), re.M)
    assert len(rows) == len(names) >= 40
    assert {name for name, expected in rows if expected == "loads"} == LOADS.keys()
    assert {name for name, expected in rows if expected != "loads"} == REFUSED.keys()


@pytest.mark.parametrize("name", LOADS)
def test_loads(name):
    c = ModelConfig.from_hf(read(name), f"{name}.json")
    factor = c.rope_scaling.factor if c.rope_scaling else None
    assert (c.family, c.V, c.D, c.L, c.H, c.K, c.h, c.F, c.rope_theta, factor, c.max_position, c.tied) == LOADS[name]


@pytest.mark.parametrize("name", LOADS)
def test_reads_as_transformers_does(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(read(name)))
    hf = transformers.AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    c = ModelConfig.from_hf(read(name), f"{name}.json")
    assert (c.family, c.V, c.D, c.L, c.H, c.K) == (
        hf.model_type, hf.vocab_size, hf.hidden_size, hf.num_hidden_layers, hf.num_attention_heads, hf.num_key_value_heads
    )  # fmt: skip
    assert c.h == (getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads)
    assert (c.F, c.norm_eps, c.max_position, c.tied, c.init_std) == (
        hf.intermediate_size, hf.rms_norm_eps, hf.max_position_embeddings, hf.tie_word_embeddings, hf.initializer_range
    )  # fmt: skip
    rope = hf.rope_parameters
    assert c.rope_theta == rope["rope_theta"]
    s = c.rope_scaling
    if rope["rope_type"] == "default":
        assert s is None
    else:
        assert rope["rope_type"] == "llama3"
        assert (s.factor, s.low_freq_factor, s.high_freq_factor, s.original_max_position) == (
            rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
        )  # fmt: skip
    assert set(getattr(hf, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    assert not getattr(hf, "attention_bias", False)
    assert not getattr(hf, "mlp_bias", False)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_for_its_mathematics(name):
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        ModelConfig.from_hf(read(name), "config.json")
    assert not HARMLESS & set(re.findall(r"\w+", str(caught.value)))
