"""The experiment: stages in order, each a function of (its part of the config, hashes of its
inputs).

A finished stage is skipped, a half-done one continues where it stopped. All arms run in one
process, so that they share the compiled programs, the collected conversations and the vanilla
evaluation.

    common        what every kind shares: the claim on a work directory, stages, mesh, versions
    measure       a model and benchmarks -> judged rows
    results       judged rows -> results.json and the report
    fit           a model and examples -> a tuned model
    arms          arms that are trained on examples, measured alike and reported together
    finetune      ... whose examples are rows of data sets
    interaction   ... whose examples are conversations with simulated users
    pretraining   a world's base
    evaluation    models that exist already
    grid          many of these as one
    pooling       cells that differ in seeds or bases, as one
    plan          what all of this will cost
    needs         what must be there before a run
"""

import dataclasses
import time
from pathlib import Path

from emjax.config import EvaluationConfig, FinetuneConfig, GridConfig, InteractionConfig
from emjax.experiment.common import LOCK, SPENT, say
from emjax.experiment.evaluation import evaluation
from emjax.experiment.finetune import Finetune
from emjax.experiment.grid import grid
from emjax.experiment.interaction import Interaction
from emjax.experiment.pretraining import pretraining
from emjax.presets import Chosen
from emjax.runtime.ledger import Ledger
from emjax.runtime.locks import unlock
from emjax.runtime.store import Store

__all__ = ["ledger_of", "run"]


def run(chosen: Chosen, workdir: Path, store: Store) -> None:
    """Runs what `chosen` describes. Raises UserError for anything the user can mend."""
    started = time.perf_counter()
    ledger = ledger_of(chosen, workdir)
    try:
        _one(dataclasses.replace(chosen, ledger=ledger), workdir, store)
    finally:
        unlock(workdir / LOCK)
        if ledger:
            say(f"Spent so far, restarts included: {ledger.spent:.2f} of {ledger.usd:g} USD.")
    say(f"Done in {time.perf_counter() - started:.0f} s.")


def ledger_of(chosen: Chosen, workdir: Path) -> Ledger | None:
    """What the run in this work directory has spent, if config.usd caps it."""
    usd = getattr(chosen.config, "usd", 0.0)
    return Ledger(workdir / SPENT, usd) if usd else None


def _one(chosen: Chosen, workdir: Path, store: Store) -> Path | None:
    """One experiment; the folder of the base that it made, if it makes one."""
    match chosen.config:
        case InteractionConfig():
            Interaction(chosen, workdir, store).run()
        case FinetuneConfig():
            Finetune(chosen, workdir, store).run()
        case EvaluationConfig():
            evaluation(chosen, workdir, store)
        case GridConfig():
            grid(chosen, workdir, store, _one)
        case _:
            return pretraining(chosen, workdir, store)
    return None
