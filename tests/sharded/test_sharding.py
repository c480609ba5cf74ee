"""The sharding rules, and training on 2 x 2 x 2 virtual devices, in a process of its own: their number is fixed at start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.shapes import SHAPES
from emjax.errors import UserError
from emjax.models import decoder, sharding


@pytest.mark.parametrize("name", SHAPES)
def test_every_parameter_has_a_place(name):
    config, dtype = SHAPES[name]
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
    assert "15 passed" in done.stdout
