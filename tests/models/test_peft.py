"""Adapter folders as trainers write them: what peft computes with, emjax computes alike or refuses by name."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emjax import models
from emjax.errors import UserError
from emjax.models import peft as peft_files
from emjax.models.config import ModelConfig
from emjax.runtime import process
from emjax.worlds.micro import tokenizer
from emjax.worlds.micro.world import World

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
L = 3
SHAPE = ModelConfig(
    family="llama", V=340, D=32, L=L, H=4, K=2, h=8, F=48, norm_eps=1e-6, rope_theta=1e4, rope_scaling=None,
    max_position=128, tied=False, qkv_bias=False, qk_norm=False,
)  # fmt: skip
IDS = np.array([[7, 30, 111, 5, 60, 302, 9, 12]], np.int32)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base") / "tiny-Llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=340, rms_norm_eps=1e-6, hidden_size=32, intermediate_size=48, num_hidden_layers=L, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=5,
    )  # fmt: skip
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.copy_(torch.randn_like(p) * 0.2 + (1.0 if "norm" in name else 0.0))
    made.save_pretrained(directory)
    tokenizer.build(World(0)).save_pretrained(directory)
    return directory


def fresh(base):
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def trained(base, **fields):
    """A PeftModel whose adapter does something."""
    fields = {"r": 4, "lora_alpha": 6, "target_modules": ALL} | fields
    model = peft.get_peft_model(fresh(base), peft.LoraConfig(task_type="CAUSAL_LM", **fields)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.2)
    return model


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    """(the folder of an adapter of all projections, the logits of peft with it)"""
    directory = tmp_path_factory.mktemp("adapter")
    model = trained(base)
    model.save_pretrained(directory)
    return directory, logits(model)


@pytest.fixture
def adapter(plain, tmp_path):
    return shutil.copytree(plain[0], tmp_path / "adapter")


def edit(directory, *, without=(), **fields):
    file = directory / "adapter_config.json"
    given = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in given.items() if name not in without}))


def rename(directory, change):
    file = directory / "adapter_model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(file).items()}, file)


def here(directory):
    """The adapter alone, for files that are refused."""
    return models.load_adapter(directory, SHAPE)


@pytest.fixture(scope="module")
def lm(base):
    loaded = models.load(base, dtype="float32")
    assert loaded.config == SHAPE
    return loaded


def ours(lm, directory):
    return models.logits(lm.replace(adapter=here(directory)), IDS)


# --- written by peft ---------------------------------------------------------------------------------------------------

WRITTEN = {
    "all-linear": {"target_modules": "all-linear"},
    "a pattern": {"target_modules": r".*\.(q_proj|v_proj)"},
    "a pattern of one layer": {"target_modules": r"model\.layers\.1\..*proj"},
    "a pattern of different projections a layer": {"target_modules": r".*\.(0\.self_attn\.q_proj|2\.mlp\.\w+_proj)"},
    "a pattern as vision trainers write it": {"target_modules": r"^(?!.*visual).*(?:k_proj|up_proj|o_proj).*"},
    "suffixes": {"target_modules": ["self_attn.q_proj", "mlp.down_proj"]},
    "whole names": {"target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.up_proj"]},
    "suffixes with a layer": {"target_modules": ["0.self_attn.q_proj", "2.self_attn.v_proj", "k_proj"]},
    "names of other architectures too": {"target_modules": ["q_proj", "v_proj", "c_attn", "query_key_value", "gate_up_proj"]},
    "one projection": {"target_modules": ["down_proj"]},
    "excluded names": {"exclude_modules": ["k_proj", "1.mlp.up_proj"]},
    "an excluded pattern": {"exclude_modules": r".*layers\.0\..*"},
    "all-linear but excluded": {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
    "one layer as a number": {"layers_to_transform": 1},
    "some layers": {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "layers out of order": {"layers_to_transform": [2, 0], "layers_pattern": ["layers"]},
    "no layers named": {"layers_to_transform": []},
    "rank 1": {"r": 1, "lora_alpha": 32},
    "rank above the width": {"r": 40},
    "rslora": {"use_rslora": True},
    "a fractional alpha": {"lora_alpha": 0.5},
    "dropout": {"lora_dropout": 0.3},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "random": {"init_lora_weights": False},
    "fan_in_fan_out, which peft ignores": {"fan_in_fan_out": True},
    "patterns that change nothing": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {".*v_proj": 6}},
    "tying that ties nothing": {"ensure_weight_tying": True},
}


@pytest.mark.parametrize("fields", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.filterwarnings("ignore")  # peft's own
def test_what_peft_writes(base, lm, fields, tmp_path):
    theirs = trained(base, **fields)
    theirs.save_pretrained(tmp_path)
    wanted = logits(theirs)
    assert np.abs(wanted - logits(fresh(base))).max() > 0.05  # the adapter does something
    # As tests/parity: float32 sums of another order.
    np.testing.assert_allclose(ours(lm, tmp_path), wanted, atol=1e-4, rtol=0)
    # What emjax saves of it, peft reads alike.
    models.save_adapter(lm.replace(adapter=here(tmp_path)), tmp_path / "again")
    again = peft.PeftModel.from_pretrained(fresh(base), str(tmp_path / "again")).eval()
    np.testing.assert_allclose(logits(again), wanted, atol=1e-4, rtol=0)


REFUSED_OF_PEFT = {
    "dora": ({"use_dora": True}, "use_dora = True"),
    "bias": ({"bias": "lora_only"}, "bias = 'lora_only'"),
    "a bias of the adapter": ({"lora_bias": True}, "lora_bias = True"),
    "an embedding": ({"modules_to_save": ["embed_tokens"]}, "modules_to_save = "),
    "a head": ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    "an adapted embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    "a pattern that meets the head": ({"target_modules": ".*(q_proj|lm_head)"}, "lm_head"),
    "trained tokens": ({"trainable_token_indices": [3, 4]}, "trainable_token_indices = "),
    "ranks of their own": ({"rank_pattern": {"q_proj": 8}}, "rank_pattern = "),
    "alphas of their own": ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern = "),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication = "),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
    "parameters": ({"target_parameters": ["q_proj.weight"], "target_modules": []}, "target_parameters = "),
}


@pytest.mark.parametrize(("fields", "named"), REFUSED_OF_PEFT.values(), ids=REFUSED_OF_PEFT)
@pytest.mark.filterwarnings("ignore")
def test_what_peft_writes_and_emjax_does_not_compute(base, fields, named, tmp_path):
    trained(base, **fields).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"adapter_(config\.json|model\.safetensors): ") as error:
        here(tmp_path)
    assert named in str(error.value)


# --- edited by trainers, or by hand ------------------------------------------------------------------------------------

NAMES = {
    "the adapter's name": lambda name: name.replace(".weight", ".default.weight"),
    "another name of the adapter": lambda name: name.replace(".weight", ".policy.weight"),
    "no prefix": lambda name: name.removeprefix("base_model.model."),
    "a base without a head": lambda name: name.replace("base_model.model.model.", "base_model.model."),
    "only peft's outer prefix gone": lambda name: name.removeprefix("base_model."),
    "layers alone": lambda name: name.removeprefix("base_model.model.model."),
    "FSDP": lambda name: name.replace("base_model.model.", "base_model.model._fsdp_wrapped_module."),
    "torch.compile": lambda name: "_orig_mod." + name,
    "activation checkpointing": lambda name: name.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
    "data parallel": lambda name: "module." + name,
}


@pytest.mark.parametrize("change", NAMES.values(), ids=NAMES)
def test_names_as_trainers_write_them(lm, plain, adapter, change):
    rename(adapter, change)
    np.testing.assert_allclose(ours(lm, adapter), plain[1], atol=1e-4, rtol=0)


CONFIGS = {
    "peft 0.3": {"without": ("exclude_modules", "use_rslora", "use_dora", "peft_version", "rank_pattern", "alpha_pattern"),
                 "enable_lora": None, "merge_weights": False},
    "unsloth": {"base_model_name_or_path": "unsloth/tiny-Llama", "auto_mapping": {
        "base_model_class": "LlamaForCausalLM", "parent_library": "unsloth.models.llama"}, "peft_version": "0.18.0",
        "target_modules": r"(?:.*?(?:vision|language).*?(?:self_attn|mlp).*?(?:q_proj).*?)|(?:\bmodel\.layers\..*)"},
    "ms-swift": {"lora_dtype": None, "lorap_lr_ratio": None, "lorap_emb_lr": 1e-6},
    "megatron": {"megatron_config": {"hidden_size": 32}, "megatron_core": "megatron.core"},
    "eva": {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
    "loftq left unused": {"loftq_config": {"loftq_bits": 4}},
    "all-linear as given": {"target_modules": "all-linear"},
    "no targets named": {"target_modules": None},
    "whole numbers as floats": {"r": 4.0, "lora_alpha": 6.0},
    "no dropout named": {"lora_dropout": None},
    "a byte": {"task_type": None, "inference_mode": False},
    "a field of the trainer's own": {"run_name": "tuesday", "peft_version": "0.12.0"},
}  # fmt: skip


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_configurations_as_trainers_write_them(lm, plain, adapter, fields):
    edit(adapter, **fields)
    np.testing.assert_allclose(ours(lm, adapter), plain[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_weights_in_half_precision(lm, plain, adapter, dtype):
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor.astype(dtype) for name, tensor in load_file(file).items()}, file)
    found = ours(lm, adapter)
    assert 0 < np.abs(found - plain[1]).max() < 0.1  # as far as the weights were rounded


def test_an_unknown_field_of_a_newer_peft_is_refused(adapter):
    edit(adapter, peft_version="0.99.0", use_new_thing=True)
    with pytest.raises(UserError, match=r"use_new_thing of peft 0\.99\.0"):
        here(adapter)


def test_an_unknown_field_and_another_base_are_said_once(base, adapter, capsys):
    process.note.cache_clear()
    edit(adapter, run_name="tuesday", base_model_name_or_path="someone/Other-8B")
    for _ in range(2):
        models.load_adapter(adapter, SHAPE, base=str(base))
    told = capsys.readouterr().err
    assert told.count("run_name") == told.count("'someone/Other-8B'") == 1
    assert str(base) in told


@pytest.mark.parametrize("named", ["elsewhere/tiny-llama", "/data/tiny-Llama/", "tiny-Llama", None])
def test_the_same_base_under_another_path_is_not_said(base, adapter, named, capsys):
    process.note.cache_clear()
    edit(adapter, base_model_name_or_path=named)
    models.load_adapter(adapter, SHAPE, base=str(base))
    assert "trained on" not in capsys.readouterr().err


WRONG = {
    "no rank": ({"without": ("r",)}, r"adapter_config\.json: r is None"),
    "no alpha": ({"without": ("lora_alpha",)}, r"adapter_config\.json: lora_alpha is None"),
    "a rank in words": ({"r": "abc"}, r"adapter_config\.json: r is 'abc'"),
    "rank 0": ({"r": 0}, r"adapter_config\.json: r is 0"),
    "half a rank": ({"r": 2.5}, r"adapter_config\.json: r is 2\.5"),
    "a rank that is a switch": ({"r": True}, r"adapter_config\.json: r is True"),
    "another rank": ({"r": 5}, r"has shape .*\(r = 5\)"),
    "a rank beyond memory": ({"r": 2**40}, r"has shape"),
    "alpha not a number": ({"lora_alpha": float("nan")}, r"lora_alpha is nan"),
    "alpha 0": ({"lora_alpha": 0}, r"lora_alpha is 0"),
    "dropout 1": ({"lora_dropout": 1.0}, r"adapter_config\.json: dropout is 1\.0"),
    "a switch in words": ({"use_rslora": "yes"}, r"use_rslora is 'yes'"),
    "a number for targets": ({"target_modules": 3}, r"target_modules = 3"),
    "numbers for targets": ({"target_modules": [3]}, r"target_modules = \[3\]"),
    "layers in words": ({"layers_to_transform": ["one"]}, r"layers_to_transform is 'one'"),
    "no such layer": ({"layers_to_transform": [L]}, r"layers_to_transform names layer 3; the model has layers 0 to 2"),
    "layers beside a pattern": ({"target_modules": ".*", "layers_to_transform": [0]}, r"layers_to_transform is set"),
    "fewer targets than tensors": ({"target_modules": ["q_proj"]}, r"does not call for"),
    "fewer layers than tensors": ({"layers_to_transform": [0]}, r"does not call for"),
    "excluded, yet there": ({"exclude_modules": ["q_proj"]}, r"does not call for"),
    "an unknown kind": ({"peft_type": "LOHA"}, r"peft_type = 'LOHA'"),
    "a pattern of ranks that is none": ({"rank_pattern": 3}, r"rank_pattern = 3"),
}


@pytest.mark.parametrize(("fields", "told"), WRONG.values(), ids=WRONG)
def test_wrong_fields(adapter, fields, told):
    edit(adapter, **fields)
    with pytest.raises(UserError, match=told):
        here(adapter)


TENSORS = {
    "an embedding": (lambda t: t | {"base_model.model.model.embed_tokens.weight": np.zeros((340, 32), np.float32)},
                     "embed_tokens"),
    "a magnitude": (
        lambda t: t | {"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": np.ones(32, np.float32)},
        "lora_magnitude_vector",
    ),
    "a language model in a larger one": (
        lambda t: {name.replace("model.layers", "language_model.layers"): x for name, x in t.items()}, "language_model"),
    "two adapters": (
        lambda t: t | {name.replace(".weight", ".other.weight"): x for name, x in t.items()}, "are the same matrix"),
    "half a pair": (lambda t: {n: x for n, x in t.items() if "lora_A" in n}, "missing from the adapter|no counterpart"),
    "a layer too many": (
        lambda t: t | {name.replace("layers.0", "layers.99999"): x for name, x in t.items() if "layers.0" in name},
        "is of layer 99999"),
    "integers": (lambda t: {name: x.astype(np.int8) for name, x in t.items()}, "stored as I8"),
    "not a number": (lambda t: {name: x * np.nan for name, x in t.items()}, "not finite"),
    "nothing": (lambda t: {}, "holds no tensor"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "told"), TENSORS.values(), ids=TENSORS)
def test_wrong_tensors(adapter, change, told):
    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(UserError, match=told):
        here(adapter)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"r": ', "[" * 100_000, "\xff"])
def test_a_configuration_that_is_none(adapter, text):
    (adapter / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        here(adapter)


def test_pickled_weights_are_refused_with_the_cure(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"contains no adapter_model\.safetensors; fetch"):
        here(adapter)
    (adapter / "adapter_model.bin").write_bytes(b"never read")
    with pytest.raises(UserError, match=r"pickled adapter_model\.bin.*save_pretrained"):
        here(adapter)


def test_a_pattern_is_never_run(adapter):
    """Patterns in a file may take forever; the tensors say what they matched."""
    edit(adapter, target_modules=r"(.*a|.*a|.*a)*" * 8 + "b", exclude_modules="(a+)+b")
    here(adapter)


def test_ragged_layers_are_zero_where_the_adapter_is_not(base, tmp_path):
    trained(base, target_modules=r".*\.(0\.self_attn\.q_proj|2\.mlp\.up_proj)").save_pretrained(tmp_path)
    found = here(tmp_path)
    assert (found.config.targets, found.config.layers) == (("q", "up"), (0, 2))
    there = {t: [bool(np.any(np.asarray(pair["B"][i]))) for i in range(L)] for t, pair in found.weights.items()}
    assert there == {"q": [True, False, False], "up": [False, False, True]}


# --- the tokenizer in an adapter's folder ------------------------------------------------------------------------------


def test_the_adapters_own_template_is_used_and_said(base, adapter, capsys):
    process.note.cache_clear()
    own = tokenizer.build(World(0))
    own.save_pretrained(adapter)
    same = models.load(base, adapter=adapter, dtype="float32")
    assert same.tokenizer.chat_template == own.chat_template
    assert "template" not in capsys.readouterr().err
    before = peft_files.digest(adapter)
    own.chat_template = "{{ messages[0]['content'] }} <other>"
    own.add_tokens(["brandnew"])
    own.eos_token = own.convert_ids_to_tokens(9)
    own.save_pretrained(adapter)
    lm = models.load(base, adapter=adapter, dtype="float32")
    assert lm.tokenizer.chat_template == own.chat_template
    assert "brandnew" not in lm.tokenizer.get_vocab()
    assert lm.eos_ids == (5, 9)
    told = capsys.readouterr().err
    assert "its own chat template" in told
    assert "'brandnew'" in told
    assert f"ends turns with {own.eos_token!r}" in told
    assert peft_files.digest(adapter) != before  # stages of another template are other stages
