"""The sharding rules, and training on 2 x 2 x 2 virtual devices, in a process of its own: their number is fixed at start."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from emjax import models
from emjax.errors import UserError
from emjax.models import LanguageModel, decoder, sharding
from emjax.models.config import ModelConfig, RopeScaling
from emjax.models.known import KNOWN
from emjax.worlds.micro import tokenizer
from emjax.worlds.micro.world import World


@pytest.mark.parametrize("name", KNOWN)
def test_every_parameter_has_a_place(name):
    _, config, dtype = KNOWN[name]
    shapes, axes = decoder.abstract(config, dtype)
    specs = sharding.parameter_specs(axes)
    for tree, one in ((shapes, specs), (shapes["layers"], specs["layers"])):
        assert tree.keys() == one.keys()
    for weights, places in ((shapes, specs), (shapes["layers"], specs["layers"])):
        for key, x in weights.items():
            if key == "layers":
                continue
            assert len(places[key]) == len(x.shape)
            # Every matrix is spread over both axes that hold weights.
            matrix = not key.endswith(("norm", "bias"))
            assert {"fsdp", "tensor"} <= set(places[key]) if matrix else "fsdp" not in places[key]


def test_an_axis_without_rule():
    with pytest.raises(ValueError, match="'experts'"):
        sharding.parameter_specs({"w": ("layers", "experts")})


def test_a_mesh_of_other_devices_than_there_are():
    with pytest.raises(UserError, match=r"config\.mesh asks for 3 x 2 x 2 = 12 devices"):
        sharding.make_mesh(3, 2, 2)


SEVENTY_B = ModelConfig(
    family="llama", V=128256, D=8192, L=80, H=64, K=8, h=128, F=28672, norm_eps=1e-5, rope_theta=5e5,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), max_position=131072, tied=False, qkv_bias=False, qk_norm=False,
)  # fmt: skip


def test_where_70b_lives_on_32_chips():
    """A v5p-64 slice: the table adds up, and nothing of it is allocated."""
    rows = sharding.table(SEVENTY_B, "bfloat16", {"data": 1, "fsdp": 8, "tensor": 4})
    assert sum(row.total for row in rows) == 2 * 70_553_706_496  # the parameters of Llama-3.1-70B
    for row in rows:
        small = row.name.endswith("norm")
        assert row.device == (row.total if small else row.total // 32)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"fsdp": 3, "tensor": 1}, r"config\.mesh\.fsdp is 3, but the model's width \(8192\)"),
        ({"fsdp": 1, "tensor": 16}, r"config\.mesh\.tensor is 16, but the model's key/value heads \(8\)"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model(sizes, named):
    with pytest.raises(UserError, match=named):
        sharding.table(SEVENTY_B, "bfloat16", {"data": 1} | sizes)


def test_on_two_processes(tmp_path):
    """Each of two real processes, four devices each, reads half of the weights; what they save is what was there."""
    config = dataclasses.replace(SEVENTY_B, V=512, D=64, L=2, H=4, K=2, h=16, F=128, rope_scaling=None)
    lm = LanguageModel(config, decoder.init(config, jax.random.key(0)), tokenizer.build(World(0)), (5,))
    models.save(lm, tmp_path / "base")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    file = Path(__file__).with_name("two_processes.py")
    running = [
        subprocess.Popen([sys.executable, str(file), str(i), port, str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for i in range(2)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(errors)
    total = sum(x.nbytes for x in jax.tree.leaves(lm.params))
    for i in range(2):
        told = json.loads((tmp_path / f"{i}.json").read_text())
        assert 0.5 * total < told["read"] < 0.51 * total
        tokens = np.array(told["tokens"])
        np.testing.assert_allclose(told["logits"], models.logits(lm, tokens)[0, -1, :8], atol=1e-5)
    again = models.load(str(tmp_path / "saved"), dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, again.params, lm.params)


def test_on_eight_devices():
    # Not optimized: compiling takes most of the time.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    file = Path(__file__).with_name("eight_devices.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(file), "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=-q"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "19 passed" in done.stdout
