"""Training state on disk, by orbax: atomic, written beside the training, the last few kept, refused
where it is not sound or belongs to another run.

Beside {"trainable", "opt", "step"} a checkpoint says whose it is ("run": the run's identity, the
base's checksum, the part of the config that made it, versions) and what it holds ("state": a
checksum of every value). Arrays are saved by the processes that hold them and restored to wherever
the new state lives, on any number of devices and processes.
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
from emjax.runtime.store import SCRATCH
from emjax.train import state as train_state
from emjax.train.state import State


def place(directory: Path, root: str, identity: str) -> epath.Path:
    """Where the checkpoints of a run are: in its own directory, or below `root`
    (config.watch.checkpoints), which may be gs://."""
    if root.startswith("gs://") and importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"config.watch.checkpoints is {root!r}, which needs the package gcsfs: pip install 'emjax[gcs]'.")
    return epath.Path(root) / identity[:16] if root else epath.Path(directory).absolute() / SCRATCH


def discard(directory: Path, root: str, identity: str) -> None:
    """Removes the checkpoints of a stage that has finished: before its manifest is written, a kill
    in the middle of this would leave damaged ones to a stage that still needs them."""
    there = place(directory, root, identity)
    if process.first():
        # none, or another run that waited for this stage is at it
        with contextlib.suppress(FileNotFoundError):
            there.rmtree()


class Checkpoints:
    """Saves and restores a State.

    about: what of the run a reader would ask for, beside its identity: "base", a checksum of the
    weights it started from; "config". restore: "latest" refuses a damaged checkpoint; "sound" takes
    the one before, and then deletes it and says so.
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
        self._run = {"identity": identity, **json.loads(json.dumps(about or {}))}
        self._restore = restore
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory, options=options)

    @property
    def directory(self) -> epath.Path:
        return self._manager.directory

    def restore(self, state: State) -> State:
        """The latest saved state in the shapes and shardings of `state`, or `state` itself where
        nothing was saved.

        Raises UserError for a checkpoint of another run or base, for one that is damaged, and, with
        "sound", where all are: then nothing is deleted. An error that proves no damage (rights, a
        network) is raised as it is.
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
                    "Add --config.watch.restore=sound to delete it and go on from the one before."
                )
        else:
            if damaged:
                told = "; ".join(f"step {step}: {what}" for step, what in damaged.items())
                raise UserError(
                    f"Every checkpoint in {self.directory} is damaged ({told}). Delete this folder to train from the start."
                )
        for step, what in damaged.items():
            if process.first():
                print(f"The checkpoint of step {step} in {self.directory} is damaged ({what}): deleted.", flush=True)
            self._manager.delete(step)
        return state

    def _read(self, step: int, state: State) -> State | str:
        """The state of a step, or what is wrong with it; the same on all processes, though each
        reads its own part.

        By orbax's handlers, because the manager waits for all processes, and one that found damage
        would not come.
        """
        there = self.directory / str(step)
        # First: the state of another run need not fit.
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
            return "its values are not those that were saved"
        return found

    def _check(self, theirs: dict[str, Any]) -> None:
        if theirs.get("identity") == self._run["identity"] and theirs.get("base") == self._run.get("base"):
            return
        if theirs.get("base") != self._run.get("base"):
            what = "were made from another base model"
        else:
            was, now = (_flat(run.get("config", {})) for run in (theirs, self._run))
            names = [f"config.{n} was {was.get(n)!r} and is {now[n]!r}" for n in now if was.get(n) != now[n]]
            what = f"belong to another run ({'; '.join(names[:3]) or 'other configuration, data or base model'})"
        raise UserError(f"The checkpoints in {self.directory} {what}. Use another --workdir, or delete them.")

    def save(self, state: State, step: int) -> None:
        """Returns when the values are copied; they are written meanwhile. An error of the write
        before is raised here."""
        run = self._run | {"state": train_state.checksum(state), "step": step}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Until everything is written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def close(self) -> None:
        """Waits, and lets go. An error of the last write is `wait`'s to tell, not that of a run
        which fails anyhow."""
        try:
            self._manager.close()
        except Exception as error:
            print(self._unwritten(error), flush=True)

    def _unwritten(self, error: Exception) -> UserError:
        return UserError(
            f"A checkpoint could not be written to {self.directory} ({_reason(error)}). Make room or mend the rights, "
            "then start the same command again: it goes on from the last checkpoint that is whole."
        )


def _tried(read: Callable[[], Any]) -> Any:
    """read(), or in words the damage that it met: what is missing, cut, or does not fit its
    checksum. Raises other errors."""
    try:
        return read()
    except (FileNotFoundError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        return _reason(error)
    except ValueError as error:
        # tensorstore's, by the status that it begins with
        if not str(error).startswith(("DATA_LOSS:", "NOT_FOUND:", "OUT_OF_RANGE:")):
            raise
        return _reason(error)


def _reason(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
