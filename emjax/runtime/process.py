"""The processes of a run: how they connect, agree and exchange results.

Several processes (hosts of a TPU slice, tasks of a SLURM job) run the same program on the same
devices. All of them compute. Process 0 alone writes files, in a directory that all of them see.
"""

import functools
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

HEARTBEAT_S = 40  # a process silent for this long counts as dead, and the others end
JOIN_S = 300  # how long the processes wait for each other at the start
# Timeout of barriers: one process may be querying a judge for a long time. Heartbeats detect dead
# processes.
FOREVER_MS = 7 * 24 * 3600 * 1000

index, count = 0, 1
_turns = itertools.count()


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Connects the processes of a run as described by the launcher's environment. Call it before
    anything else uses jax.

    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID specify
    it explicitly. In a SLURM step of several tasks, and with EMJAX_DISTRIBUTED=auto on TPU slices,
    jax detects it. Otherwise this process is alone. Process 0 prints the number of processes and
    devices.
    """
    global index, count
    how: dict[str, Any] = {}
    if "JAX_COORDINATOR_ADDRESS" in environment:
        for field, name in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID")):
            value = environment.get(name, "")
            if not value.isdigit():
                raise UserError(
                    f"JAX_COORDINATOR_ADDRESS is set, but {name} is {value!r}; it must be a whole number. Set all of "
                    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or none of them."
                )
            how[field] = int(value)
        if how["process_id"] >= how["num_processes"]:
            raise UserError(
                f"JAX_PROCESS_ID is {how['process_id']}, but JAX_NUM_PROCESSES is {how['num_processes']}; processes are "
                "numbered from 0."
            )
        how |= {"coordinator_address": environment["JAX_COORDINATOR_ADDRESS"], "cluster_detection_method": "deactivate"}
    elif environment.get("EMJAX_DISTRIBUTED", "") not in ("", "auto"):
        raise UserError(f"EMJAX_DISTRIBUTED is {environment['EMJAX_DISTRIBUTED']!r}; it must be 'auto' or unset.")
    elif not (
        environment.get("EMJAX_DISTRIBUTED")
        or ("SLURM_STEP_ID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1)
    ):
        return
    import jax

    # jax's preemption service would take over SIGTERM, which stopping.listen handles.
    jax.config.update("jax_enable_preemption_service", False)
    # On CPUs, processes may run the collectives of two programs in flight in different orders.
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
        # jax assigns each SLURM task one device, by its number on the node. A task that is alone on
        # its node drives all devices.
        for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(name, environment.get(name.upper(), "all"))
    index, count = jax.process_index(), jax.process_count()
    if first():
        print(f"Processes: {count}, devices: {jax.device_count()} ({jax.devices()[0].device_kind})", flush=True)


def turn() -> int:
    """A sequence number for the next collective operation; it is the same on all processes."""
    return next(_turns)


def first() -> bool:
    """Whether this is process 0, which writes files."""
    return index == 0


@functools.cache
def note(text: str) -> None:
    """Prints a remark on an input, once in a run."""
    if first():
        print(f"note: {text}", file=sys.stderr, flush=True)


def client() -> Any:
    from jax._src import distributed  # jax has no public API for its key-value store

    return distributed.global_state.client


def together(what: str) -> None:
    """Waits until all processes have reached this call."""
    if count > 1:
        client().wait_at_barrier(f"emjax/{what}/{turn()}", FOREVER_MS)


def on_first(work: Callable[[], Any]) -> Any:
    """Runs work() on process 0 only. All processes return its result (a JSON value) or raise its
    UserError."""
    if count == 1:
        return work()
    key = f"emjax/on_first/{turn()}"
    if first():
        outcome: dict[str, Any] = {}
        try:
            outcome["result"] = work()
        except UserError as error:
            outcome["error"] = str(error)
        client().key_value_set(key, json.dumps(outcome))
    else:
        outcome = json.loads(client().blocking_key_value_get(key, FOREVER_MS))
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["result"]


def failed(error: Exception) -> int:
    """Prints the error and returns the exit code, if one of several processes failed. A single
    process raises the error again.

    A failed collective operation means that another process is gone. The coordination service
    notices within HEARTBEAT_S, reports which one, and ends this process; this function waits for
    that. Such errors have several types, but all begin with the runtime's status.
    """
    if count == 1:
        raise error
    traceback.print_exception(error)
    sys.stderr.flush()
    if re.match(r"[A-Z_]+: ", str(error)):
        time.sleep(HEARTBEAT_S + 10)
    return 1
