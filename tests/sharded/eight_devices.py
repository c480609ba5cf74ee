"""Run by test_sharding.py in a process that has eight virtual devices."""

import dataclasses
import functools
import json

import jax
import numpy as np
import optax
import pytest

from benchmarks import collectives
from emjax import aot, models
from emjax.config import InteractConfig, KtoConfig, LoraConfig
from emjax.cost import devices
from emjax.data import batches
from emjax.data.batches import Example
from emjax.experiment.common import mesh_of
from emjax.kto import reference
from emjax.kto import step as kto_step
from emjax.kto.pairing import Plan
from emjax.models import LanguageModel, decoder, lora, sharding
from emjax.models.config import ModelConfig
from emjax.train import optimizer, sft, state
from emjax.train.checkpoint import Checkpoints
from emjax.train.state import Tuning
from emjax.worlds.micro import tokenizer
from emjax.worlds.micro.world import World

CONFIG = ModelConfig(
    family="qwen2", V=340, D=32, L=2, H=4, K=2, h=8, F=48, norm_eps=1e-5, rope_theta=1e4, rope_scaling=None,
    max_position=64, tied=False, qkv_bias=True, qk_norm=False, init_std=0.2,
)  # fmt: skip
MESH = sharding.make_mesh(2, 2, 2)
# A large eps: AdamW would otherwise turn rounding errors of gradients near 0 into whole steps.
OPT = optimizer.make(0.9, 0.999, 1e-3, 0.01, 1.0)
CLOSE = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=0)
NEAR = functools.partial(np.testing.assert_allclose, atol=5e-5, rtol=0)  # sums of log-probs in the tens
ADAPTER = LoraConfig(2, 4.0, targets=("q", "down"))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The model on one device, and its directory."""
    lm = LanguageModel(CONFIG, decoder.init(CONFIG, jax.random.key(0)), tokenizer.build(World(0)), (5,))
    path = tmp_path_factory.mktemp("base")
    models.save(lm, path)
    return lm, path


@pytest.fixture(scope="module")
def eight(one):
    return models.load(str(one[1]), dtype="float32", mesh=MESH)


def data():
    rng = np.random.default_rng(0)
    made = []
    for i in range(15):
        ids, start = tuple(rng.integers(0, 340, rng.integers(9, 13)).tolist()), int(rng.integers(4, 6))
        weights = tuple(float(t >= start) for t in range(len(ids)))
        made.append(Example(f"e{i}", ids, weights, start, f"p{i}", i % 3 == 0))
    return made


def run(method, lm, mesh, steps, checkpoints=None, save_at=None):
    """Runs (or goes on with) training; returns the state and the metrics of every step."""
    put = functools.partial(jax.device_put, device=sharding.batch_sharding(mesh)) if mesh else jax.device_put
    examples, block = data(), np.arange(15)  # one row of sixteen is padding
    tuning = Tuning(CONFIG, None if method == "sft" else ADAPTER, mesh=mesh)
    settings = {"tuning": tuning, "optimizer": OPT, "microbatches": 2 if method == "kto" else 1}
    if method == "sft":
        trainable, frozen = lm.params, None
        step = functools.partial(sft.step, **settings)
        build = batches.sft(examples, [block] * 3, 16, (16,))
    else:
        trainable, frozen = lora.init(ADAPTER, CONFIG, jax.random.key(1)).weights, lm.params
        step = functools.partial(kto_step.step, kto=KtoConfig(0.5), **settings)
        plan = Plan([block], [np.roll(block, 1)], [0] * 3)
        made = reference.compute(lm.params, None, tuning, examples, plan, 16, (16,), put)
        build = kto_step.build(examples, plan, 16, (16,), made, 2)
    now = state.create(trainable, OPT, tuning)
    if checkpoints:
        now = checkpoints.restore(now)
    found = []
    for number in range(int(now["step"]), steps):
        now, metrics = step(now, frozen, put(build(number)), np.float32(1e-2))
        found.append({name: float(value) for name, value in metrics.items()})
        if number + 1 == save_at:
            checkpoints.save(now, save_at)
    return now, found


def test_loading_spreads_every_matrix(one, eight):
    placed = jax.tree.map(lambda x: x.sharding, eight.params)
    specs = sharding.parameter_specs(decoder.abstract(CONFIG, "float32")[1])
    assert placed == jax.tree.map(lambda s: jax.NamedSharding(MESH, s), specs, is_leaf=lambda x: isinstance(x, jax.P))
    jax.tree.map(np.testing.assert_array_equal, eight.params, one[0].params)
    (shard, *_) = eight.params["layers"]["gate"].addressable_shards
    assert shard.data.size == eight.params["layers"]["gate"].size / 4


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_one_and_eight_devices_agree(one, eight, method, tmp_path):
    """Loss and weights; one program; and a run that was saved goes on, there and on one device."""
    program = sft.step if method == "sft" else kto_step.step
    alone, wanted = run(method, one[0], None, 3)
    size = program._cache_size()
    checkpoints = Checkpoints(tmp_path, "run")
    together, found = run(method, eight, MESH, 3, checkpoints, save_at=2)
    checkpoints.close()
    assert program._cache_size() == size + 1
    jax.tree.map(NEAR, found, wanted)
    CLOSE([m["loss"] for m in found], [m["loss"] for m in wanted])
    jax.tree.map(CLOSE, together["trainable"], alone["trainable"])
    assert found[-1]["loss"] < found[0]["loss"] - 0.01
    again, rest = run(method, eight, MESH, 3, Checkpoints(tmp_path, "run"))
    assert rest == found[2:]
    jax.tree.map(np.testing.assert_array_equal, again, together)
    assert program._cache_size() == size + 1
    alone_again, rest = run(method, one[0], None, 3, Checkpoints(tmp_path, "run"))
    jax.tree.map(NEAR, rest, wanted[2:])
    jax.tree.map(CLOSE, alone_again["trainable"], alone["trainable"])


def test_a_run_moves_between_meshes(one, eight, tmp_path):
    """8 -> 2 -> 4 devices, data, fsdp and tensor reshaped: the state is the same to the bit, and the next step is the same."""
    whole, wanted = run("sft", eight, MESH, 3)
    checkpoints = Checkpoints(tmp_path, "run")
    saved, found = run("sft", eight, MESH, 1, checkpoints, save_at=1)
    checkpoints.close()
    for steps, shape in ((2, (1, 2, 1)), (3, (2, 1, 2))):
        mesh = sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
        specs = sharding.parameter_specs(decoder.abstract(CONFIG, "float32")[1])
        lm = one[0].replace(params=jax.device_put(one[0].params, sharding.shardings(mesh, specs)))
        checkpoints = Checkpoints(tmp_path, "run")
        tuning = Tuning(CONFIG, None, mesh=mesh)
        restored = checkpoints.restore(state.create(lm.params, OPT, tuning))
        jax.tree.map(np.testing.assert_array_equal, restored, saved)
        assert restored["trainable"]["layers"]["gate"].sharding.mesh == mesh
        saved, more = run("sft", lm, mesh, steps, checkpoints, save_at=steps)
        checkpoints.close()
        found += more
    jax.tree.map(NEAR, found, wanted)
    jax.tree.map(CLOSE, saved["trainable"], whole["trainable"])


@pytest.fixture(scope="module")
def gradients(one):
    """gradients(mesh): the loss, z and new weights of one plain step of full KTO tuning on that mesh."""
    plain, kto, examples, block = optax.sgd(1.0), KtoConfig(0.5), data(), np.arange(15)
    plan = Plan([block], [np.roll(block, 1)], [0])
    rng = np.random.default_rng(0)

    def run(mesh):
        tuning = Tuning(CONFIG, None, mesh=mesh)
        params, put = one[0].params, jax.device_put
        if mesh:
            specs = sharding.parameter_specs(decoder.abstract(CONFIG, "float32")[1])
            params = jax.device_put(params, sharding.shardings(mesh, specs))
            put = functools.partial(jax.device_put, device=sharding.batch_sharding(mesh))
        made = {"reference": given[0][None], "reference_kl": given[1][None]}
        batch = put(kto_step.build(examples, plan, 16, (16,), made)(0))
        now, metrics = kto_step.step(
            state.create(params, plain, tuning), None, batch, np.float32(1.0), tuning=tuning, optimizer=plain, kto=kto
        )  # fmt: skip
        return metrics, now["trainable"]

    given = rng.uniform(-60, -40, (2, 16)).astype(np.float32)
    return run


@pytest.fixture(scope="module")
def alone(gradients):
    return gradients(None)


@pytest.mark.parametrize(
    "shape", [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 1, 2), (1, 2, 2), (8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 1, 4)]
)
def test_every_mesh_gives_the_same_step(gradients, alone, shape):
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    metrics, weights = gradients(jax.sharding.Mesh(devices, sharding.AXES))
    assert alone[0]["kl"] > 0.1
    jax.tree.map(NEAR, metrics, alone[0])
    CLOSE(metrics["loss"], alone[0]["loss"])
    jax.tree.map(CLOSE, weights, alone[1])


def test_the_state_is_spread_like_the_base(eight):
    now = state.create(eight.params, OPT, Tuning(CONFIG, None, mesh=MESH))
    for tree in (now["trainable"], now["opt"][1][0].mu, now["opt"][1][0].nu):
        (shard, *_) = tree["layers"]["down"].addressable_shards
        assert shard.data.size == tree["layers"]["down"].size / 4
        assert tree["final_norm"].sharding.is_fully_replicated


@pytest.mark.parametrize(("shape", "method"), [((1, 4, 2), "kto"), ((1, 8, 1), "sft"), ((4, 2, 1), "kto")])
def test_a_step_gathers_weights_and_nothing_else(shape, method, tmp_path):
    """The compiled program's collectives, by bytes: what the scaling model says, and no logits or activations of all rows."""
    # A vocabulary of more entries than the batch has tokens: else it is right to gather the embedding.
    small = dataclasses.replace(CONFIG, V=4096, D=64, L=3, F=128)
    (tmp_path / "config.json").write_text(json.dumps(small.to_hf()))
    config = collectives.config_of(str(tmp_path), method, dict(zip(sharding.AXES, shape, strict=True)), 8, 256)
    train = dataclasses.replace(config.train, lora=dataclasses.replace(config.train.lora, rank=2))
    config = dataclasses.replace(config, train=train, interact=InteractConfig(max_new=64))
    mesh = mesh_of(config.mesh)
    step, arguments, settings, _ = aot.abstract_step(config, mesh)
    found = collectives.read(step.lower(*arguments, **settings).compile().as_text())
    gathered = sum(one.received for one in found if one.kind == "all-gather")
    summed = sum(one.received for one in found if one.kind in ("all-reduce", "reduce-scatter"))
    wanted = devices.collectives(devices.step_of(config), dict(mesh.shape))
    assert gathered == pytest.approx(wanted["fsdp"], rel=0.15)
    assert summed == pytest.approx(wanted["tensor"] + wanted["gradients"], rel=0.3)
    own = 8 * 256 * small.D // (shape[0] * shape[1])  # a device's own activations
    for one in found:
        for _, dims in one.shapes:
            assert dims[:1] != (small.L,) or min(dims[1:]) <= 2, f"all layers at once: {one}"  # 2: LoRA's rank
            assert dims[:1] != (8,) or np.prod(dims) <= own, f"of all rows: {one}"
            assert small.V // shape[2] not in dims or dims == (small.D, small.V // shape[2]), f"logits: {one}"


def test_one_device_gives_no_mesh_of_eight():
    assert jax.device_count() == 8
    with pytest.raises(Exception, match="2 x 1 x 1 = 2 devices"):
        sharding.make_mesh(2, 1, 1)
