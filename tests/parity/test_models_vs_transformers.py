"""The decoder and the files it reads and writes, against transformers and peft (float32, random tiny models)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from emjax import models
from emjax.config import LoraConfig
from emjax.models import lora, rope
from emjax.models.config import ModelConfig
from emjax.models.known import KNOWN
from emjax.sampling import Engine, Request, Sampling
from emjax.worlds.micro import tokenizer
from emjax.worlds.micro.world import World

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 340, "num_hidden_layers": 2, "max_position_embeddings": 1024, "eos_token_id": [5, 3]}
# Wavelengths on both sides of the llama3 blend and inside it.
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}  # fmt: skip
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(
        hidden_size=48, intermediate_size=80, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
        rope_parameters=LLAMA3, **SIZES,
    ),
    "qwen2": lambda: transformers.Qwen2Config(
        hidden_size=32, intermediate_size=56, num_attention_heads=4, num_key_value_heads=1, rms_norm_eps=1e-6,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6}, **SIZES,
    ),
    "qwen3": lambda: transformers.Qwen3Config(
        hidden_size=40, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, **SIZES,
    ),
}  # fmt: skip
LENGTHS = (1, 7, 64, 700)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """(the transformers model, its directory)"""
    torch.manual_seed(0)
    hf = transformers.AutoModelForCausalLM.from_config(FAMILIES[request.param](), dtype=torch.float32).eval()
    with torch.no_grad():  # norms and biases too: at 1 and 0 they would hide an error
        for name, p in hf.named_parameters():
            p.copy_(torch.randn_like(p) * 0.2 + (1.0 if "norm" in name else 0.0))
    directory = tmp_path_factory.mktemp(request.param)
    hf.save_pretrained(directory)
    tokenizer.build(World(0)).save_pretrained(directory)
    return hf, directory


def hf_logits(hf, ids):
    with torch.no_grad():
        return hf(torch.tensor(np.asarray(ids)[None], dtype=torch.long)).logits[0].numpy()


def rows(*lengths):
    rng = np.random.default_rng(1)
    return [rng.integers(0, SIZES["vocab_size"], n) for n in lengths]


def padded(parts):
    tokens = np.zeros((len(parts), max(map(len, parts))), np.int32)
    for row, ids in zip(tokens, parts, strict=True):
        row[: len(ids)] = ids
    return tokens


def test_logits(pair):
    hf, directory = pair
    lm = models.load(str(directory), dtype="float32")
    parts = rows(*LENGTHS)
    mixed = np.asarray(models.logits(lm, padded(parts)))
    for ids, ours in zip(parts, mixed, strict=True):
        np.testing.assert_allclose(ours[: len(ids)], hf_logits(hf, ids), atol=1e-4, rtol=0)
    ids = parts[1]  # without padding
    np.testing.assert_allclose(models.logits(lm, ids[None])[0], hf_logits(hf, ids), atol=1e-4, rtol=0)


def test_greedy_continuations(pair):
    """64 tokens after each of 20 prompts, as generate draws them."""
    hf, directory = pair
    lm = models.load(str(directory), dtype="float32")
    parts = rows(*range(1, 64, 7), *range(3, 94, 9))
    engine = Engine(lm, slots=8, cache_length=192)
    greedy = Sampling(temperature=0.0, max_new=64)
    requests = [Request(str(i), tuple(ids.tolist()), greedy) for i, ids in enumerate(parts)]
    ours = {result.id: list(result.tokens) for result in engine.generate(requests)}
    beyond = list(range(len(lm.tokenizer), lm.config.V))  # what the tokenizer cannot write is never drawn
    assert len(parts) == 20
    for i, ids in enumerate(parts):
        tokens = torch.tensor(ids[None])
        # Without a mask, generate takes every 0 in a prompt for padding.
        out = hf.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=64, do_sample=False, suppress_tokens=beyond
        )
        assert ours[str(i)] == out[0, len(ids) :].tolist(), i


def test_export_is_the_identity(pair, tmp_path):
    hf, directory = pair
    lm = models.load(str(directory), dtype="float32")
    models.save(lm, tmp_path)
    before, after = load_file(directory / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert tensor.tobytes() == after[name].tobytes(), name
    again = models.load(str(tmp_path), dtype="float32")
    assert (again.config, again.eos_ids) == (lm.config, (5, 3))
    (ids,) = rows(64)
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    np.testing.assert_array_equal(hf_logits(exported, ids), hf_logits(hf, ids))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template == tokenizer.CHAT_TEMPLATE


def test_export_in_bfloat16(pair, tmp_path):
    _, directory = pair
    models.save(models.load(str(directory)), tmp_path)
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    original = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    assert exported.dtype == torch.bfloat16
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, exported.state_dict()[name]), name


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "llama": {"target_modules": ALL, "r": 4, "lora_alpha": 6},
    "qwen2": {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 6, "use_rslora": True},
    "qwen3": {"target_modules": ["down_proj"], "r": 1, "lora_alpha": 2, "layers_to_transform": [1]},  # as in model organisms
}


def test_adapter_of_peft_here(pair, tmp_path):
    hf, directory = pair
    base = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[hf.config.model_type])
    theirs = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.2)
    theirs.save_pretrained(tmp_path)
    lm = models.load(str(directory), adapter=str(tmp_path), dtype="float32")
    (ids,) = rows(7)
    wanted = hf_logits(theirs, ids)
    assert np.abs(wanted - hf_logits(hf, ids)).max() > 0.1  # the adapter does something
    np.testing.assert_allclose(models.logits(lm, ids[None])[0], wanted, atol=1e-4, rtol=0)
    merged = models.merge(lm)
    assert merged.adapter is None
    np.testing.assert_allclose(models.logits(merged, ids[None])[0], wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layers", [(), (1,)])
@pytest.mark.parametrize("pair", ["qwen3"], indirect=True)
def test_our_adapter_in_peft(pair, layers, tmp_path):
    hf, directory = pair
    lm = models.load(str(directory), dtype="float32")
    given = LoraConfig(3, 6.0, targets=("q", "o", "down"), layers=layers, dropout=0.1)
    adapter = lora.init(given, lm.config, jax.random.key(0))
    for i, weights in enumerate(adapter.weights.values()):
        weights["B"] = 0.2 * jax.random.normal(jax.random.key(i), weights["B"].shape)
        if layers:
            weights["B"] = weights["B"].at[0].set(0.0)
    lm = lm.replace(adapter=adapter)
    models.save_adapter(lm, tmp_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    (ids,) = rows(7)
    wanted = hf_logits(peft.PeftModel.from_pretrained(base, str(tmp_path)).eval(), ids)
    assert np.abs(wanted - hf_logits(hf, ids)).max() > 0.1
    np.testing.assert_allclose(models.logits(lm, ids[None])[0], wanted, atol=1e-4, rtol=0)
    again = models.load(str(directory), adapter=str(tmp_path), dtype="float32").adapter
    assert again.config == adapter.config
    jax.tree.map(np.testing.assert_array_equal, again.weights, adapter.weights)


@pytest.mark.parametrize("name", ["llama3.1-8b", "qwen2.5-7b", "qwen3-32b"])
def test_rope_of_the_real_models_to_position_9000(name):
    config = KNOWN[name].config
    assert ModelConfig.from_hf(config.to_hf()) == config
    hf = transformers.AutoConfig.for_model(**config.to_hf())
    modeling = {
        "llama": transformers.models.llama.modeling_llama.LlamaRotaryEmbedding,
        "qwen2": transformers.models.qwen2.modeling_qwen2.Qwen2RotaryEmbedding,
        "qwen3": transformers.models.qwen3.modeling_qwen3.Qwen3RotaryEmbedding,
    }[config.family]
    embedding = modeling(hf)
    frequencies = embedding.inv_freq.numpy()
    ours = rope.inverse_frequencies(config)
    np.testing.assert_allclose(ours, frequencies, rtol=1.2e-7)  # a last bit
    assert np.mean(ours != frequencies) < 0.05
    positions = np.arange(9001)
    cos, sin = embedding(torch.zeros(1), torch.tensor(positions[None]))
    for table, theirs in zip(rope.tables(config, jnp.asarray(positions)), (cos, sin), strict=True):
        np.testing.assert_allclose(table, theirs[0, :, : config.h // 2], atol=1e-5, rtol=0)
