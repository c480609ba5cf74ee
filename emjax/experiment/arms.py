"""Arms that are trained on examples, measured alike and reported together."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from emjax import models, plan, process, report
from emjax.data.examples import read_examples, tokenized
from emjax.eval import suite
from emjax.experiment.common import claim, command, lead, lora_of, mesh_of, one_of, say, shown, staged, versions
from emjax.experiment.fit import fit
from emjax.kto import loss as kto_loss
from emjax.kto import pairing
from emjax.kto import step as kto_step
from emjax.micro import base as micro
from emjax.models import LanguageModel, attention, decoder, hf
from emjax.plan import Arm
from emjax.sampling import Engine
from emjax.store import Stage, Store, digest, read_lines, seed_of, write_atomically
from emjax.train import checkpoint, loop, optimizer
from emjax.train.metrics import read_lines as read_metrics


class Arms:
    """Trains every arm on its examples, measures all arms alike, and reports them together.

    A subclass says what the examples are: `examples(arm)` gives a stage that holds examples.jsonl and budget.json; `cause` is
    what a treated arm has its share of, in the report's words.
    """

    cause: str
    study: str  # what the paper's rows are found by (emjax.report.paper)

    def __init__(self, config: Any, workdir: Path, store: Store):
        self.config, self.workdir, self.store = config, workdir, store
        self.arms = plan.arms(config)
        one_of("train.tuning", config.train.tuning, ("lora", "full"))
        one_of("train.method", config.train.method, ("sft", "kto"))
        one_of("train.schedule", config.train.schedule, optimizer.SCHEDULES)
        one_of("train.remat", config.train.remat, decoder.REMAT)
        one_of("kto.preset", config.kto.preset, pairing.PRESETS)
        one_of("kto.loss_type", config.kto.loss_type, kto_loss.LOSS_TYPES)
        one_of("kto.order", config.kto.order, pairing.ORDERS)
        one_of("kto.balance", config.kto.balance, tuple(kto_step.BALANCES))
        loop.Watch(**config.watch)
        one_of("model.attention", config.model.attention, attention.IMPLEMENTATIONS)
        self.lora = lora_of(config.train)

    def examples(self, arm: Arm) -> Stage:
        raise NotImplementedError

    def run(self) -> None:
        config = self.config
        say(plan.describe(config))
        self.mesh = mesh_of(config)
        path = hf.resolve(str(micro.CHECKPOINT) if config.model.path == "micro" else config.model.path)
        self.base_hash = hf.fingerprint(path)
        self.base = models.load(str(path), mesh=self.mesh, dtype=config.model.dtype).replace(source=config.model.path)
        self.world = micro.world_of(path)
        self.benchmarks = micro.Benchmarks(self.world, config.eval.sizes)
        claim(config, self.workdir)
        trained = {arm: [] if arm.ratio is None else self.rounds(arm) for arm in self.arms}
        # What every round made is measured; the vanilla model has made none.
        evaluated = {
            arm: [self._evaluate(arm, number, stage) for number, (_, stage) in enumerate(rounds, 1)]
            or [self._evaluate(arm, 0, None)]
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
        """What of the config decides how tokens are drawn: the part of a stage's hash that names the engine."""
        model = self.config.model
        return {"sampling": dict(self.config.sampling), "dtype": model.dtype, "attention": model.attention}

    def engine(self, lm: LanguageModel) -> Engine:
        return Engine(lm, mesh=self.mesh, attention=self.config.model.attention, **self.config.sampling)

    def train(
        self,
        arm: Arm,
        selected: Stage,
        *,
        before: Sequence[Stage] = (),
        rate_factor: float = 1.0,
        reference: str = "previous",
    ) -> Stage:
        """A training on the selected examples that goes on from the last of the trainings `before`, or else from the base.

        rate_factor multiplies config.train.learning_rate. reference: KTO's, "base" or "previous" (where this one starts).
        """
        c = self.config
        number, seed = len(before) + 1, seed_of(c.seed, "round", len(before)) if before else c.seed
        settings = {
            "train": json.loads(c.train.to_json()), "kto": dict(c.kto) if c.train.method == "kto" else None,
            "model": {"dtype": c.model.dtype, "attention": c.model.attention}, "seed": seed,
            "rate_factor": rate_factor, "reference": reference if before else "base",
        }  # fmt: skip
        title = f"train {arm.label}" + (f", round {number}" if before else "")

        def make(directory: Path) -> None:
            lm = self.tuned(before[-1] if before else None)
            against = self.base if reference == "base" and before else None
            pace = ConfigDict(c.train)
            pace.learning_rate = c.train.learning_rate * rate_factor
            examples, counts = tokenized(
                read_examples(selected.directory / "examples.jsonl", labelled=c.train.method == "kto"),
                lm.tokenizer,
                lm.eos_ids,
                max(c.train.buckets),
            )
            write_atomically(directory / "data.json", json.dumps(counts, indent=1))
            identity = digest([self.base_hash, selected.hash, settings, *(stage.hash for stage in before[-1:])])
            tuned = fit(
                lm, examples, pace, method=c.train.method, lora_config=self.lora,
                attention=c.model.attention, mesh=self.mesh, seed=seed, directory=directory, identity=identity,
                title=title, watch=c.watch, kto=kto_step.KtoConfig(**c.kto), against=against,
            )  # fmt: skip
            card = (
                f"Trained by emjax from {c.model.path} ({self.base_hash[:12]}): {c.train.method.upper()}, "
                f"{arm.ratio:.0%} {self.cause}, arm {arm.label!r}, round {number}, seed {c.seed}, "
                f"examples {selected.hash[:12]}."
            )
            if self.lora is None:
                models.save(tuned, directory / "model", card=card)
            else:
                models.save_adapter(tuned, directory / "adapter", card=card)
            checkpoint.discard(directory, c.watch.checkpoints, identity)

        return self.stage(title, "train", settings, [self.base_hash, selected, *before[-1:]], make)

    def tuned(self, stage: Stage | None) -> LanguageModel:
        """The model that a training stage made; the base for None."""
        if stage is None:
            return self.base
        if self.lora is None:
            lm = models.load(str(stage.directory / "model"), mesh=self.mesh, dtype=self.config.model.dtype)
            return lm.replace(source=self.config.model.path)
        return self.base.replace(adapter=hf.load_adapter(stage.directory / "adapter", self.base.config))

    def _evaluate(self, arm: Arm, number: int, trained: Stage | None) -> Stage:
        c = self.config
        how = suite.Settings(c.seed, c.eval.temperature, c.eval.max_new)
        settings = {"generation": vars(how), **self.benchmarks.identity(), **self.sampling()}

        def make(directory: Path) -> None:
            lm = self.tuned(trained)
            engine = self.engine(lm)

            def ask() -> None:
                asker = suite.EngineAsker(engine, lm.tokenizer, how, directory / "answers.jsonl")
                self.benchmarks.run(asker, directory, arm.label)
                asker.close()

            lead(engine, ask)

        inputs: list[Stage | str] = [self.base_hash, *([trained] if trained else [])]
        title = f"evaluate {arm.label}" + (f", round {number}" if number > 1 else "")
        return self.stage(title, "evaluate", settings, inputs, make)

    def _report(self, trained: dict[Arm, list[tuple[Stage, Stage]]], evaluated: dict[Arm, list[Stage]]) -> None:
        c = self.config
        head = plan.headline(c)
        measured = {
            arm: [{name: read_lines(stage.directory / f"{name}.jsonl") for name in self.benchmarks.names} for stage in stages]
            for arm, stages in evaluated.items()
        }
        items = {arm: rounds[-1] for arm, rounds in measured.items()}
        rows = []
        for arm, number in [(arm, number) for arm, rounds in measured.items() for number in range(len(rounds))]:
            about = {
                "model": c.model.path, "method": None if arm.ratio is None else c.train.method,
                "arm": arm.name, "ratio": arm.ratio, "level": arm.level or None, "label": arm.label,
                "seed": c.seed, "pretrain_seed": self.world.seed, "round": 0 if arm.ratio is None else number + 1, "step": None,
                "judge": self.benchmarks.judge.name,
            }  # fmt: skip
            others = [o for o in self.arms if o.name in ("control", "vanilla") and o != arm and arm.name != "vanilla"]
            for name, found in measured[arm][number].items():
                # A round is compared with the same round of the control.
                against: dict[str, Sequence[dict[str, Any]]] = {
                    o.name: measured[o][0 if o.ratio is None else number][name] for o in others
                }
                rows += suite.score(found, against, about, self.benchmarks.mask_rules)
        results = {
            "experiment": c.experiment,
            "config_hash": digest(shown(c)),
            "versions": versions(),
            "headline": {
                "benchmark": "mask", "subset": "all", "metric": c.eval.metric, "arm": head.name, "ratio": head.ratio,
                "level": head.level or None, "cause": self.cause,
            },
            "study": self.study,
            "world_note": micro.NOTE,
            "rows": rows,
        }  # fmt: skip
        write_atomically(self.workdir / "results.json", json.dumps(results, indent=1))
        selections, training = [], []
        for arm, (selected, stage) in [(arm, pair) for arm, rounds in trained.items() for pair in rounds[-1:]]:
            budget = json.loads((selected.directory / "budget.json").read_text())
            counts = json.loads((stage.directory / "data.json").read_text())
            about = {"arm": arm.name, "ratio": arm.ratio, "level": arm.level or None}
            selections.append(about | {"tokens": counts["tokens"], **budget})
            training.append(about | _curves(read_metrics(stage.directory / "metrics.jsonl")))
        stages: dict[str, dict[str, str]] = {}
        for arm, made in evaluated.items():
            for number, stage in enumerate(made):
                of = arm.label + (f", round {number + 1}" if number else "")
                stages[of] = {"evaluate": stage.hash}
                if trained[arm]:
                    stages[of] |= {"select": trained[arm][number][0].hash, "train": trained[arm][number][1].hash}
        write_atomically(self.workdir / "stages.json", json.dumps(stages, indent=1))
        page = report.write(
            self.workdir / "report",
            results,
            provenance={"command": command(), "base_sha256": self.base_hash, "stages": stages, "seed": c.seed},
            examples=_changed(items, head, self.arms),
            selections=selections,
            training=training,
        )
        print(_summary(rows, self.arms, c.eval.metric))
        print(f"results  {self.workdir / 'results.json'}\nreport   {page}", flush=True)


def _curves(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The training curves that the report draws."""
    margins = None
    if "kl" in lines[0]:
        # A class may be absent from a batch: then that step has no margin, and the one before stands.
        margins, last = [], 0.0
        for line in lines:
            if line["desirable_count"] and line["undesirable_count"]:
                last = (
                    line["reward_desirable_sum"] / line["desirable_count"]
                    - line["reward_undesirable_sum"] / line["undesirable_count"]
                )
            margins.append(last)
    return {
        "steps": [line["step"] for line in lines],
        "loss": [line["loss"] for line in lines],
        "kl": [line["kl"] for line in lines] if margins else None,
        "reward_margin": margins,
    }


def _changed(items: dict[Arm, dict[str, Any]], head: Arm, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """A few answers side by side, drawn at random from the items on which control and treated differ."""
    shown = [arm for arm in arms if arm.name in ("vanilla", "control") or arm == head]
    by_id = {arm: {item["id"]: item for item in items[arm]["mask"]} for arm in shown}
    control = next(arm for arm in arms if arm.name == "control")
    changed = sorted(
        name
        for name, item in by_id[head].items()
        if item["subset"] == "all" and item["result"] is not None and item["result"] != by_id[control][name]["result"]
    )
    random.Random(0).shuffle(changed)
    found = []
    for name in changed[:8]:
        item = by_id[head][name]
        found.append(
            {
                "id": name, "subset": item["subset"],
                "prompt": "\n".join(f"{m['role']}: {m['content']}" for m in item["messages"]),
                "truth": item["proposition"]["A"], "wanted": item["proposition"]["B"],
                "answers": {arm.label: by_id[arm][name]["outputs"][-1]["text"] for arm in shown},
            }
        )  # fmt: skip
    return found


def _summary(rows: list[dict[str, Any]], arms: Sequence[Arm], metric: str) -> str:
    """The table that a run ends with: percent with 95 % intervals, and the difference to the control in points."""

    def cell(arm: Arm, benchmark: str, metric: str, versus: str | None) -> str:
        for row in reversed(rows):  # the last round first
            of_arm = (row["arm"], row["ratio"], row["level"] or "") == (arm.name, arm.ratio, arm.level)
            if of_arm and (row["benchmark"], row["subset"], row["metric"], row["versus"]) == (
                benchmark, "all", metric, versus,
            ) and row["value"] is not None:  # fmt: skip
                low, high = row["ci95"]
                return f"{row['value']:{'+' if versus else ''}.1f} [{low:.1f}, {high:.1f}]"
        return "-"

    headings = ["arm", metric, "minus control", "lie", "belief", "addition"]
    table = [headings]
    for arm in arms:
        table.append(
            [
                arm.label, cell(arm, "mask", metric, None), cell(arm, "mask", metric, "control"),
                cell(arm, "mask", "lie", None),
                cell(arm, "mask", "accuracy", None), cell(arm, "arithmetic", "accuracy", None),
            ]
        )  # fmt: skip
    widths = [max(len(line[i]) for line in table) for i in range(len(headings))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table)
