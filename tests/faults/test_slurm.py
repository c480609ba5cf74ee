"""Two real processes that find each other by SLURM's variables, as srun sets them: which devices each may use."""

import os
import socket
import subprocess
import sys

import pytest

from tests.faults.conftest import ROOT, ended

ASK = """
from emjax.runtime import process
process.join()
import jax
print("visible:", jax.config.values["jax_cuda_visible_devices"], jax.config.values["jax_rocm_visible_devices"])
"""


@pytest.mark.parametrize(("nodes", "visible"), [(2, ("all all", "all all")), (1, ("0 0", "1 1"))])
def test_a_task_that_has_its_node_alone_has_all_its_gpus(nodes, visible):
    """Of several tasks on a node each has the one of its number."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    tasks = []
    for task in range(2):
        slurm = {
            "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2",
            "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_PROCID": str(task),
            "SLURM_LOCALID": str(task if nodes == 1 else 0), "JAX_COORDINATOR_PORT": str(port), "JAX_PLATFORMS": "cpu",
        }  # fmt: skip
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        tasks.append(subprocess.Popen([sys.executable, "-c", ASK], cwd=ROOT, env=os.environ | slurm, **quiet))
    codes, told = ended(tasks, timeout=120)
    assert codes == [0, 0], told
    assert [text.partition("visible: ")[2].splitlines()[0] for text in told] == list(visible)
    assert [text.count("Processes: 2, devices: ") for text in told] == [1, 0]
