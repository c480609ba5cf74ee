"""Training state on disk, by orbax: atomic, the last few kept, refused where it belongs to another run."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from emjax.errors import UserError
from emjax.train.state import State


class Checkpoints:
    """Saves and restores {"trainable", "opt", "step"}; `identity` says which run they belong to."""

    def __init__(self, directory: Path, identity: str, *, keep: int = 2):
        self._identity = identity
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def restore(self, state: State) -> State:
        """The latest saved state in the shapes and shardings of `state`, or `state` itself where nothing was saved."""
        latest = self._manager.latest_step()
        if latest is None:
            return state
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        try:
            # First: the state of another run need not fit.
            found: Any = self._manager.restore(latest, args=ocp.args.Composite(run=ocp.args.JsonRestore()))
            mine = found["run"]["identity"] == self._identity
            if mine:
                found = self._manager.restore(latest, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
        except Exception as error:
            raise UserError(
                f"The checkpoint of step {latest} in {self._manager.directory} cannot be restored ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}). Delete that step's folder to go on from the one before."
            ) from error
        if not mine:
            raise UserError(
                f"The checkpoints in {self._manager.directory} belong to another run (other configuration, data or base "
                "model). Use another --workdir, or delete them."
            )
        return found["state"]

    def save(self, state: State, step: int) -> None:
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave({"identity": self._identity}))
        self._manager.save(step, args=args)

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()
