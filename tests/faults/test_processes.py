"""Two real processes with CPU collectives: they agree with one, and when one goes the other does not hang."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")


def start(count, directory, *more, **environment):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    made = []
    for i in range(count):
        mine = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
        if count > 1:
            mine |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(i)
            }  # fmt: skip
        made.append(
            subprocess.Popen(
                [sys.executable, str(WORKER), str(directory), *map(str, more)], env=os.environ | mine,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    return made


def ended(processes, timeout=240):
    told = [p.communicate(timeout=timeout) for p in processes]
    return [p.returncode for p in processes], ["".join(t) for t in told]


def result(directory):
    (file,) = directory.glob("store/train/*/weights.json")
    (lines,) = directory.glob("store/train/*/metrics.jsonl")
    return json.loads(file.read_text()), [json.loads(x)["loss"] for x in lines.read_text().splitlines()]


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6, rtol=0), a, b)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    codes, told = ended(start(1, directory))
    assert codes == [0], told
    return result(directory)


def saved(directory):
    return sorted(int(p.name) for p in directory.glob("store/train/*/checkpoints/*") if p.name.isdigit())


def test_a_dead_process_ends_the_other_and_one_alone_goes_on(alone, tmp_path):
    first, last = processes = start(2, tmp_path, 6, "SIGKILL")
    last.wait(timeout=240)
    clock = time.monotonic()
    codes, told = ended(processes)
    assert time.monotonic() - clock < 30  # HEARTBEAT_S is 6 here
    assert codes[1] == -9
    assert codes[0] not in (0, None)
    assert "task:1" in told[0].replace("task 1", "task:1") or "peer" in told[0], told[0][-2000:]
    assert saved(tmp_path)[-1] == 4
    codes, told = ended(start(1, tmp_path))  # with another number of processes
    assert codes == [0], told
    close(result(tmp_path), alone)
    assert len(result(tmp_path)[1]) == 8


def test_sigterm_to_one_stops_both_after_the_same_step(alone, tmp_path):
    codes, told = ended(start(2, tmp_path, 3, "SIGTERM"))
    assert codes == [0, 0], told
    assert all("stopped" in x for x in told)
    assert 3 <= saved(tmp_path)[-1] <= 6
    assert not list(tmp_path.glob("store/train/*/manifest.json"))
    codes, told = ended(start(2, tmp_path))
    assert codes == [0, 0], told
    close(result(tmp_path), alone)


def test_a_process_that_stands_still_is_named(tmp_path):
    """Stopped, it sends no heartbeats either."""
    first, last = processes = start(2, tmp_path, 6, "SIGSTOP")
    code = first.wait(timeout=240)
    assert code != 0
    last.kill()
    _, told = ended(processes)
    assert "task:1" in told[0].replace("task 1", "task:1") or "unhealthy" in told[0], told[0][-2000:]
