"""The experiment: stages in order, each a function of (its part of the config, hashes of its inputs).

A finished stage is skipped, a half-done one goes on where it stopped. All arms run in one process, so that they share the
compiled programs, the collected conversations and the vanilla evaluation.

    common        what every kind shares: the claim on a work directory, mesh, versions
    fit           a model and examples -> a tuned model
    arms          arms that are trained on examples, measured alike and reported together
    finetune      ... whose examples are rows of data sets
    interaction   ... whose examples are conversations with simulated users
    pretraining   the micro-world's base
    evaluation    models that exist already
    grid          many of these as one
"""

import time
from pathlib import Path
from typing import Any

from emjax.errors import UserError
from emjax.experiment.common import LOCK, lora_of, mesh_of, say
from emjax.experiment.evaluation import evaluation
from emjax.experiment.finetune import Finetune
from emjax.experiment.fit import fit, step_settings
from emjax.experiment.grid import Kind, grid
from emjax.experiment.interaction import Interaction
from emjax.experiment.pretraining import pretraining
from emjax.runtime.locks import unlock
from emjax.runtime.store import Store

__all__ = ["fit", "lora_of", "mesh_of", "run", "step_settings"]

KINDS: dict[str, Kind] = {
    "interaction": lambda *how: Interaction(*how).run(),
    "finetune": lambda *how: Finetune(*how).run(),
    "pretrain": pretraining,
    "evaluation": evaluation,
    "grid": lambda config, workdir, store: grid(config, workdir, store, KINDS),
}


def run(config: Any, workdir: Path, store: Store) -> None:
    """Runs what `config` describes. Raises UserError for anything the user can mend."""
    started = time.perf_counter()
    if config.experiment not in KINDS:
        raise UserError(f"config.experiment is {config.experiment!r}; choose {', '.join(KINDS)}.")
    try:
        KINDS[config.experiment](config, workdir, store)
    finally:
        unlock(workdir / LOCK)
    say(f"Done in {time.perf_counter() - started:.0f} s.")
