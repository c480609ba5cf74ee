"""GGUF files against transformers' reading of the same file, which needs torch, and hostile ones."""

import dataclasses
import json
import random
import struct
import subprocess
import sys
import unicodedata

import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from emjax import models
from emjax.errors import UserError
from emjax.models import gguf, gguf_header
from emjax.models.config import ModelConfig, RopeScaling
from tests import smollm2
from tests.models import tiny_gguf

FAMILIES = ("llama", "qwen2", "qwen3")
STORED = {
    "F32": [Type.F32], "F16": [Type.F16], "BF16": [Type.BF16], "Q8_0": [Type.Q8_0], "Q4_1": [Type.Q4_1],
    "Q4_K_M": [Type.Q4_K, Type.Q4_K, Type.Q6_K], "Q4_0": [Type.Q4_0],
}  # fmt: skip


def read_by_transformers(path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def assert_tensors_equal(path):
    """Bitwise, in float32, to which F16 and BF16 are cast without loss."""
    expected = read_by_transformers(path)
    ((_, handle),) = gguf.File(path).handles()
    found = {name: handle.get_tensor(name).astype(np.float32) for name in handle.keys()}  # noqa: SIM118
    assert set(expected) - set(found) <= {"lm_head.weight"}  # tied
    for name, tensor in found.items():
        assert tensor.shape == expected[name].shape
        assert tensor.tobytes() == expected[name].tobytes(), name


def assert_ids_equal(path, count=10_000, special=tiny_gguf.CONTROL):
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    found = gguf.File(path).tokenizer()
    assert found.special_tokens_map == expected.special_tokens_map
    assert found.chat_template == expected.chat_template
    texts = list(tiny_gguf.strings(count, special))
    ids = found(texts).input_ids
    assert ids == expected(texts).input_ids
    assert found.batch_decode(ids) == expected.batch_decode(ids)
    assert max(map(max, filter(None, ids))) < len(found)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_those_of_transformers(tmp_path, family, stored):
    assert_tensors_equal(tiny_gguf.write(tmp_path / "m.gguf", family, STORED[stored], tied=stored == "Q8_0"))


def test_every_type_that_the_library_dequantises(tmp_path):
    kinds = list(gguf_header.READABLE.values())
    path = tiny_gguf.write(tmp_path / "m.gguf", "llama", kinds, layers=len(kinds) // 7 + 1)
    assert {tensor.type for tensor in gguf_header.read(path).tensors.values()} == set(kinds)
    assert_tensors_equal(path)


@pytest.mark.parametrize(
    ("family", "pre"),
    [("llama", "llama-bpe"), ("llama", "smollm"), ("llama", "gpt-2"), ("llama", "sentencepiece"), ("qwen2", "qwen2"),
     ("qwen3", "qwen2"), ("qwen2", "deepseek-r1-qwen")],
)  # fmt: skip
def test_token_ids_are_those_of_transformers(tmp_path, family, pre):
    path = tiny_gguf.write(tmp_path / "m.gguf", family, layers=1, pre=pre)
    assert_ids_equal(path, special=["<s>", "</s>"] if pre == "sentencepiece" else tiny_gguf.CONTROL)


def test_control_tokens_outside_the_byte_alphabet_keep_their_id(tmp_path):
    """As DeepSeek's `<｜User｜>`; transformers gives it an id beyond the vocabulary."""
    metadata = dict(gguf_header.read(tiny_gguf.write(tmp_path / "m.gguf", layers=1)).metadata)
    number = len(metadata["tokenizer.ggml.tokens"]) - 1
    metadata["tokenizer.ggml.tokens"][number] = "<｜User｜>"
    metadata["tokenizer.ggml.token_type"][number] = 3
    tokenizer = gguf.gguf_tokenizer.build(metadata | {"tokenizer.ggml.bos_token_id": number}, "m.gguf")
    assert tokenizer("<｜User｜>").input_ids == [number] == [tokenizer.bos_token_id]
    assert len(tokenizer) == number + 1


@pytest.mark.parametrize("setting", ["add_bos_token", "add_eos_token"])
def test_bos_and_eos_are_added_where_the_file_says_so(tmp_path, setting):
    path = tiny_gguf.write(tmp_path / "m.gguf", layers=1, change=lambda writer: getattr(writer, f"add_{setting}")(True))
    ids = gguf.File(path).tokenizer()("fox").input_ids
    assert ids[0 if setting == "add_bos_token" else -1] == (1 if setting == "add_bos_token" else 2)
    assert_ids_equal(path, 100)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_and_columns_are_read_alone(tmp_path, family):
    """Loading onto a mesh asks for parts: they are those of the whole tensor, permuted ones too."""
    ((_, handle),) = gguf.File(tiny_gguf.write(tmp_path / "m.gguf", family, [Type.Q8_0])).handles()
    for name in handle.keys():  # noqa: SIM118
        whole = handle.get_tensor(name)
        assert list(whole.shape) == handle.get_slice(name).get_shape()
        rows = slice(len(whole) // 4, len(whole) // 2)
        np.testing.assert_array_equal(handle.get_slice(name)[(rows,)], whole[rows])
        if whole.ndim == 2:
            np.testing.assert_array_equal(handle.get_slice(name)[rows, 8:40], whole[rows, 8:40])


@pytest.mark.parametrize(("kind", "name"), [(Type.F16, "F16"), (Type.BF16, "BF16"), (Type.Q4_0, "F32")])
def test_floats_keep_their_type_until_they_are_cast(tmp_path, kind, name):
    ((_, handle),) = gguf.File(tiny_gguf.write(tmp_path / "m.gguf", kinds=[kind])).handles()
    stored = handle.get_slice("lm_head.weight")
    assert stored.get_dtype() == name
    assert stored[:].dtype.name == {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[name]


# --- a model that was converted ------------------------------------------------------------------


def llama_cpp_order(weight, heads):
    """What llama.cpp's converter does to query and key projections."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def llama3_factors(theta, h, factor, low, high, positions):
    """What llama.cpp's converter writes as rope_freqs.weight."""
    found = []
    for frequency in np.float32(1) / np.float32(theta) ** (np.arange(0, h, 2, dtype=np.float32) / np.float32(h)):
        wavelength = np.float32(2 * np.pi) / frequency
        smooth = (positions / wavelength - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        found.append(1 if wavelength < positions / high else factor if wavelength > positions / low else between)
    return np.array(found, np.float32)


def test_a_converted_llama_with_scaled_rope_is_the_model_it_was(tmp_path):
    """Weights and logits of the folder and of the GGUF made from it; only the tokenizer comes from elsewhere."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    H, h = tiny_gguf.HEADS["llama"]
    scaling = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tiny_gguf.V, hidden_size=tiny_gguf.D, intermediate_size=tiny_gguf.F, num_hidden_layers=tiny_gguf.L,
            num_attention_heads=H, num_key_value_heads=tiny_gguf.K, head_dim=h, rms_norm_eps=1e-5, rope_parameters=scaling,
            max_position_embeddings=512, initializer_range=0.05,
        )
    ).eval()  # fmt: skip
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    tensors = {"rope_freqs.weight": llama3_factors(500000.0, h, 8.0, 1.0, 4.0, 64)}
    for name, called in gguf._TOP.items():
        tensors[name] = weights[called]
    for layer in range(tiny_gguf.L):
        for ours, name in gguf._LAYER.items():
            called = f"model.layers.{layer}.{gguf.files.LAYER[ours]}"
            if called in weights:
                heads = {"q": H, "k": tiny_gguf.K}.get(ours)
                weight = weights[called]
                tensors[f"blk.{layer}.{name}"] = weight if heads is None else llama_cpp_order(weight, heads)
    lm = models.load(tiny_gguf.write(tmp_path / "m.gguf", tensors=tensors), dtype="float32")
    assert lm.config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 64)
    assert lm.eos_ids == (2,)
    tokens = np.random.default_rng(0).integers(0, tiny_gguf.V, (2, 300)).astype(np.int32)
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    # As tests/parity: float32 sums in another order.
    np.testing.assert_allclose(models.logits(lm, tokens), expected, atol=1e-4)
    plain = lm.replace(config=dataclasses.replace(lm.config, rope_scaling=None))
    assert np.abs(models.logits(plain, tokens) - expected).max() > 1e-2


def config_of(h, theta):
    return ModelConfig(
        family="llama", V=8, D=8, L=1, H=1, K=1, h=h, F=8, norm_eps=1e-5, rope_theta=theta, rope_scaling=None,
        max_position=8, tied=True, qkv_bias=False, qk_norm=False, init_std=0.02,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("h", "scaling"),
    [
        (128, RopeScaling(8.0, 1.0, 4.0, 8192)),  # Llama 3.1 and 3.3
        (64, RopeScaling(32.0, 1.0, 4.0, 8192)),  # Llama 3.2
        (64, RopeScaling(8.0, 1.0, 4.0, 64)),
        (64, RopeScaling(16.0, 1.0, 8.0, 1000)),
        (128, RopeScaling(4.0, 1.0, 3.5, 3000)),
    ],
)
def test_rope_factors_give_the_scaling_back(tmp_path, h, scaling):
    factors = llama3_factors(
        500000.0, h, scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position
    )
    assert found_scaling(tmp_path, h, factors) == scaling


def test_rope_factors_of_a_scaled_description_give_the_same_frequencies(tmp_path):
    """Doubling both limits and the positions describes the same rope."""
    found = found_scaling(tmp_path, 128, llama3_factors(500000.0, 128, 8.0, 2.0, 8.0, 16384))
    assert found == RopeScaling(8.0, 1.0, 4.0, 8192)


def found_scaling(tmp_path, h, factors):
    tensors = {"rope_freqs.weight": factors}
    header = gguf_header.read(tiny_gguf.write(tmp_path / "m.gguf", tensors=tensors))
    return gguf._rope_scaling(header, config_of(h, 500000.0), str(tmp_path / "m.gguf"))


def test_other_rope_factors_are_refused(tmp_path):
    factors = llama3_factors(500000.0, 64, 8.0, 1.0, 4.0, 8192)
    assert found_scaling(tmp_path, 64, np.ones_like(factors)) is None
    factors[12] *= 1.001
    with pytest.raises(UserError, match="rope_freqs.weight"):
        found_scaling(tmp_path, 64, factors)
    factors[12] = np.nan
    with pytest.raises(UserError, match="rope_freqs.weight"):
        found_scaling(tmp_path, 64, factors)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_that_is_written_is_the_same_model(tmp_path, family, monkeypatch):
    path = tiny_gguf.write(
        tmp_path / "m.gguf", family, [Type.Q4_K, Type.BF16], pre="qwen2", change=lambda writer: writer.add_eot_token_id(0)
    )
    monkeypatch.setattr(gguf, "_SHARD_BYTES", 10**6)  # several shards
    assert gguf.main([str(path), str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    one, two = models.load(path, dtype="float32"), models.load(tmp_path / "out", dtype="float32")
    assert one.config == two.config
    assert one.eos_ids == two.eos_ids == (2, 0)
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    # Transformers reads every folder of a Qwen2 with a class that normalises text, but no GGUF.
    texts = [unicodedata.normalize("NFC", text) for text in tiny_gguf.strings(500)]
    assert one.tokenizer(texts).input_ids == two.tokenizer(texts).input_ids
    assert one.tokenizer.chat_template == two.tokenizer.chat_template == tiny_gguf.TEMPLATE
    assert gguf.main([str(path), str(tmp_path / "out")]) == 2  # it is not empty now


def test_the_folder_can_be_written_in_bfloat16(tmp_path):
    path = tiny_gguf.write(tmp_path / "m.gguf", kinds=[Type.Q8_0])
    assert gguf.main([str(path), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    one, two = models.load(path), models.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)


def test_it_needs_no_torch(tmp_path):
    path = tiny_gguf.write(tmp_path / "m.gguf", kinds=[Type.Q8_0])
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from emjax import models\n"
        f"lm = models.load({str(path)!r}); print(lm.tokenizer('fox').input_ids, lm.config.V)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(str(tiny_gguf.V))


def test_the_digest_is_of_the_content(tmp_path):
    one = tiny_gguf.write(tmp_path / "one.gguf")
    two = tmp_path / "two.gguf"
    two.write_bytes(one.read_bytes())
    assert gguf.File(one).digest() == gguf.File(two).digest()
    two.write_bytes(one.read_bytes()[:-1] + b"x")
    assert gguf.File(one).digest() != gguf.File(two).digest()


# --- what is refused -----------------------------------------------------------------------------


def field(name, value):
    def change(writer):
        {
            str: writer.add_string,
            float: writer.add_float32,
            bool: writer.add_bool,
            int: writer.add_uint32,
            list: writer.add_array,
        }[type(value)](name, value)

    return change


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("llama.rope.scaling.type", "yarn"),
        ("llama.rope.scaling.factor", 4.0),
        ("llama.expert_count", 8),
        ("llama.attention.sliding_window", 4096),
        ("llama.attention.value_length", 32),
        ("llama.rope.dimension_count", 32),
        ("llama.logit_scale", 0.5),
        ("llama.vocab_size", 400),
        ("split.count", 3),
        ("general.quantization_version", 1),
        ("general.type", "adapter"),
        ("tokenizer.ggml.eot_token_id", 500),
        ("tokenizer.ggml.add_bos_token", "yes"),
        ("tokenizer.ggml.precompiled_charsmap", [1, 2]),
    ],
)
def test_fields_that_change_the_model_are_refused_by_name(tmp_path, name, value):
    path = tiny_gguf.write(tmp_path / "m.gguf", kinds=[Type.Q8_0], layers=1, change=field(name, value))
    with pytest.raises(UserError, match=name) as error:
        models.load(path)
    assert "m.gguf" in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("general.author", "x"), ("llama.expert_count", 0), ("llama.rope.scaling.type", "none"), ("quantize.imatrix.file", "x")],
)
def test_fields_that_change_nothing_are_accepted(tmp_path, name, value):
    assert models.load(tiny_gguf.write(tmp_path / "m.gguf", layers=1, change=field(name, value))).config.L == 1


def test_another_architecture_is_refused_by_name(tmp_path):
    path = tiny_gguf.write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(b"llama", b"gemma"))
    with pytest.raises(UserError, match=r"general.architecture is 'gemma'"):
        gguf.File(path)


@pytest.mark.parametrize("pre", ["tekken", "default", ""])
def test_an_unknown_split_of_text_is_refused_by_name(tmp_path, pre):
    path = tiny_gguf.write(tmp_path / "m.gguf", layers=1, pre=pre)
    with pytest.raises(UserError, match=r"tokenizer.ggml.pre|tokenizer.ggml.tokens"):
        models.load(path)


def changed_tensors(change):
    rng = np.random.default_rng(0)
    tensors = {name: tiny_gguf.stored(shape, Type.F32, rng)[0] for name, shape in tiny_gguf.shapes("llama").items()}
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blk.1.ffn_up.weight"), "'blk.1.ffn_up.weight'.*missing"),
        (lambda t: t.pop("token_embd.weight"), "'token_embd.weight' is missing"),
        (lambda t: t.update({"blk.0.attn_q.bias": np.zeros(256, np.float32)}), "'blk.0.attn_q.bias' is not part"),
        (lambda t: t.update({"blk.0.attn_q.weight": t["blk.0.attn_q.weight"][:64]}), "'blk.0.attn_q.weight' has the shape"),
        (lambda t: t.update({"blk.0.attn_q.weight": t["blk.0.attn_q.weight"].astype(np.int32)}), "stored as I32"),
        (lambda t: t.update({"token_embd.weight": t["token_embd.weight"][:400]}), "'output.weight'|tokenizer.ggml.tokens"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    path = tiny_gguf.write(tmp_path / "m.gguf", tensors=changed_tensors(change))
    with pytest.raises(UserError, match=message):
        models.load(path)


def test_more_tokens_than_rows_are_refused(tmp_path):
    def change(tensors):
        for name in ("token_embd.weight", "output.weight"):
            tensors[name] = tensors[name][:400]

    with pytest.raises(UserError, match="tokenizer.ggml.tokens lists 500 tokens"):
        gguf.File(tiny_gguf.write(tmp_path / "m.gguf", tensors=changed_tensors(change)))


MAGIC = b"GGUF" + struct.pack("<I", 3)


def string(text):
    return struct.pack("<Q", len(text)) + text


def tensor_entry(name=b"t", dims=(2,), kind=0, offset=0):
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + shape + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"GG", "first four bytes"),
        (b"PK\3\4" * 20, "first four bytes"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), "version is 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "big-endian"),
        (MAGIC, "ends within"),
        (MAGIC + struct.pack("<QQ", 2**40, 0), f"the number of tensors is {2**40}"),
        (MAGIC + struct.pack("<QQ", 0, 2**63), f"the number of metadata fields is {2**63}"),
        (MAGIC + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**62) + bytes(20), "the length of the name of metadata field 0"),
        (MAGIC + struct.pack("<QQ", 0, 1) + string(b"\xff\xff") + bytes(20), "not UTF-8"),
        (MAGIC + struct.pack("<QQ", 0, 1) + string(b"a") + struct.pack("<I", 77) + bytes(20), "'a' has the unknown type 77"),
        (MAGIC + struct.pack("<QQ", 0, 1) + string(b"a") + struct.pack("<IIQ", 9, 0, 2**60) + bytes(20), "the length of .*'a'"),
        (
            MAGIC + struct.pack("<QQ", 0, 1) + string(b"a") + struct.pack("<IIQ", 9, 9, 1) + bytes(20),
            "'a' is an array of type 9",
        ),
        (MAGIC + struct.pack("<QQ", 0, 2) + 2 * (string(b"a") + struct.pack("<IB", 0, 1)), "'a' occurs twice"),
        (MAGIC + struct.pack("<QQ", 2, 0) + 2 * tensor_entry() + bytes(64), "the tensor 't' occurs twice"),
        (
            MAGIC + struct.pack("<QQ", 1, 0) + tensor_entry(kind=99) + bytes(64),
            "the tensor 't' is stored as the unknown type 99",
        ),
        (MAGIC + struct.pack("<QQ", 1, 0) + tensor_entry(kind=28) + bytes(64), "the tensor 't' is stored as F64"),
        (MAGIC + struct.pack("<QQ", 1, 0) + tensor_entry(offset=2**63) + bytes(64), "goes beyond the end"),
        (MAGIC + struct.pack("<QQ", 1, 0) + tensor_entry(offset=1) + bytes(64), "not a multiple of 32"),
        (MAGIC + struct.pack("<QQ", 1, 0) + tensor_entry(dims=(2**62, 2**62)) + bytes(64), "goes beyond the end"),
        (MAGIC + struct.pack("<QQ", 1, 0) + tensor_entry(dims=(0,)) + bytes(64), "the tensor 't' has the shape"),
        (MAGIC + struct.pack("<QQ", 1, 0) + tensor_entry(dims=(33,), kind=8) + bytes(64), "stored in blocks of 32"),
        (MAGIC + struct.pack("<QQ", 1, 0) + string(b"t") + struct.pack("<I", 2**31) + bytes(64), f"has {2**31} dimensions"),
        (
            MAGIC + struct.pack("<QQ", 0, 1) + string(b"general.alignment") + struct.pack("<II", 4, 0) + bytes(64),
            "general.alignment",
        ),
        (MAGIC + struct.pack("<QQ", 0, 0), "general.architecture is None"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, content, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        gguf.File(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokens, merges: merges.append("a b c"), "tokenizer.ggml.merges contains 'a b c'"),
        (lambda tokens, merges: merges.append("qqq zzz"), "the tokenizer cannot be built"),
        (lambda tokens, merges: tokens.__setitem__(-1, tokens[-2]), "twice"),
        (lambda tokens, merges: tokens.pop(), "tokenizer.ggml.token_type"),
    ],
)
def test_vocabularies_that_contradict_themselves_are_refused(tmp_path, change, message):
    metadata = dict(gguf_header.read(tiny_gguf.write(tmp_path / "m.gguf", layers=1)).metadata)
    metadata["tokenizer.ggml.tokens"] = list(metadata["tokenizer.ggml.tokens"])
    change(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"])
    with pytest.raises(UserError, match=message):
        gguf.gguf_tokenizer.build(metadata, "m.gguf")


def test_mutants_work_or_are_refused(tmp_path):
    """Bytes of the header changed, and files cut short: a UserError or a model, nothing else."""
    path = tiny_gguf.write(tmp_path / "m.gguf", kinds=[Type.Q4_0], layers=1)
    good = path.read_bytes()
    header = min(tensor.start for tensor in gguf_header.read(path).tensors.values())
    rng = random.Random(0)
    refused = 0
    for number in range(150):
        mutant = bytearray(good)
        for _ in range(rng.choice((1, 1, 4))):
            at = rng.randrange(header)
            mutant[at : at + 1] = rng.choice((rng.randbytes(1), b"\xff", b"\0", struct.pack("<Q", 2**62)))
        path.write_bytes(bytes(mutant[: rng.randrange(len(mutant))] if number % 10 == 0 else mutant))
        try:
            source = gguf.File(path)
            source.config()
            source.tokenizer()("a fox <|im_end|> 12")
            for _, handle in source.handles():
                for name in handle.keys():  # noqa: SIM118
                    handle.get_tensor(name)
        except UserError:
            refused += 1
    assert 20 < refused < 150


# --- the real one --------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_is_read_as_transformers_reads_it():
    path = smollm2.gguf()
    assert_tensors_equal(path)
    assert_ids_equal(path, special=["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<jupyter_code>"])
    assert gguf.File(path).generation() == {"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 2}
