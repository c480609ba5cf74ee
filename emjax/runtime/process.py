"""This process among those of a run: how they find each other, agree, and are asked to stop.

Several processes (hosts of a TPU slice, tasks of a SLURM job) run the same program on the same
devices. All of them compute; files are written by process 0 alone, in a directory that all of them
see.
"""

import itertools
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from emjax.errors import UserError

HEARTBEAT_S = 40  # a process that was silent for so long is taken for dead, and ends the others
JOIN_S = 300  # how long the processes wait for each other at the start
# of a wait at a barrier: one process may be asking a judge; heartbeats find the dead
FOREVER_MS = 7 * 24 * 3600 * 1000

index, count = 0, 1
_turns = itertools.count()


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Connects the processes of a run, as the launcher's environment describes them; before
    anything else uses jax.

    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it
    outright. In a SLURM step of several tasks, and with EMJAX_DISTRIBUTED=auto on TPU slices, jax
    finds out by itself. Otherwise this process is alone. Process 0 says how many there are, and how
    many devices.
    """
    global index, count
    how: dict[str, Any] = {}
    if "JAX_COORDINATOR_ADDRESS" in environment:
        for field, name in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID")):
            value = environment.get(name, "")
            if not value.isdigit():
                raise UserError(
                    f"JAX_COORDINATOR_ADDRESS is set, and {name} is {value!r}; it must be a whole number. Set all of "
                    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or none."
                )
            how[field] = int(value)
        if how["process_id"] >= how["num_processes"]:
            raise UserError(
                f"JAX_PROCESS_ID is {how['process_id']}, but JAX_NUM_PROCESSES is {how['num_processes']}; processes are "
                "numbered from 0."
            )
        how |= {"coordinator_address": environment["JAX_COORDINATOR_ADDRESS"], "cluster_detection_method": "deactivate"}
    elif environment.get("EMJAX_DISTRIBUTED", "") not in ("", "auto"):
        raise UserError(f"EMJAX_DISTRIBUTED is {environment['EMJAX_DISTRIBUTED']!r}; it can be 'auto' or unset.")
    elif not (
        environment.get("EMJAX_DISTRIBUTED")
        or ("SLURM_STEP_ID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1)
    ):
        return
    import jax

    # it would take SIGTERM, which `listen` answers
    jax.config.update("jax_enable_preemption_service", False)
    # On CPUs two programs in flight may run their collectives in another order here than there.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_S, initialization_timeout=JOIN_S, **how)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The processes of this run did not find each other ({str(error).splitlines()[0]}). Check that all of them were "
            "started, and that process 0 can be reached at the coordinator's address."
        ) from error
    tasks, nodes = environment.get("SLURM_STEP_NUM_TASKS"), environment.get("SLURM_STEP_NUM_NODES")
    if tasks is not None and tasks == nodes and "JAX_LOCAL_DEVICE_IDS" not in environment:
        # jax gives a task of SLURM one device, that of its number on the node. A task that has its
        # node alone drives all.
        for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(name, environment.get(name.upper(), "all"))
    index, count = jax.process_index(), jax.process_count()
    if first():
        print(f"Processes: {count}, devices: {jax.device_count()} ({jax.devices()[0].device_kind})", flush=True)


def turn() -> int:
    """The number of the next thing that all processes do together; each counts alike."""
    return next(_turns)


def first() -> bool:
    """Whether this is the process that writes."""
    return index == 0


def client() -> Any:
    from jax._src import distributed  # jax offers no public way to its key-value store

    return distributed.global_state.client


def together(what: str) -> None:
    """Waits until all processes have come here."""
    if count > 1:
        client().wait_at_barrier(f"emjax/{what}/{turn()}", FOREVER_MS)


def on_first(work: Callable[[], Any]) -> Any:
    """work() on process 0 alone; its result (a JSON value), or its UserError, on all."""
    if count == 1:
        return work()
    key = f"emjax/on_first/{turn()}"
    if first():
        told: dict[str, Any] = {}
        try:
            told["result"] = work()
        except UserError as error:
            told["error"] = str(error)
        client().key_value_set(key, json.dumps(told))
    else:
        told = json.loads(client().blocking_key_value_get(key, FOREVER_MS))
    if "error" in told:
        raise UserError(told["error"])
    return told["result"]


def failed(error: Exception) -> int:
    """The exit code where one of several processes failed; tells how. Alone, the error is raised
    again.

    Where what they do together broke, another one is gone: the coordination service notices within
    HEARTBEAT_S, says which one, and ends this process, which waits for that. Such errors are of
    several types; all begin with the runtime's status.
    """
    if count == 1:
        raise error
    traceback.print_exception(error)
    sys.stderr.flush()
    if re.match(r"[A-Z_]+: ", str(error)):
        time.sleep(HEARTBEAT_S + 10)
    return 1
