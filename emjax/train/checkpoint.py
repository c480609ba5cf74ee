"""Training checkpoints on disk, saved with orbax: writes are atomic and asynchronous, the last few
checkpoints are kept, and a checkpoint that is damaged or belongs to another run is refused.

Beside {"trainable", "opt", "step"} a checkpoint records its origin ("run": the run's identity, the
checksum of the base, the part of the config that determines it, versions) and its content ("state":
a checksum of every value). Each process saves the arrays it holds. Arrays are restored to the
placement of the new state, on any number of devices and processes.
"""

import contextlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from emjax.errors import UserError
from emjax.runtime import process
from emjax.runtime.files import dumps, flat, loads
from emjax.runtime.store import SCRATCH
from emjax.train import state as train_state
from emjax.train.state import State


def place(directory: Path, root: str, identity: str) -> epath.Path:
    """The directory of a run's checkpoints: inside the run's own directory, or below `root`
    (config.watch.checkpoints, which may be gs://)."""
    if root.startswith("gs://") and importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"config.watch.checkpoints is {root!r}, which needs the package gcsfs: pip install 'emjax[gcs]'.")
    return epath.Path(root) / identity[:16] if root else epath.Path(directory).absolute() / SCRATCH


def discard(directory: Path, root: str, identity: str) -> None:
    """Removes the checkpoints of a finished stage. Call it only after the manifest is written: a
    kill during removal would otherwise leave damaged checkpoints to a stage that still needs them.
    """
    there = place(directory, root, identity)
    if process.first():
        # There are none, or another run that waited for this stage is removing them.
        with contextlib.suppress(FileNotFoundError):
            there.rmtree()


class Checkpoints:
    """Saves and restores a State.

    about: facts about the run to store beside its identity: "base", a checksum of the weights it
    started from; "config". restore: "latest" refuses a damaged checkpoint; "sound" falls back to
    the previous one, deletes the damaged one and prints that it did.
    """

    def __init__(
        self,
        directory: Path | epath.Path,
        identity: str,
        *,
        about: Mapping[str, Any] | None = None,
        restore: str = "latest",
        keep: int = 2,
    ):
        self._run = {"identity": identity, **loads(dumps(about or {}))}
        self._restore = restore
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory, options=options)

    @property
    def directory(self) -> epath.Path:
        return self._manager.directory

    def restore(self, state: State) -> State:
        """The latest saved state, in the shapes and shardings of `state`; `state` itself if nothing
        was saved.

        Raises UserError for a checkpoint of another run or base, for a damaged one, and, with
        "sound", if all are damaged; nothing is deleted then. An error that does not prove damage
        (permissions, network) is raised unchanged.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found = self._read(step, state)
            if not isinstance(found, str):
                state = found
                break
            damaged[step] = found
            if self._restore != "sound":
                raise UserError(
                    f"The checkpoint of step {step} in {self.directory} is damaged: it cannot be restored ({found}). "
                    "Add --config.watch.restore=sound to delete it and resume from the previous one."
                )
        else:
            if damaged:
                reasons = "; ".join(f"step {step}: {what}" for step, what in damaged.items())
                raise UserError(
                    f"Every checkpoint in {self.directory} is damaged ({reasons}). Delete this folder to train from the start."
                )
        for step, what in damaged.items():
            if process.first():
                print(f"Deleted the checkpoint of step {step} in {self.directory}: it was damaged ({what}).", flush=True)
            self._manager.delete(step)
        return state

    def _read(self, step: int, state: State) -> State | str:
        """The state saved at `step`, or a description of the damage. All processes return the same
        outcome, though each reads only its own part.

        This calls orbax's handlers directly: the manager waits for all processes, and a process
        that found damage would never join the others.
        """
        there = self.directory / str(step)
        # Check the run first: the state of another run may have other shapes.
        run = process.on_first(lambda: _tried(lambda: ocp.JsonCheckpointHandler().restore(there / "run")))
        if isinstance(run, str):
            return run
        self._check(run)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        args = ocp.args.StandardRestore(like)
        found: State | str = _tried(lambda: ocp.StandardCheckpointHandler().restore(there / "state", args=args))
        bad = np.flatnonzero(multihost_utils.process_allgather(np.int32(isinstance(found, str))))
        if len(bad):
            return found if isinstance(found, str) else f"process {bad[0]} cannot read its part"
        if train_state.checksum(found) != run.get("state"):
            return "its values differ from those that were saved"
        return found

    def _check(self, saved: dict[str, Any]) -> None:
        if saved.get("identity") == self._run["identity"] and saved.get("base") == self._run.get("base"):
            return
        if saved.get("base") != self._run.get("base"):
            what = "were made from another base model"
        else:
            was, now = (flat(run.get("config", {})) for run in (saved, self._run))
            names = [f"config.{n} was {was.get(n)!r} and is {now[n]!r}" for n in now if was.get(n) != now[n]]
            what = f"belong to another run ({'; '.join(names[:3]) or 'other configuration, data or base model'})"
        raise UserError(f"The checkpoints in {self.directory} {what}. Use another --workdir, or delete them.")

    def save(self, state: State, step: int) -> None:
        """Starts an asynchronous save and returns once the values are copied. Raises the error of
        the previous write, if it failed."""
        run = self._run | {"state": train_state.checksum(state), "step": step}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Waits until everything is written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def close(self) -> None:
        """Waits for writes and releases resources. It prints an error of the last write instead of
        raising it: `wait` raises such errors, and here one would hide the error that ended the run.
        """
        try:
            self._manager.close()
        except Exception as error:
            print(self._unwritten(error), flush=True)

    def _unwritten(self, error: Exception) -> UserError:
        return UserError(
            f"A checkpoint could not be written to {self.directory} ({_reason(error)}). Free some space or fix the "
            "permissions, then start the same command again: it resumes from the last intact checkpoint."
        )


def _tried(read: Callable[[], Any]) -> Any:
    """read(), or a description of the damage it found: something is missing, truncated or does not
    match its checksum. Raises other errors."""
    try:
        return read()
    except (FileNotFoundError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        return _reason(error)
    except ValueError as error:
        # Errors of tensorstore start with their status.
        if not str(error).startswith(("DATA_LOSS:", "NOT_FOUND:", "OUT_OF_RANGE:")):
            raise
        return _reason(error)


def _reason(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}"
