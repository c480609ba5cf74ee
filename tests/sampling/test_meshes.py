"""The engine on eight virtual devices, and on two processes: each in processes of their own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def environment(**more):
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTEST_XDIST_WORKER", "XLA_FLAGS")}
    return inherited | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parent.parent)} | more


@pytest.mark.slow
def test_on_eight_devices():
    # Not optimized: compiling takes most of the time.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE / "eight_devices.py"), "-p", "no:cacheprovider", "-p", "no:xdist",
         "-o", "addopts=-q"],
        env=environment(XLA_FLAGS=flags), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 passed" in done.stdout


@pytest.mark.slow
def test_on_two_processes():
    flags = "--xla_backend_optimization_level=0"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    running = [
        subprocess.Popen(
            [sys.executable, str(HERE / "two_processes.py"), port, str(rank)],
            env=environment(XLA_FLAGS=flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(text.rstrip().endswith("done") for text in said), "\n\n".join(said)
