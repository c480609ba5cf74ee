"""What a plan says of devices, against what the compiler and a measurement said."""

import dataclasses
import math

import pytest
from typed_configs import MICRO, changed, interaction

from emjax import cost
from emjax.config import LoraConfig, PretrainConfig
from emjax.cost import devices
from emjax.errors import UserError
from emjax.models.config import ModelConfig, RopeScaling
from emjax.models.known import KNOWN
from emjax.runtime import hardware

LORA = LoraConfig(rank=32, alpha=64.0)
LLAMA_70B = ModelConfig(
    family="llama", V=128256, D=8192, L=80, H=64, K=8, h=128, F=28672, norm_eps=1e-5, rope_theta=5e5,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), max_position=131072, tied=False, qkv_bias=False, qk_norm=False,
)  # fmt: skip
MODELS = {name: known.config for name, known in KNOWN.items()} | {"llama3.1-70b": LLAMA_70B}


def step(model, rows=16, **changes):
    return devices.Step(MODELS[model], "bfloat16", rows, 2048, 300, **{"lora": LORA, "paired": True, **changes})


# docs/scaling.md: GB a chip that XLA's memory analysis gives (python -m emjax.aot, jax 0.10.2, libtpu 0.0.42).
@pytest.mark.parametrize(
    ("model", "rows", "mesh", "compiler"),
    [
        ("llama3.1-8b", 16, (1, 16, 1), 9.43),  # v5e:4x4
        ("llama3.1-8b", 16, (1, 16, 1), 9.86),  # v6e:4x4
        ("qwen2.5-7b", 16, (1, 16, 1), 9.63),  # v5e:4x4
        ("qwen3-32b", 16, (1, 16, 4), 12.58),  # v5p:4x4x4
        ("qwen3-32b", 64, (1, 64, 1), 29.87),  # v5p:4x4x4
        ("llama3.1-70b", 16, (1, 16, 8), 16.10),  # v5p:4x4x8
    ],
)
def test_memory_against_the_compiler(model, rows, mesh, compiler):
    found = devices.memory(step(model, rows), dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)))
    assert sum(found.values()) / devices.GB == pytest.approx(compiler, rel=0.1)


def test_time_against_a_measurement():
    """docs/training.md: one H200, rows of 1,024 tokens, half of them answers: 14.1 examples/s with a cached reference."""
    h200, count = devices.target("h200")
    one = dataclasses.replace(step("llama3.1-8b"), length=1024, answer=512)
    made = devices.plan(one, {"data": 1, "fsdp": 1, "tensor": 1}, h200)
    assert count == 1
    assert 16 / made.seconds == pytest.approx(14.1, rel=0.15)
    assert made.link_s == {"fsdp": 0, "tensor": 0, "gradients": 0}


@pytest.mark.parametrize(
    ("sizes", "rows", "seconds", "gb"),
    [((1, 1, 1), 8, 0.630, 41.6), ((2, 1, 1), 16, 0.648, 41.6), ((1, 2, 1), 16, 0.710, 36.6), ((1, 1, 2), 16, 0.792, 38.5)],
)
def test_time_and_memory_on_two_gpus(sizes, rows, seconds, gb):
    """docs/scaling.md: two H100, rows of 1,024 tokens, half of them answers. Gathers hide less than planned."""
    h100, _ = devices.target("h100x2")
    one = dataclasses.replace(step("llama3.1-8b", rows), length=1024, answer=512)
    made = devices.plan(one, dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)), h100)
    assert made.seconds == pytest.approx(seconds, rel=0.15)
    assert made.total / 2**30 == pytest.approx(gb, rel=0.05)


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [("cpu", "cpu", 1), ("h200", "h200", 1), ("h100x8", "h100", 8), ("v5e:4x4", "v5e", 16), ("v5p:2x2x4", "v5p", 16)],
)
def test_targets(text, name, count):
    assert devices.target(text) == (hardware.DEVICES[name], count)


@pytest.mark.parametrize("text", ["", "v9:2x2", "v5e", "h100:2x2", "h100x0", "tpu", "cpux2", "v5e:4x", "v5e:16x32"])
def test_what_is_no_target(text):
    with pytest.raises(UserError, match="--target is"):
        devices.target(text)


def test_what_stays_in_a_node_goes_at_its_rate():
    """docs/scaling.md: fsdp inside the node, data outside."""
    h100, _ = devices.target("h100x16")

    def links(*mesh):
        return devices.plan(step("llama3.1-8b"), dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)), h100).link_s

    gathers = devices.collectives(step("llama3.1-8b"), {"data": 2, "fsdp": 8, "tensor": 1})["fsdp"]
    assert links(2, 8, 1)["fsdp"] == pytest.approx(gathers / 450e9)
    assert links(1, 16, 1)["fsdp"] > 9 * links(2, 8, 1)["fsdp"]  # 450 and 50 GB/s
    assert links(2, 4, 2)["fsdp"] < links(1, 16, 1)["fsdp"] / 9
    assert links(2, 8, 1)["gradients"] > 9 * links(1, 8, 1)["gradients"]


def test_the_choice_fits_and_spreads():
    v5e, count = devices.target("v5e:4x4")
    best, *slower = devices.choose(step("llama3.1-8b"), v5e, count)
    assert best.seconds <= min(one.seconds for one in slower)
    assert math.prod(best.sizes.values()) == 16
    assert best.total <= devices.ROOM * 16 * devices.GB
    assert devices.choose(step("qwen3-32b"), *devices.target("h100")) == []  # 65.5 GB of weights and a step do not fit
    small = devices.choose(step("qwen3-32b"), *devices.target("v5e:4x4"))[0]
    assert small.step.remat == "full"  # docs/scaling.md
    assert small.sizes["fsdp"] == 16
    # More microbatches, fewer saved activations; a row more, more.
    sizes = {"data": 1, "fsdp": 8, "tensor": 1}
    whole = devices.memory(step("llama3.1-8b"), sizes)["activations"]
    assert devices.memory(step("llama3.1-8b", microbatches=2), sizes)["activations"] == whole / 2
    assert devices.memory(step("llama3.1-8b", remat="full"), sizes)["activations"] < whole / 5


def test_full_tuning_takes_what_the_docs_say():
    """20 bytes a parameter (docs/training.md): base, weights, moments, gradients and cast weights."""
    found = devices.memory(step("llama3.1-8b", lora=None), {"data": 1, "fsdp": 1, "tensor": 1})
    kept = sum(found[kind] for kind in ("weights", "optimizer", "gradients", "cast weights"))
    assert kept / 8.03e9 == pytest.approx(20, rel=0.01)


def told(variant, target, **changes):
    """{first word of a line: the rest} of what --target adds to the plan."""
    config = changed(interaction(variant or "llama3.1-8b"), changes)
    limits = MICRO if variant == "micro" else None
    lines = cost.describe(config, limits=limits, benchmarks={}, target=target).splitlines()
    return {line[:11].strip(): line[11:] for line in lines[[line[:6] for line in lines].index("target") :]}


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("micro", {"memory": "activations 0.01", "batch": "32 rows", "training": "300 steps", "sampling": "128 slots of 128 "}),
        ("llama3.1-8b", {"memory": "GB a chip: weights", "batch": "16 rows", "training": "25000 steps", "sampling": "weights"}),
        ("qwen3-32b", {"memory": "GB a chip: weights", "batch": "16 rows", "training": "25000 steps", "sampling": "weights"}),
    ],
)
def test_a_dry_run_names_memory_mesh_batch_time_money_and_the_sampler(variant, words):
    found = told(variant, "v5p:2x2x4")
    for line, part in (words | {"target": "16 x TPU v5p", "mesh": "--config.mesh.fsdp=", "step": "arithmetic"}).items():
        assert part in found[line]
    assert "hours, about $" in found["training"]
    assert "positions" in found["sampling"]
    assert ": fits" in found["sampling"]


def test_the_batch_that_fits():
    assert "--config.train.microbatches=1: 1 at a time on each of 16 shards; at most 16 fit" in told("", "v5e:4x4")["batch"]
    assert "1 at a time on each of 16 shards, each row shared by 2 chips" in told("", "h100x32")["batch"]
    # Too large at a time: in parts. At most so many fit, and no row more on each shard.
    assert "128 rows, --config.train.microbatches=4" in told("", "h100", **{"train.batch_size": 128})["batch"]
    made = devices.in_parts(step("llama3.1-8b", 128), *devices.target("h100"))[0]
    most = devices.most_rows(made, hardware.DEVICES["h100"])
    for rows, fits in ((most, True), (most + made.step.microbatches, False)):
        found = devices.memory(dataclasses.replace(made.step, rows=rows), made.sizes)
        assert (sum(found.values()) <= devices.ROOM * 79 * devices.GB) == fits
    # 16 rows do not spread over 24 chips; 15 do, a row shared by 8.
    assert "nearest that does is 15" in told("", "h100x24")["target"]
    assert "does not fit at any batch size" in told("qwen3-32b", "v5e:2x1")["target"]


def test_what_the_sampler_takes():
    """The engine's copy of the layers stands beside the base, and the cache follows cache.slots_in."""
    one = told("", "h100")["sampling"]
    assert "weights 14.96, the layers apart 13.00, adapter 0.31, 256 slots of 2048 positions 64.00: does not fit" in one
    assert "at most 133 slots" in one
    # A run records fewer: two engines and training share the chip (cost.auto).
    assert ", 23 slots of 2048 positions 5.75: fits" in told("", "h100", **{"engine.slots": 0})["sampling"]
    assert "256 slots of 2048 positions 4.00: fits" in told("", "v5e:4x4")["sampling"]
    assert "config.engine.slots must be a multiple of data x fsdp" in told("", "v5e:4x4", **{"engine.slots": 101})["sampling"]
    assert "optimizer 0.62" in told("", "v5e:4x4", **{"eval.at_steps": (5,)})["sampling"]
    assert "weights 3.74, the layers apart 1.63" in told("", "h200x8", **{"train.tuning": "full"})["sampling"]  # base and tuned
    assert "at most 0 slots" in told("qwen3-32b", "h100")["sampling"]
    # Where no mesh has room for all, the one with most: 251, where the fastest (data 2, fsdp 2) has room for 72.
    assert "at most 251 slots" in told("qwen3-32b", "h100x4")["sampling"]
    # The fastest mesh for training, a copy of 32B on each chip, has no room for it.
    assert devices.choose(step("qwen3-32b"), *devices.target("v5p:2x2x4"))[0].sizes["data"] == 16
    assert "--config.mesh.data=8 --config.mesh.fsdp=2" in told("qwen3-32b", "v5p:2x2x4")["mesh"]


def test_what_does_not_train_has_no_such_plan():
    with pytest.raises(UserError, match="--target plans a training or an evaluation, and config.experiment is 'pretrain'"):
        cost.describe(PretrainConfig(documents=1), limits=None, benchmarks={}, target="h200")
