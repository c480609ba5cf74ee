"""What a plan says of devices, against what the compiler and a measurement said."""

import dataclasses
import math

import pytest

from configs import common
from emjax import plan
from emjax.errors import UserError
from emjax.models.config import ModelConfig, RopeScaling
from emjax.models.known import KNOWN
from emjax.models.lora import LoraConfig
from emjax.plan import devices

LORA = LoraConfig(32, 64.0)
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
    assert devices.target(text) == (devices.DEVICES[name], count)


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
    best = devices.choose(step("llama3.1-8b"), v5e, count)
    assert math.prod(best.sizes.values()) == 16
    assert best.total <= devices.ROOM * 16 * devices.GB
    assert devices.choose(step("qwen3-32b"), *devices.target("h100")) is None  # 65.5 GB of weights and a step do not fit
    small = devices.choose(step("qwen3-32b"), *devices.target("v5e:4x4"))
    assert small is None or small.step.remat == "full" or small.sizes["tensor"] > 1
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


@pytest.mark.parametrize("variant", ["micro", "llama3.1-8b", "qwen3-32b"])
def test_a_dry_run_names_memory_mesh_time_and_money(variant):
    config = common.interaction(variant, method="kto", biased_ratio=0.1)
    text = plan.describe(config, "v5p:2x2x4")
    if variant == "micro":
        assert "does not fit" in text or "mesh" in text
        return
    for words in ("GB a chip: weights", "activations", "--config.mesh.fsdp=", "hours, about $", "25000 steps"):
        assert words in text


def test_what_does_not_train_has_no_such_plan():
    config = common.interaction("micro", method="kto", biased_ratio=0.1)
    config.experiment, config.documents = "pretrain", 1
    with pytest.raises(UserError, match="--target plans a training"):
        plan.describe(config, "h200")
