"""Starts worker.py in one or two processes, and reads what it left."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")


def launch(count, command, output=subprocess.PIPE, **environment):
    """One command in `count` processes that find each other."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    made = []
    for i in range(count):
        mine = {"JAX_PLATFORMS": "cpu", **environment}
        if count > 1:
            mine |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(i)
            }  # fmt: skip
        made.append(
            subprocess.Popen(
                [sys.executable, *map(str, command)], cwd=ROOT, env=os.environ | mine,
                stdout=output, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    return made


def start(count, directory, *more, **environment):
    return launch(count, [WORKER, directory, *more], PYTHONPATH=str(ROOT), **environment)


def ended(processes, timeout=240):
    told = [p.communicate(timeout=timeout) for p in processes]
    return [p.returncode for p in processes], ["".join(t) for t in told]


def result(directory):
    (file,) = directory.glob("store/train/*/weights.json")
    (lines,) = directory.glob("store/train/*/metrics.jsonl")
    return json.loads(file.read_text()), [json.loads(x)["loss"] for x in lines.read_text().splitlines()]


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6, rtol=0), a, b)


def saved(directory):
    return sorted(int(p.name) for p in directory.glob("store/train/*/checkpoints/*") if p.name.isdigit())


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """What one process that nothing happens to leaves."""
    directory = tmp_path_factory.mktemp("alone")
    codes, told = ended(start(1, directory))
    assert codes == [0], told
    return result(directory)
