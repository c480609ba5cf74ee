"""Pretraining of the micro-world's base."""

import json
from pathlib import Path
from typing import Any

from emjax import models
from emjax.data import chat
from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.eval import suite
from emjax.experiment.common import claim, lead, mesh_of, say, shown, versions
from emjax.experiment.fit import fit
from emjax.runtime.files import digest, read_lines, write_atomically
from emjax.runtime.store import Store
from emjax.sampling import Engine
from emjax.train import checkpoint
from emjax.worlds.micro import base as micro


def pretraining(config: Any, workdir: Path, store: Store) -> Path:
    """Trains the embedded base from scratch, measures its gates, and returns the ordinary Hugging Face directory it wrote."""
    mesh = mesh_of(config)
    claim(config, workdir)
    settings = shown(config)
    measured = {"eval": settings.pop("eval"), "sampling": settings.pop("sampling")}  # after the training, so not in its hash

    def make(directory: Path) -> None:
        lm, documents = micro.start(config)
        rendered = chat.weighted(lm.tokenizer, documents, lm.eos_ids, other=config.train.other_weight)
        examples = [Example(str(i), t.ids, t.weights) for i, t in enumerate(rendered)]
        say(f"{len(examples)} documents, {sum(len(e.ids) for e in examples)} tokens")
        tuned = fit(
            lm, examples, config.train, method="sft", lora_config=None, attention="xla", mesh=mesh, seed=config.seed,
            directory=directory, identity=digest(settings), title="pretrain", watch=config.watch, group=True,
        )  # fmt: skip
        micro.save(tuned, config, directory / "model")

    stage = store.run("pretrain", settings, [], make)
    checkpoint.discard(stage.directory, config.watch.checkpoints, digest(settings))
    lm = models.load(stage.directory / "model", mesh=mesh, dtype="float32")
    benchmarks = micro.Benchmarks(micro.world_of(stage.directory / "model"), config.eval.sizes)

    def gate(directory: Path) -> None:
        engine = Engine(lm, mesh=mesh, **config.sampling)
        asker = suite.EngineAsker(
            engine, lm.tokenizer, suite.Settings(config.seed, config.eval.temperature, config.eval.max_new)
        )
        lead(engine, lambda: benchmarks.run(asker, directory, "vanilla"))

    checked = store.run("gates", measured, [stage], gate)
    items = {name: read_lines(checked.directory / f"{name}.jsonl") for name in benchmarks.names}
    about = {
        "model": "pretrain", "method": None, "arm": "vanilla", "ratio": None, "label": "vanilla", "seed": config.seed,
        "pretrain_seed": config.seed, "round": 0, "step": None, "judge": benchmarks.judge.name,
    }  # fmt: skip
    rows = [row for found in items.values() for row in suite.score(found, {}, about, benchmarks.mask_rules)]
    results = {"experiment": "pretrain", "config_hash": digest(settings), "versions": versions(), "rows": rows}
    write_atomically(workdir / "results.json", json.dumps(results, indent=1))
    gates = micro.gates(items)
    write_atomically(workdir / "gates.json", json.dumps(gates, indent=1))
    for name, entry in gates.items():
        state = "ok" if entry["ok"] else "MISSED"
        say(f"{name:28} {entry['value']:6.1f}  (gate: {entry['low']:g} to {entry['high']:g})  {state}")
    say(f"checkpoint  {stage.directory / 'model'}")
    if not all(entry["ok"] for entry in gates.values()):
        raise UserError(
            "This base misses a gate, so an effect measured on it would not mean what the report says. Train longer "
            "(config.documents) or take another seed (config.seed)."
        )
    return stage.directory / "model"
