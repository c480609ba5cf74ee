"""Checkpoint and adapter directories: round trips, and every damage named."""

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import httpx
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import errors
from safetensors.numpy import load_file, save_file

from emjax import models
from emjax.config import LoraConfig
from emjax.errors import UserError
from emjax.models import LanguageModel, decoder, hf, lora
from emjax.models.config import ModelConfig
from emjax.models.source import open_source
from emjax.worlds.micro import tokenizer
from emjax.worlds.micro.world import World

CONFIG = ModelConfig(
    family="qwen2", V=340, D=32, L=2, H=4, K=2, h=8, F=48, norm_eps=1e-5, rope_theta=1e4, rope_scaling=None,
    max_position=128, tied=False, qkv_bias=True, qk_norm=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def lm():
    params = decoder.init(CONFIG, jax.random.key(0))
    return LanguageModel(CONFIG, params, tokenizer.build(World(0)), (5,), source="made up")


@pytest.fixture
def directory(lm, tmp_path):
    models.save(lm, tmp_path / "base")
    return tmp_path / "base"


def adapted(lm, seed=0):
    adapter = lora.init(LoraConfig(2, 4.0), CONFIG, jax.random.key(seed))
    weights = jax.tree.map(lambda x: x + 0.01, adapter.weights)
    return lm.replace(adapter=lora.Adapter(adapter.config, weights))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_saved_and_loaded(lm, directory):
    again = models.load(str(directory), dtype="float32")
    assert (again.config, again.eos_ids, again.adapter) == (lm.config, lm.eos_ids, None)
    same(again.params, lm.params)
    assert "Responsible use" in (directory / "README.md").read_text()


def test_shards(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "_SHARD_BYTES", 20_000)
    models.save(lm, tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert {name: f.name for f in files for name in load_file(f)} == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(lm.params))
    same(models.load(str(tmp_path), dtype="float32").params, lm.params)


def reshard(directory, names_of_second, **change):
    """Two weight files and an index; `change` replaces what the second holds."""
    found = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    second = {k: v for k, v in found.items() if k in names_of_second} | change
    save_file({k: v for k, v in found.items() if k not in names_of_second}, directory / "a.safetensors")
    save_file(second, directory / "b.safetensors")
    weight_map = dict.fromkeys(found, "a.safetensors") | dict.fromkeys(names_of_second, "b.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_the_index_says_which_files_are_read(lm, directory):
    reshard(directory, [NORM])
    save_file({"else": np.zeros(3)}, directory / "consolidated.safetensors")  # as some repositories add
    same(models.load(str(directory), dtype="float32").params, lm.params)
    (directory / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors"):
        models.load(str(directory))


def test_a_tensor_that_occurs_twice(directory):
    twice = load_file(directory / "model.safetensors")["model.norm.weight"]
    reshard(directory, [NORM], **{"model.norm.weight": twice})
    with pytest.raises(UserError, match=r"b\.safetensors.*'model\.norm\.weight' occurs twice"):
        models.load(str(directory))


def test_one_tensor_at_a_time_on_the_host(tmp_path):
    """The checkpoint is more than twenty times as large as its largest tensor."""
    config = dataclasses.replace(CONFIG, V=4000, D=256, L=16, F=2048)
    lm = LanguageModel(config, decoder.init(config, jax.random.key(0)), tokenizer.build(World(0)), (5,))
    largest = lm.params["embed"].nbytes
    assert sum(x.nbytes for x in jax.tree.leaves(lm.params)) > 20 * largest
    models.save(lm, tmp_path)
    models.load(str(tmp_path), dtype="float32")  # what imports and compiling keep is kept already
    # XLA's own memory is not counted, but an array on its CPU device may go on using the host's copy: hence two of them.
    tracemalloc.start()
    try:
        again = models.load(str(tmp_path), dtype="float32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest < peak < 2.5 * largest
    same(again.params, lm.params)


def test_bfloat16_is_rounded_once(lm, directory):
    loaded = models.load(str(directory)).params
    same(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), lm.params))


def test_merge_is_float32_whatever_the_base(lm):
    base = lm.replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), lm.params))
    merged = models.merge(adapted(base))
    assert merged.adapter is None
    assert {x.dtype for x in jax.tree.leaves(merged.params)} == {jnp.dtype("float32")}
    pair = adapted(base).adapter.weights["k"]
    delta = 2.0 * np.asarray(pair["A"][1], np.float64) @ np.asarray(pair["B"][1], np.float64)
    wanted = np.asarray(base.params["layers"]["k"][1], np.float64) + delta
    np.testing.assert_allclose(merged.params["layers"]["k"][1], wanted, atol=1e-7)


def test_an_adapter_must_be_merged_or_saved_by_itself(lm, tmp_path):
    with pytest.raises(ValueError, match="merge"):
        models.save(adapted(lm), tmp_path)
    with pytest.raises(ValueError, match="no adapter"):
        models.save_adapter(lm, tmp_path)


def tensors(directory, change):
    file = directory / "model.safetensors"
    found = load_file(file)
    change(found)
    save_file(found, file)


def set_json(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def truncate(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


NORM = "model.layers.1.input_layernorm.weight"
DAMAGE = {
    "truncated": (truncate, "model.safetensors"),
    "missing tensor": (lambda d: tensors(d, lambda t: t.pop(NORM)), NORM),
    "surplus tensor": (lambda d: tensors(d, lambda t: t.update(surplus=t[NORM])), "surplus"),
    "layers beyond the config": (lambda d: set_json(d / "config.json", num_hidden_layers=1), r"model\.layers\.1\."),
    "wrong shape": (lambda d: tensors(d, lambda t: t.update({NORM: t[NORM][:-1]})), NORM),
    "transposed": (
        lambda d: tensors(d, lambda t: t.update({k: np.ascontiguousarray(v.T) for k, v in t.items() if "up_proj" in k})),
        "up_proj",
    ),
    "quantised": (lambda d: tensors(d, lambda t: t.update({NORM: t[NORM].astype(np.int8)})), "stored as I8"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), r"no model\.safetensors"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json"),
    "broken config": (lambda d: (d / "config.json").write_text("{"), "config.json"),
    "no tokenizer": (lambda d: [(d / f).unlink() for f in ("tokenizer.json", "tokenizer_config.json")], "tokenizer.json"),
    "no end of turn": (
        lambda d: [(d / "generation_config.json").unlink(), set_json(d / "config.json", eos_token_id=None)],
        "eos_token_id",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_checkpoints(directory, case):
    damage, named = DAMAGE[case]
    damage(directory)
    with pytest.raises(UserError, match=named) as error:
        models.load(str(directory), dtype="float32")
    assert str(directory) in str(error.value)


def hub(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


def response(status):
    return httpx.Response(status, request=httpx.Request("GET", "https://hub"))


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (errors.GatedRepoError("gated", response=response(403)), "Accept its licence at .*/some/model"),
        (errors.RepositoryNotFoundError("none", response=response(404)), "neither a local directory nor a hub id"),
        (errors.LocalEntryNotFoundError("not in the cache"), "hf download some/model"),
        (OSError("disk full"), "disk full"),
    ],
)
def test_hub_errors(monkeypatch, error, named):
    hub(monkeypatch, error)
    with pytest.raises(UserError, match=named):
        models.load("some/model")


def test_an_offline_hub_id():
    """With the real library, told to stay offline and with an empty cache."""
    code = "from emjax import models; models.load('some/model')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "If you are offline, download it elsewhere" in done.stderr
    assert "hf download some/model" in done.stderr


@pytest.mark.parametrize("path", ["/no/such/place", "./nothing", "plain", Path("owner/name")])
def test_missing_directory(path):
    """A Path is never taken for a hub id."""
    with pytest.raises(UserError, match=f"directory {str(path)!r} does not exist"):
        models.load(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"layers_to_transform": [0]}, "do not call for|does not call for"),
        ({"layers_to_transform": [2]}, "layers 0 to 1"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": ["q_proj"]}, "does not call for|do not call for"),
        ({"r": 3}, "shape"),
    ],
)
def test_refused_adapters(lm, directory, change, named):
    models.save_adapter(adapted(lm), directory / "adapter")
    set_json(directory / "adapter" / "adapter_config.json", **change)
    with pytest.raises(UserError, match=named):
        models.load(str(directory), adapter=str(directory / "adapter"), dtype="float32")


def test_damaged_adapters(lm, directory):
    adapter = directory / "adapter"
    with pytest.raises(UserError, match="adapter_config.json"):
        models.load(str(directory), adapter=str(adapter))
    models.save_adapter(adapted(lm), adapter)
    file = adapter / "adapter_model.safetensors"
    found = load_file(file)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    save_file({k: v for k, v in found.items() if k != name}, file)
    with pytest.raises(UserError, match=name):
        models.load(str(directory), adapter=str(adapter))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="adapter_model.safetensors"):
        models.load(str(directory), adapter=str(adapter))


def test_fingerprint_sees_weights_config_and_tokenizer(directory):
    before = open_source(directory).digest()
    assert open_source(directory).digest() == before
    seen = {before}
    for change in (
        lambda: tensors(directory, lambda t: t.update({NORM: t[NORM] + 1})),
        lambda: set_json(directory / "config.json", rms_norm_eps=1e-3),
        lambda: (directory / "chat_template.jinja").write_text("{{ messages }}"),
    ):
        change()
        seen.add(open_source(directory).digest())
    assert len(seen) == 4


@pytest.mark.parametrize(
    "fields",
    [{"rank": 0}, {"targets": ()}, {"targets": ("q", "lm_head")}, {"dropout": 1.0}, {"layers": (1, 1)}, {"layers": (-1,)}],
)
def test_refused_lora(fields):
    with pytest.raises(UserError, match=rf"^{next(iter(fields))} (is|holds) "):
        LoraConfig(**({"rank": 2, "alpha": 2.0} | fields))
