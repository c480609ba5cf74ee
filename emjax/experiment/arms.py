"""Arms that are trained on examples, measured alike and reported together."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from emjax import models
from emjax.config import FinetuneConfig, InteractionConfig, as_dict
from emjax.data import chat
from emjax.data.examples import read_examples, tokenized
from emjax.design import arms as design
from emjax.design.arms import Arm
from emjax.eval.items import Item
from emjax.experiment import plan, results
from emjax.experiment.common import claim, lead, mesh_of, named, pinned, say, settle, staged
from emjax.experiment.fit import Recipe, Visits, fit
from emjax.experiment.gate import freeze, thaw
from emjax.experiment.measure import Measuring, measured
from emjax.experiment.results import Files, Headline, Measured
from emjax.models import LanguageModel
from emjax.models.config import ModelConfig
from emjax.models.source import open_source
from emjax.presets import Chosen
from emjax.runtime import process
from emjax.runtime.files import digest, dumps, loads, seed_of, write_atomically
from emjax.runtime.hardware import memory_for
from emjax.runtime.store import Stage, Store
from emjax.sampling import Engine
from emjax.train import checkpoint
from emjax.train.metrics import read_lines as read_metrics

C = TypeVar("C", InteractionConfig, FinetuneConfig)
# (arm, round, step) -> judged rows; no step: the end of the training
Found = dict[tuple[Arm, int, int | None], Files]


class Arms(Generic[C]):
    """Trains every arm on its examples, measures all arms alike, and reports them together.

    A subclass says what the examples are: `examples(arm)` gives a stage with examples.jsonl and
    budget.json; `cause` is what a treated arm has its share of, in the report's words; `study` is
    what the paper's rows are found by (emjax.report.paper).
    """

    cause: str
    study: str

    def __init__(self, chosen: Chosen, config: C, workdir: Path, store: Store):
        self.chosen, self.workdir, self.store = chosen, workdir, store
        self.config: C = config
        self.world = chosen.world
        self.arms = design.arms(config)
        # (arm, round, step): its evaluation
        self.on_the_way: dict[tuple[Arm, int, int], Stage] = {}

    def examples(self, arm: Arm) -> Stage:
        raise NotImplementedError

    def run(self) -> None:
        config = self.config
        say(plan.describe(self.chosen))
        self.mesh = mesh_of(config.mesh)
        brought = self.world.models if self.world else {}
        source = open_source(str(brought.get(config.model.path) or pinned(config.model.path, self.workdir)))
        shape = ModelConfig.from_hf(source.config(), source.config_file)
        self.config = config = settle(config, self.workdir, [shape], dict(self.mesh.shape))
        self.chosen = dataclasses.replace(self.chosen, config=config)
        self.base_hash = source.digest()
        with memory_for(f"{config.model.path}: loading the model", "config.model.dtype or raise config.mesh.fsdp"):
            self.base = models.load(source, mesh=self.mesh, dtype=config.model.dtype)
        if config.model.path in brought:
            self.base = self.base.replace(source=config.model.path)
        chat.need_template(self.base.tokenizer)
        if self.world:
            self.world = self.world.at(source.path)
        self.measuring = self._measuring()
        claim(config, self.workdir, revisions={config.model.path: self.base.revision})
        trained = {arm: [] if arm.ratio is None else self.rounds(arm) for arm in self.arms}
        # What every round made is measured; the vanilla model has made none.
        evaluated = {
            arm: [self._evaluate(named(arm.label, number), [stage], stage) for number, (_, stage) in enumerate(rounds, 1)]
            or [self._evaluate(arm.label, [], None)]
            for arm, rounds in trained.items()
        }
        if process.first():
            self._report(trained, evaluated)

    def rounds(self, arm: Arm) -> list[tuple[Stage, Stage]]:
        """(examples, training) of each round of the arm; the model of the last one is the arm's."""
        chosen = self.examples(arm)
        return [(chosen, self.train(arm, chosen))]

    def stage(self, title: str, name: str, settings: dict[str, Any], inputs: list[Stage | str], make: Any) -> Stage:
        return staged(self.store, title, name, settings, inputs, make)

    def sampling(self) -> dict[str, Any]:
        """What decides how tokens are drawn beside the draw: the part of a stage's hash that names
        the engine."""
        model = self.config.model
        return {"engine": as_dict(self.config.engine), "dtype": model.dtype, "attention": model.attention}

    def engine(self, lm: LanguageModel) -> Engine:
        return Engine(lm, mesh=self.mesh, attention=self.config.model.attention, **dataclasses.asdict(self.config.engine))

    # --- measuring --------------------------------------------------------------------------------

    def _measuring(self) -> Measuring:
        own = dict(self.world.benchmarks()) if self.world else {}
        used = {name: own.get(name, one) for name, one in self.chosen.benchmarks.items()}

        def local(path: str) -> tuple[Engine, Any]:
            lm = models.load(path, mesh=self.mesh, dtype=self.config.model.dtype)
            return self.engine(lm), lm.tokenizer

        return Measuring(
            used, self.config.eval, self.store.root / "judge_cache", local, gate=self._gate(), ledger=self.chosen.ledger
        )

    def _gate(self) -> Sequence[Item] | None:
        """The items that the world's gate lets pass, asked of the untouched model and frozen before
        any training."""
        world = self.world
        if world is None or not world.gated:
            return None

        def make(directory: Path) -> None:
            engine = self.engine(self.base)
            lead(engine, lambda: freeze(world.gate, engine, self.base.tokenizer, self.config.seed, directory))

        settings = {"world": world.identity(), "seed": self.config.seed, **self.sampling()}
        return thaw(self.stage("gate", "gate", settings, [self.base_hash], make).directory)

    def _evaluate(self, name: str, origin: list[Stage | str], model: LanguageModel | Stage | Path | None) -> Stage:
        """Measures a model: one at hand, one that a stage made or a folder holds, or (None) the
        base. origin: what made it."""

        def opened() -> tuple[Engine, Any]:
            lm = model
            if not isinstance(lm, LanguageModel):
                lm = self._model_in(lm) if isinstance(lm, Path) else self.tuned(lm)
            return self.engine(lm), lm.tokenizer

        weights = [self.base_hash, *(one.hash if isinstance(one, Stage) else one for one in origin)]
        target = {"weights": weights, **self.sampling()}
        return measured(self.store, self.measuring, name, arm=name, seed=self.config.seed, target=target, model=opened)

    # --- training ---------------------------------------------------------------------------------

    def train(
        self,
        arm: Arm,
        selected: Stage,
        *,
        before: Sequence[Stage] = (),
        rate_factor: float = 1.0,
        reference: str = "previous",
    ) -> Stage:
        """A training on the selected examples that starts from the last of the trainings `before`,
        or else from the base.

        rate_factor multiplies config.train.learning_rate. reference: KTO's, "base" or "previous"
        (where this one starts). At config.eval.at_steps the model is kept, as steps/<step>, and
        measured before training continues.
        """
        c = self.config
        number, seed = len(before) + 1, seed_of(c.seed, "round", len(before)) if before else c.seed
        settings = self._decisive(seed, rate_factor, reference if before else "base")
        title = f"train {named(arm.label, number)}"
        identity = digest([self.base_hash, selected.hash, settings, *(stage.hash for stage in before[-1:])])
        paced = dataclasses.replace(c.train, learning_rate=c.train.learning_rate * rate_factor)
        recipe = Recipe(paced, self.mesh, seed, c.kto, c.watch, c.model.attention)
        card = (
            f"Trained by emjax from {c.model.path} ({self.base_hash[:12]}): {c.train.method.upper()}, "
            f"{arm.ratio:.0%} {self.cause}, arm {arm.label!r}, round {number}, seed {c.seed}, "
            f"examples {selected.hash[:12]}."
        )

        def make(directory: Path) -> None:
            lm = self.tuned(before[-1] if before else None)
            rows = read_examples(selected.directory / "examples.jsonl", labelled=c.train.method == "kto")
            examples, counts = tokenized(rows, lm.tokenizer, lm.eos_ids, max(c.train.buckets))
            write_atomically(directory / "data.json", dumps(counts, indent=1))
            if trimmed := counts.get("trimmed"):
                say(f"{title}: the chat template drops the outer blanks of {trimmed} answers; they are trained without them")

            def visit(step: int, lm: LanguageModel) -> None:
                self._save(lm, _step(directory, step), f"{card} Step {step}.")
                self._evaluate(named(arm.label, number, step), [identity, str(step)], lm)

            tuned = fit(
                lm,
                examples,
                recipe,
                directory=directory,
                identity=identity,
                title=title,
                against=self.base if reference == "base" and before else None,
                visits=Visits(c.eval.at_steps, visit),
            )
            self._save(tuned, directory / self._kept, card)

        stage = self.stage(title, "train", settings, [self.base_hash, selected, *before[-1:]], make)
        checkpoint.discard(stage.directory, c.watch.checkpoints, identity)
        for step in c.eval.at_steps:
            kept = _step(stage.directory, step)
            self.on_the_way[arm, number, step] = self._evaluate(named(arm.label, number, step), [identity, str(step)], kept)
        return stage

    def _decisive(self, seed: int, rate_factor: float, reference: str) -> dict[str, Any]:
        """What decides a training beside its model and examples."""
        c = self.config
        return {
            "train": as_dict(c.train),
            "kto": as_dict(c.kto) if c.train.method == "kto" else None,
            "model": {"dtype": c.model.dtype, "attention": c.model.attention},
            "seed": seed,
            "rate_factor": rate_factor,
            "reference": reference,
            "at_steps": c.eval.at_steps,
        }

    @property
    def _kept(self) -> str:
        return "model" if self.config.train.tuning == "full" else "adapter"

    def _save(self, lm: LanguageModel, directory: Path, card: str) -> None:
        (models.save if self._kept == "model" else models.save_adapter)(lm, directory, card=card)

    def tuned(self, stage: Stage | None) -> LanguageModel:
        """The model that a training stage made; the base for None."""
        return self.base if stage is None else self._model_in(stage.directory / self._kept)

    def _model_in(self, directory: Path) -> LanguageModel:
        if self._kept == "model":
            lm = models.load(directory, mesh=self.mesh, dtype=self.config.model.dtype)
            return lm.replace(source=self.base.source, revision=self.base.revision, generation=self.base.generation)
        return self.base.replace(adapter=models.load_adapter(directory, self.base.config))

    # --- results ----------------------------------------------------------------------------------

    def _report(self, trained: dict[Arm, list[tuple[Stage, Stage]]], evaluated: dict[Arm, list[Stage]]) -> None:
        head = design.headline(self.config)
        found: Found = {
            (arm, number, None): self.measuring.read(stage.directory)
            for arm, stages in evaluated.items()
            for number, stage in enumerate(stages, 1)
        }
        found |= {key: self.measuring.read(stage.directory) for key, stage in self.on_the_way.items()}
        last = {arm: found[arm, len(stages), None] for arm, stages in evaluated.items()}
        made = results.assemble(
            self.chosen,
            self.measuring,
            [self._measured(key, found) for key in found],
            list(last.values()),
            Headline(head.name, head.ratio, head.level or None, self.cause),
            self.study,
        )
        selections, training = self._curves(trained)
        page = results.publish(
            self.workdir,
            made,
            self._stages(trained, evaluated),
            seed=self.config.seed,
            base=self.base_hash,
            examples=results.changed(last, head, made["headline"]),
            selections=selections,
            training=training,
        )
        print(results.summary([row for row in made["rows"] if row["step"] is None], self.arms, made["headline"]))
        print(f"results  {self.workdir / 'results.json'}\nreport   {page}", flush=True)

    def _measured(self, key: tuple[Arm, int, int | None], found: Found) -> Measured:
        """A model with what identifies it, and the arms that it is compared with: the control at
        the same round and step."""
        arm, number, step = key
        c = self.config
        about = {
            "model": c.model.path,
            "method": None if arm.ratio is None else c.train.method,
            "arm": arm.name,
            "ratio": arm.ratio,
            "level": arm.level or None,
            "label": named(arm.label, 1, step),
            "seed": c.seed,
            "pretrain_seed": self.world.seed if self.world else None,
            "round": 0 if arm.ratio is None else number,
            "step": step,
        }
        others = [o for o in self.arms if o.name in ("control", "vanilla") and o != arm and arm.name != "vanilla"]
        against = {o.name: found[(o, 1, None) if o.ratio is None else (o, number, step)] for o in others}
        return Measured(about, found[key], against)

    def _curves(self, trained: dict[Arm, list[tuple[Stage, Stage]]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(budgets, training curves) of each arm's last round."""
        selections, training = [], []
        for arm, rounds in trained.items():
            for selected, stage in rounds[-1:]:
                budget = loads((selected.directory / "budget.json").read_text())
                counts = loads((stage.directory / "data.json").read_text())
                about = {"arm": arm.name, "ratio": arm.ratio, "level": arm.level or None}
                selections.append(about | {"tokens": counts["tokens"], **budget})
                training.append(about | results.curves(read_metrics(stage.directory / "metrics.jsonl")))
        return selections, training

    def _stages(
        self, trained: dict[Arm, list[tuple[Stage, Stage]]], evaluated: dict[Arm, list[Stage]]
    ) -> dict[str, dict[str, Stage]]:
        stages: dict[str, dict[str, Stage]] = {}
        for arm, made in evaluated.items():
            for number, stage in enumerate(made, 1):
                of = stages[named(arm.label, number)] = {"evaluate": stage}
                if trained[arm]:
                    selected, tuned = trained[arm][number - 1]
                    of |= {"select": selected, "train": tuned}
        return stages | {named(key[0].label, *key[1:]): {"evaluate": stage} for key, stage in self.on_the_way.items()}


def _step(directory: Path, step: int) -> Path:
    return directory / "steps" / f"{step:06d}"
