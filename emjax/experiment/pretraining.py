"""Pretraining of the micro-world's base."""

import dataclasses
from pathlib import Path
from typing import Any

from emjax import models
from emjax.config import PretrainConfig, as_dict
from emjax.data import chat
from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.experiment import results
from emjax.experiment.common import claim, mesh_of, say
from emjax.experiment.fit import Recipe, fit
from emjax.experiment.measure import Measuring, measured
from emjax.presets import Chosen
from emjax.runtime.files import digest, dumps, write_atomically
from emjax.runtime.store import Store
from emjax.sampling import Engine
from emjax.train import checkpoint
from emjax.worlds.micro import base


def pretraining(chosen: Chosen, workdir: Path, store: Store) -> Path:
    """Trains the base from random weights, measures its gates, and returns the Hugging Face folder
    that it wrote."""
    config, world = chosen.config, chosen.world
    assert isinstance(config, PretrainConfig)
    if world is None or world.name != "micro":
        raise UserError(f"config.world is {config.world!r}; only the world 'micro' has a base to pretrain.")
    mesh = mesh_of(config.mesh)
    claim(config, workdir)
    # What measures and judges the base comes after its training, so it is no part of its hash.
    settings = {name: value for name, value in as_dict(config).items() if name not in ("eval", "engine", "watch", "gates")}
    recipe = Recipe(config.train, mesh, config.seed, watch=config.watch, group=True)

    def make(directory: Path) -> None:
        lm, documents = base.start(config)
        rendered = chat.weighted(lm.tokenizer, documents, lm.eos_ids, other=config.other_weight)
        examples = [Example(str(i), t.ids, t.weights) for i, t in enumerate(rendered)]
        say(f"{len(examples)} documents, {sum(len(e.ids) for e in examples)} tokens")
        tuned = fit(lm, examples, recipe, directory=directory, identity=digest(settings), title="pretrain")
        base.save(tuned, config, directory / "model")

    stage = store.run("pretrain", settings, [], make)
    checkpoint.discard(stage.directory, config.watch.checkpoints, digest(settings))
    folder = stage.directory / "model"

    def opened() -> tuple[Engine, Any]:
        lm = models.load(folder, mesh=mesh, dtype="float32")
        return Engine(lm, mesh=mesh, **dataclasses.asdict(config.engine)), lm.tokenizer

    measuring = Measuring(world.at(folder).benchmarks(), config.eval, store.root / "judge_cache", lambda path: opened())
    target = {"weights": [stage.hash], "engine": as_dict(config.engine)}
    checked = measured(store, measuring, "vanilla", arm="vanilla", seed=config.seed, target=target, model=opened)
    items = measuring.read(checked.directory)
    about = {
        "model": "pretrain",
        "method": None,
        "arm": "vanilla",
        "ratio": None,
        "label": "vanilla",
        "seed": config.seed,
        "pretrain_seed": config.seed,
        "round": 0,
        "step": None,
    }
    made = results.identity(chosen) | {"rows": measuring.score(items, {}, about)}
    write_atomically(workdir / "results.json", dumps(made, indent=1))
    gates = base.gates(items)
    write_atomically(workdir / "gates.json", dumps(gates, indent=1))
    for name, entry in gates.items():
        state = "ok" if entry["ok"] else "MISSED"
        say(f"{name:28} {entry['value']:6.1f}  (gate: {entry['low']:g} to {entry['high']:g})  {state}")
    say(f"checkpoint  {folder}")
    if config.gates == "require" and not all(entry["ok"] for entry in gates.values()):
        raise UserError(
            "This base misses a gate, so an effect measured on it would not mean what the report says. Train longer "
            "(config.documents) or take another seed (config.seed)."
        )
    return folder
