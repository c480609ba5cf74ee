"""The one table of devices."""

import pytest

from emjax.runtime import hardware


@pytest.mark.parametrize(
    ("kind", "name", "tflops", "memory_gb"),
    [
        ("NVIDIA H200", "h200", 989.0, 139),
        ("NVIDIA H100 80GB HBM3", "h100", 989.0, 79),
        ("NVIDIA A100-SXM4-80GB", "a100", 312.0, 80),
        ("TPU v4", "v4", 275.0, 32),
        ("TPU v5 lite", "v5e", 197.0, 16),
        ("TPU v5", "v5p", 459.0, 95),
        ("TPU v6 lite", "v6e", 918.0, 32),
    ],
)
def test_jax_s_names_find_the_device(kind, name, tflops, memory_gb):
    device = hardware.by_kind(kind)
    assert device is hardware.DEVICES[name]
    assert (device.tflops, device.memory_gb) == (tflops, memory_gb)


@pytest.mark.parametrize("kind", ["cpu", "", "TPU v9", "nvidia h200"])
def test_a_device_that_is_not_in_the_table(kind):
    assert hardware.by_kind(kind) is None


def test_no_kind_names_two_devices():
    kinds = [kind for device in hardware.DEVICES.values() for kind in device.kinds]
    assert len(set(kinds)) == len(kinds)
