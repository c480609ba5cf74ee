"""Compiling a step of training or sampling ahead of time: the same step, for devices that need not be there."""

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from emjax import aot, commands, presets
from emjax.config import EngineConfig, LoraConfig
from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.experiment.common import mesh_of
from emjax.experiment.fit import Recipe, fit
from emjax.kto import step as kto_step
from emjax.models import lora, sharding
from emjax.models.known import KNOWN
from emjax.presets import paper
from emjax.sampling import Engine, Request, programs
from emjax.sampling import cache as kv
from emjax.train import sft

ROOT = Path(__file__).parents[1]
with_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu (the extra `aot`) is not installed")


TPU = {"model.dtype": "bfloat16", "model.attention": "splash", "mesh.data": 1}


def config_of(path, fields=None, **train):
    """The experiment on a checkpoint's shape. fields: values of further fields, by their dotted names."""
    given = presets.interaction("micro", method="kto", biased_ratio=0.1)
    given.model.path = str(path)
    given.train.update({"tuning": "lora", "buckets": (128,), "remat": "projections", "batch_size": 8, **train})
    given.update_from_flattened_dict(fields or {})
    return presets.read(given).config


@pytest.fixture
def tiny_path(tmp_path):
    """A directory that holds a shape and no weights."""
    shape = dataclasses.replace(KNOWN["micro"].config, V=256, D=128, L=2, H=4, K=2, h=64, F=128)
    (tmp_path / "config.json").write_text(json.dumps(shape.to_hf()))
    return tmp_path


def test_known_paths_are_the_configs():
    assert {name: known.path for name, known in KNOWN.items()} == paper.MODELS | {"micro": "micro"}


@pytest.mark.parametrize(
    "train",
    [{}, {"microbatches": 2, "tuning": "full"}, {"method": "sft"}],
    ids=lambda train: " ".join(map(str, train.values())) or "kto",
)
def test_it_is_the_step_that_training_runs(tiny, tmp_path, monkeypatch, train):
    """The arguments and static arguments that `fit` calls its step with: what is compiled is what will run."""
    (tmp_path / "config.json").write_text(json.dumps(tiny.config.to_hf()))
    config = config_of(tmp_path, {"model.dtype": "float32", "interact.max_new": 4}, epochs=1, buckets=(16,), **train)
    mesh = mesh_of(config.mesh, jax.devices()[:1])
    step, arguments, settings, flops = aot.abstract_step(config, mesh)
    seen = []

    def watched(real):
        def run(state, *rest, **settings):
            seen.append((real, jax.tree.map(lambda x: (x.shape, x.dtype), (state, *rest)), settings))
            return state, {"loss": jax.numpy.zeros(())}  # to compile it would take most of the time

        return run

    monkeypatch.setattr(kto_step, "step", watched(kto_step.step))
    monkeypatch.setattr(sft, "step", watched(sft.step))
    data = [Example(f"e{i}", (5,) * 16, (0.0,) * 12 + (1.0,) * 4, 12, f"p{i}", i % 2 == 0) for i in range(8)]
    recipe = Recipe(config.train, mesh, config.seed, config.kto)
    fit(tiny, data, recipe, directory=tmp_path, identity="x", title="test")
    real, ran, with_settings = seen[0]
    assert real is step
    assert ran == jax.tree.map(lambda x: (x.shape, x.dtype), arguments)
    assert with_settings == settings
    done = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert flops == pytest.approx(done["tflops"] * done["seconds"] * 1e12, rel=1e-3)


@with_libtpu
@pytest.mark.parametrize(("method", "mesh"), [("kto", {"fsdp": 0}), ("sft", {"fsdp": 2, "tensor": 2})])
def test_a_step_compiles_for_a_tpu_that_is_not_there(tiny_path, method, mesh):
    config = config_of(tiny_path, TPU | {"mesh.tensor": 1} | {f"mesh.{axis}": n for axis, n in mesh.items()}, method=method)
    made = aot.compile_step(config, "v5e:2x2")  # raises where the kernel is not in the program
    assert list(made) == ["topology", "chips", "attention", "compile_s", "hbm_gb_per_chip", "fits", "flops"]
    assert made["chips"] == 4
    assert made["fits"]
    assert 0 < made["hbm_gb_per_chip"] < 0.1


@with_libtpu
def test_a_step_that_does_not_fit(tiny_path):
    """The compiler refuses it; the line says how much it would take at least."""
    shape = dataclasses.replace(KNOWN["llama3.1-8b"].config, L=2)
    (tiny_path / "config.json").write_text(json.dumps(shape.to_hf()))
    config = config_of(tiny_path, TPU | {"mesh.fsdp": 0}, buckets=(2048,), batch_size=256, remat="none")
    made = aot.compile_step(config, "v5e:2x2")
    assert not made["fits"]
    assert 16 < made["hbm_gb_per_chip"] < 1000


def test_it_is_the_decode_that_the_engine_runs(tiny, tmp_path, monkeypatch):
    """The arguments of its program, on a mesh and with an adapter, as on accelerators."""
    (tmp_path / "config.json").write_text(json.dumps(tiny.config.to_hf()))
    config = config_of(tmp_path, {"model.dtype": "float32", "interact.max_new": 4})
    config = dataclasses.replace(config, engine=EngineConfig(3, 20, 8))
    mesh = mesh_of(config.mesh, jax.devices()[:1])
    step, arguments, settings, flops = aot.abstract_decode(config, mesh, aot._slots(config, mesh))
    c = tiny.config
    assert flops == 2 * 3 * (c.L * (2 * c.D * (c.H + c.K) * c.h + 3 * c.D * c.F) + c.D * c.V)
    monkeypatch.setattr(kv, "groups", lambda: kv.TOGETHER)
    tokenizer = type("Any", (), {"__len__": lambda self: tiny.config.V})()
    adapter = lora.init(config.train.lora, tiny.config, jax.random.key(0))
    engine = Engine(tiny.replace(tokenizer=tokenizer, mesh=mesh, adapter=adapter), **dataclasses.asdict(config.engine))
    seen = []

    def stop(*arguments):
        seen.extend(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(programs, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        list(engine.generate([Request("x", (7, 8, 9))]))
    ours, theirs = (jax.tree.map(lambda x: (np.shape(x), x.dtype), tuple(x[4:-1])) for x in (arguments, seen))
    assert step is not stop
    assert settings == {}
    assert seen[:4] == list(arguments[:4])
    assert ours == theirs  # but for the number of end tokens


@with_libtpu
def test_decode_compiles_for_a_tpu_that_is_not_there(tiny_path):
    engine = {"engine.slots": 8, "engine.cache_length": 256, "engine.chunk": 64}
    config = config_of(tiny_path, TPU | {"mesh.fsdp": 2, "mesh.tensor": 2} | engine)
    made = aot.compile_step(config, "v5e:2x2", "sample")
    assert made["slots"] == 8
    assert made["attention"] == "xla"
    assert made["fits"]
    # Prefill of the same engine, of 4 chunks for each of its two shards; the cache stays where it is.
    mesh = mesh_of(config.mesh, aot._devices("v5e:2x2"))
    shape, _, _, _, layers, _, adapter, caches, *_ = aot.abstract_decode(config, mesh, 8)[1]
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x_RxCxD = jax.ShapeDtypeStruct((8, 64, shape.D), "bfloat16", sharding=sharding.batch_sharding(mesh))
    n_R = jax.ShapeDtypeStruct((8,), "int32", sharding=whole)
    lowered = programs.prefill_layer.lower(shape, "xla", 256, mesh, layers[0], adapter[0], x_RxCxD, caches[0], n_R, n_R)
    assert lowered.compile().output_shardings[1] == (kv.cache_sharding(mesh),) * 2
    config = dataclasses.replace(config, engine=EngineConfig(0, 256, 64))  # a tiny model's caches never fill a chip
    assert aot._slots(config, mesh) == kv.MOST_SLOTS


def test_slots_for_a_chips_memory():
    """The engine's rule: three quarters of what the weights leave, in multiples of data x fsdp."""
    shape = KNOWN["llama3.1-8b"].config
    mesh = jax.sharding.AbstractMesh((1, 4, 2), sharding.AXES)
    slot = 2 * shape.L * (shape.K // 2) * shape.h * 2048 * 2
    assert kv.slots_in(100 * slot, shape, 2048, "bfloat16", mesh) == 75 * 4
    assert kv.slots_in(2**50, shape, 2048, "bfloat16", mesh) == kv.MOST_SLOTS
    with pytest.raises(UserError, match="not one slot of 2048 positions"):
        kv.slots_in(slot, shape, 2048, "bfloat16", mesh)


def refused(capsys, *arguments, config="kto_biased10.py", main=aot.main):
    argv = ["--config", str(ROOT / "configs" / config), *arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aot", *argv])  # where ml_collections looks for the fields' flags
        assert main(argv) == 2
    return capsys.readouterr().err


@with_libtpu
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--topology=v5e:4x4", "--config.train.batch_size=10"], r"config\.train\.batch_size is 10.*multiple of 16"),
        (["--topology=v5p:4x4x4"], r"config\.train\.batch_size is 16.*multiple of 64"),
        (["--topology=v5e:2x2", "--config.mesh.fsdp=8"], r"config\.mesh asks for 1 x 8 x 1 .* but 4 are present"),
        (["--topology=v9:2x2"], "--topology 'v9:2x2' is not a TPU slice"),
        (["--topology=v5e:3x5"], "--topology 'v5e:3x5' is not a TPU slice"),
        (["--topology=v5e:2x2", "--config.model.path=someone/else"], r"config\.model\.path is 'someone/else'"),
        (["--topology=v5e:2x2", "--config.train.buckets=(200,)"], r"config\.train\.buckets a multiple of 128"),
    ],
)
def test_refused(capsys, arguments, says):
    assert re.search(says, refused(capsys, *arguments))


def test_refused_before_libtpu_is_asked_for(capsys):
    assert "--topology is missing" in refused(capsys)
    assert "--stage=serve" in refused(capsys, "--topology=v5e:2x2", "--stage=serve")


def test_without_libtpu(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert "pip install 'emjax[aot]'" in refused(capsys, "--topology=v5e:4x4")


def test_a_config_without_such_a_step(capsys):
    text = refused(capsys, "--topology=v5e:2x2", config="micro_pretrain.py")
    assert "config.experiment is 'pretrain'" in text


def test_the_command_is_the_module(capsys):
    """`emjax aot ARGUMENTS` reads the same arguments as `python -m emjax.aot ARGUMENTS`."""
    assert "--topology is missing" in refused(capsys, main=lambda argv: commands.main(["aot", *argv]))


def test_the_adapter_of_a_recipe():
    mesh = mesh_of(config_of("micro").mesh, jax.devices()[:1])
    assert Recipe(config_of("micro", tuning="full").train, mesh, 0).lora is None
    assert Recipe(config_of("micro").train, mesh, 0).lora == LoraConfig(32, 64.0)
