"""The rule for fields that say auto."""

import dataclasses

import pytest
from typed_configs import interaction

from emjax.config import EngineConfig, EvalConfig, JudgeConfig
from emjax.cost import auto, devices
from emjax.errors import UserError
from emjax.models import sharding
from emjax.models.config import ModelConfig
from emjax.models.known import KNOWN
from emjax.runtime import hardware
from emjax.runtime.hardware import DEVICES, Place
from emjax.sampling import cache as kv

GIB = 2**30
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
SMALL = ModelConfig(  # SmolLM2-135M
    family="llama", V=49152, D=576, L=30, H=9, K=3, h=64, F=1536, norm_eps=1e-5, rope_theta=1e5, rope_scaling=None,
    max_position=8192, tied=True, qkv_bias=False, qk_norm=False,
)  # fmt: skip
LARGE = KNOWN["llama3.1-8b"].config
CPU, H200, TPU = Place("cpu", 8 * GIB), Place("gpu", 139 * GIB, 9.0), Place("tpu", 95 * GIB)


def config(**engine):
    made = interaction("llama3.1-8b")
    compute = dataclasses.replace(made.model, dtype="auto", attention="auto")
    return dataclasses.replace(made, model=compute, engine=EngineConfig(**{"slots": 0} | engine))


def settled(shape, place, sizes=ONE, **engine):
    made = auto.settled(config(**engine), shape, place, sizes)
    return made.model.dtype, made.model.attention, made.engine.slots


@pytest.mark.parametrize(
    ("shape", "place", "wanted"),
    [
        (SMALL, CPU, ("float32", "xla")),
        (SMALL, H200, ("bfloat16", "cudnn")),
        (SMALL, dataclasses.replace(H200, capability=7.5), ("bfloat16", "xla")),  # before the kernel's GPUs
        (dataclasses.replace(SMALL, h=96), H200, ("bfloat16", "xla")),  # a head size that its decoding does not have
        (LARGE, TPU, ("bfloat16", "splash")),
        (dataclasses.replace(LARGE, h=80), TPU, ("bfloat16", "xla")),
    ],
)
def test_dtype_and_attention(shape, place, wanted):
    assert settled(shape, place)[:2] == wanted


def test_splash_needs_rows_of_whole_blocks():
    train = dataclasses.replace(config().train, buckets=(64, 256))
    assert auto.computed(config().model, LARGE, TPU, train.buckets).attention == "xla"


def test_slots_of_a_small_model_on_a_laptop():
    *_, few = settled(SMALL, CPU)
    assert 1 <= few <= auto.CPU_MOST
    whole = few * kv.slot_bytes(SMALL, 2048, "float32", 1) * auto.engines(config())
    assert whole < CPU.memory / 2
    assert settled(SMALL, dataclasses.replace(CPU, memory=64 * GIB))[2] == auto.CPU_MOST


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_slots_leave_half_for_training(shape):
    *_, slots = settled(shape, H200)
    weights = sum(row.device for row in sharding.table(shape, "bfloat16", ONE))
    caches = auto.engines(config()) * slots * kv.slot_bytes(shape, 2048, "bfloat16", 1)
    assert caches <= (H200.memory - weights) / 2
    assert slots == kv.MOST_SLOTS or slots > 50


def test_more_engines_share_the_memory():
    judged = dataclasses.replace(
        config(),
        eval=EvalConfig(benchmarks=("mask",), judges={"main": JudgeConfig(kind="engine", model="x", structured=False)}),
    )
    assert auto.engines(judged) == auto.engines(config()) + 1
    assert auto.slots(auto_dtype(judged), LARGE, H200, ONE) < auto.slots(auto_dtype(config()), LARGE, H200, ONE)


def auto_dtype(made):
    return dataclasses.replace(made, model=auto.computed(made.model, LARGE, H200))


def test_slots_are_a_multiple_of_the_shards():
    sizes = {"data": 3, "fsdp": 2, "tensor": 1}
    for place in (CPU, H200):
        assert settled(SMALL, place, sizes)[2] % 6 == 0


def test_given_values_stay():
    made = interaction("llama3.1-8b")
    assert auto.settled(made, LARGE, CPU, ONE) == made
    assert not auto.is_auto(made)


def test_nothing_fits():
    with pytest.raises(UserError, match=r"config\.engine\.slots.*cache_length"):
        settled(LARGE, dataclasses.replace(H200, memory=17 * GIB))


CHECKED = [
    ({"attention": "cudnn"}, CPU, r"config\.model\.attention is 'cudnn', a kernel for a GPU"),
    ({"attention": "splash"}, H200, r"config\.model\.attention is 'splash', a kernel for a TPU"),
    ({}, dataclasses.replace(H200, memory=40 * GIB), r"config\.engine\.slots is 256: .* At most 100 slots could fit"),
    ({}, dataclasses.replace(H200, memory=8 * GIB), r"config\.model\.path: its weights take 15 GiB in bfloat16"),
]


@pytest.mark.parametrize(("model", "place", "says"), CHECKED)
def test_a_device_that_is_too_small(model, place, says):
    made = interaction("llama3.1-8b")
    made = dataclasses.replace(made, model=dataclasses.replace(made.model, **model))
    with pytest.raises(UserError, match=says) as error:
        auto.check(made, LARGE, place, ONE)
    assert "\n" not in str(error.value)
    auto.check(interaction("llama3.1-8b"), LARGE, H200, ONE)  # and one that is not


def test_a_plan_prints_what_a_run_would_record():
    printed = devices.describe(config(), "h200", 10)
    wanted = settled(LARGE, hardware.planned(DEVICES["h200"]))
    assert f"--config.model.dtype={wanted[0]} --config.model.attention={wanted[1]} --config.engine.slots={wanted[2]}" in printed
    assert "auto  " not in devices.describe(interaction("llama3.1-8b"), "h200", 10)


def test_this_machine():
    place = hardware.here()
    assert place.platform == "cpu"
    assert 2**28 < place.memory < 2**44


@pytest.mark.parametrize("error", [ValueError("RESOURCE_EXHAUSTED"), KeyError("x")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)), hardware.memory_for("train", "config.train.batch_size"):
        raise error
