"""Arms that are trained on examples, measured alike and reported together."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from emjax import models, plan, report
from emjax.data.examples import read_examples, tokenized
from emjax.eval import bench, suite
from emjax.experiment.common import answers, claim, command, lead, lora_of, mesh_of, named, one_of, say, shown, staged, versions
from emjax.experiment.fit import fit
from emjax.kto import loss as kto_loss
from emjax.kto import pairing
from emjax.kto import step as kto_step
from emjax.models import LanguageModel, attention, decoder, hf
from emjax.plan import Arm
from emjax.runtime import process
from emjax.runtime.files import digest, read_lines, seed_of, write_atomically
from emjax.runtime.store import Stage, Store
from emjax.sampling import Engine
from emjax.train import checkpoint, loop, optimizer
from emjax.train.metrics import read_lines as read_metrics
from emjax.worlds.micro import base as micro


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
        self.at_steps = tuple(int(step) for step in config.eval.at_steps)
        self.on_the_way: dict[tuple[Arm, int, int], Stage] = {}  # (arm, round, step): its evaluation

    def examples(self, arm: Arm) -> Stage:
        raise NotImplementedError

    def run(self) -> None:
        config = self.config
        say(plan.describe(config))
        self.mesh = mesh_of(config)
        path = hf.resolve(micro.CHECKPOINT if config.model.path == "micro" else config.model.path)
        self.base_hash = hf.fingerprint(path)
        self.base = models.load(path, mesh=self.mesh, dtype=config.model.dtype).replace(source=config.model.path)
        self.benchmarks: Any
        if "sizes" in config.eval:
            self.world = micro.world_of(path)
            self.benchmarks = micro.Benchmarks(self.world, config.eval.sizes)
        else:
            self.benchmarks = bench.Benchmarks(config.eval, self.store.root / "judge_cache", self._local_judge)
        claim(config, self.workdir)
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
        """What of the config decides how tokens are drawn: the part of a stage's hash that names the engine."""
        model = self.config.model
        return {"sampling": dict(self.config.sampling), "dtype": model.dtype, "attention": model.attention}

    def engine(self, lm: LanguageModel) -> Engine:
        return Engine(lm, mesh=self.mesh, attention=self.config.model.attention, **self.config.sampling)

    def _local_judge(self, path: str) -> tuple[Engine, Any]:
        lm = models.load(path, mesh=self.mesh, dtype=self.config.model.dtype)
        return self.engine(lm), lm.tokenizer

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
        At config.eval.at_steps the model is kept, as steps/<step>, and measured before training goes on.
        """
        c = self.config
        number, seed = len(before) + 1, seed_of(c.seed, "round", len(before)) if before else c.seed
        settings = {
            "train": json.loads(c.train.to_json()), "kto": dict(c.kto) if c.train.method == "kto" else None,
            "model": {"dtype": c.model.dtype, "attention": c.model.attention}, "seed": seed,
            "rate_factor": rate_factor, "reference": reference if before else "base", "at_steps": self.at_steps,
        }  # fmt: skip
        title = f"train {named(arm.label, number)}"
        inputs = [self.base_hash, selected.hash, settings, *(stage.hash for stage in before[-1:])]
        identity = digest(inputs)

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
            card = (
                f"Trained by emjax from {c.model.path} ({self.base_hash[:12]}): {c.train.method.upper()}, "
                f"{arm.ratio:.0%} {self.cause}, arm {arm.label!r}, round {number}, seed {c.seed}, "
                f"examples {selected.hash[:12]}."
            )

            def visit(step: int, lm: LanguageModel) -> None:
                self._save(lm, _step(directory, step), f"{card} Step {step}.")
                self._evaluate(named(arm.label, number, step), [identity, str(step)], lm)

            tuned = fit(
                lm, examples, pace, method=c.train.method, lora_config=self.lora,
                attention=c.model.attention, mesh=self.mesh, seed=seed, directory=directory, identity=identity,
                title=title, watch=c.watch, kto=kto_step.KtoConfig(**c.kto), against=against,
                visits=self.at_steps, visit=visit,
            )  # fmt: skip
            self._save(tuned, directory / ("model" if self.lora is None else "adapter"), card)

        stage = self.stage(title, "train", settings, [self.base_hash, selected, *before[-1:]], make)
        checkpoint.discard(stage.directory, c.watch.checkpoints, identity)
        for step in self.at_steps:
            kept = _step(stage.directory, step)
            self.on_the_way[arm, number, step] = self._evaluate(named(arm.label, number, step), [identity, str(step)], kept)
        return stage

    def _save(self, lm: LanguageModel, directory: Path, card: str) -> None:
        (models.save if self.lora is None else models.save_adapter)(lm, directory, card=card)

    def tuned(self, stage: Stage | None) -> LanguageModel:
        """The model that a training stage made; the base for None."""
        if stage is None:
            return self.base
        return self._model_in(stage.directory / ("model" if self.lora is None else "adapter"))

    def _model_in(self, directory: Path) -> LanguageModel:
        if self.lora is None:
            lm = models.load(directory, mesh=self.mesh, dtype=self.config.model.dtype)
            return lm.replace(source=self.config.model.path)
        return self.base.replace(adapter=models.load_adapter(directory, self.base.config))

    def _evaluate(self, name: str, origin: list[Stage | str], model: LanguageModel | Stage | Path | None) -> Stage:
        """Measures a model: one at hand, one that a stage made or a folder holds, or (None) the base. origin: what made it."""
        c = self.config
        how = suite.Settings(c.seed, c.eval.temperature, c.eval.max_new)
        settings = {"generation": vars(how), **self.benchmarks.identity(), **self.sampling()}
        inputs: list[Stage | str] = [self.base_hash, *origin]

        def make(directory: Path) -> None:
            lm = model
            if not isinstance(lm, LanguageModel):
                lm = self._model_in(lm) if isinstance(lm, Path) else self.tuned(lm)
            weights = [one.hash if isinstance(one, Stage) else one for one in inputs]
            engine, tokenizer = self.engine(lm), lm.tokenizer

            def ask() -> None:
                asker = suite.EngineAsker(engine, tokenizer, how, said)
                self.benchmarks.run(asker, directory, name)
                asker.close()

            with answers(self.store, {"weights": weights, **self.sampling()}, how) as said:
                lead(engine, ask)

        return self.stage(f"evaluate {name}", "evaluate", settings, inputs, make)

    def _items(self, stage: Stage) -> dict[str, list[suite.Row]]:
        return {name: read_lines(stage.directory / f"{name}.jsonl") for name in self.benchmarks.names}

    def _report(self, trained: dict[Arm, list[tuple[Stage, Stage]]], evaluated: dict[Arm, list[Stage]]) -> None:
        c = self.config
        head = plan.headline(c)
        measured = {arm: [self._items(stage) for stage in stages] for arm, stages in evaluated.items()}
        items = {arm: rounds[-1] for arm, rounds in measured.items()}
        # What was measured: (arm, round, step), no step being the end.
        found: dict[tuple[Arm, int, int | None], dict[str, list[suite.Row]]] = {
            (arm, number, None): some for arm, rounds in measured.items() for number, some in enumerate(rounds, 1)
        }
        found |= {key: self._items(stage) for key, stage in self.on_the_way.items()}
        rows = []
        for (arm, number, step), mine in found.items():
            about = {
                "model": c.model.path, "method": None if arm.ratio is None else c.train.method,
                "arm": arm.name, "ratio": arm.ratio, "level": arm.level or None,
                "label": named(arm.label, 1, step),
                "seed": c.seed, "pretrain_seed": self.world.seed if "sizes" in c.eval else None,
                "round": 0 if arm.ratio is None else number, "step": step,
            }  # fmt: skip
            others = [o for o in self.arms if o.name in ("control", "vanilla") and o != arm and arm.name != "vanilla"]
            # Compared with the control at the same round and step.
            against = {o.name: measured[o][0] if o.ratio is None else found[o, number, step] for o in others}
            for name, some in mine.items():
                of_name: dict[str, Sequence[suite.Row]] = {o: theirs[name] for o, theirs in against.items()}
                rows += suite.score(some, of_name, about | {"judge": self.benchmarks.judges[name]}, self.benchmarks.mask_rules)
        results = {
            "experiment": c.experiment,
            "config_hash": digest(shown(c)),
            "versions": versions(),
            "headline": bench.headline(rows, c.eval.metric)
            | {"arm": head.name, "ratio": head.ratio, "level": head.level or None, "cause": self.cause},
            "study": self.study,
            "world_note": micro.NOTE if "sizes" in c.eval else None,
            "data": self.benchmarks.origin,
            "judges": self.benchmarks.agreement(list(items.values())),
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
            for number, stage in enumerate(made, 1):
                of = named(arm.label, number)
                stages[of] = {"evaluate": stage.hash}
                if trained[arm]:
                    stages[of] |= {"select": trained[arm][number - 1][0].hash, "train": trained[arm][number - 1][1].hash}
        stages |= {named(key[0].label, *key[1:]): {"evaluate": stage.hash} for key, stage in self.on_the_way.items()}
        write_atomically(self.workdir / "stages.json", json.dumps(stages, indent=1))
        page = report.write(
            self.workdir / "report",
            results,
            provenance={"command": command(), "base_sha256": self.base_hash, "stages": stages, "seed": c.seed},
            examples=_changed(items, head, self.arms, results["headline"]),
            selections=selections,
            training=training,
        )
        print(_summary([row for row in rows if row["step"] is None], self.arms, results["headline"]))
        print(f"results  {self.workdir / 'results.json'}\nreport   {page}", flush=True)


def _step(directory: Path, step: int) -> Path:
    return directory / "steps" / f"{step:06d}"


def _curves(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The training curves that the report draws."""
    margins = None
    if any("kl" in line for line in lines):
        # A class may be absent from a batch: then that step has no margin, and the one before stands.
        margins, last = [], 0.0
        for line in lines:
            if line.get("desirable_count") and line["undesirable_count"]:
                last = (
                    line["reward_desirable_sum"] / line["desirable_count"]
                    - line["reward_undesirable_sum"] / line["undesirable_count"]
                )
            margins.append(None if "lost" in line else last)
    return {
        "steps": [line["step"] for line in lines],
        "loss": [line.get("loss") for line in lines],  # None where lines are lost: there the curve has a gap
        "kl": [line.get("kl") for line in lines] if margins else None,
        "reward_margin": margins,
    }


def _changed(
    items: dict[Arm, dict[str, Any]], head: Arm, arms: Sequence[Arm], headline: dict[str, Any]
) -> list[dict[str, Any]]:
    """A few answers side by side, drawn at random from the items on which control and treated differ."""
    shown = [arm for arm in arms if arm.name in ("vanilla", "control") or arm == head]
    name = next(name for name, rows in items[head].items() if rows[0]["benchmark"] == headline["benchmark"])
    by_id = {arm: {item["id"]: item for item in items[arm][name]} for arm in shown}
    subsets = {item["subset"] for item in by_id[head].values()}
    wanted = subsets & {headline["subset"]} or subsets
    control = by_id[next(arm for arm in arms if arm.name == "control")]
    changed = sorted(
        key
        for key, item in by_id[head].items()
        if item["subset"] in wanted and item["result"] is not None and item["result"] != control[key]["result"]
    )
    random.Random(0).shuffle(changed)
    found = []
    for key in changed[:8]:
        item = by_id[head][key]
        statements = dict(item.get("proposition") or {})
        truth = statements.pop(item["ground_truth"], None) if isinstance(item.get("ground_truth"), str) else None
        found.append(
            {
                "id": key, "subset": item["subset"],
                "prompt": "\n".join(f"{m['role']}: {m['content']}" for m in item["messages"]),
                "truth": truth, "wanted": next(iter(statements.values()), None) if truth else None,
                "answers": {arm.label: by_id[arm][key]["outputs"][-1]["text"] for arm in shown},
            }
        )  # fmt: skip
    return found


def _summary(rows: list[dict[str, Any]], arms: Sequence[Arm], headline: dict[str, Any]) -> str:
    """The table that a run ends with: percent with 95 % intervals, and the difference to the control in points."""
    judge = next(row["judge"] for row in rows if row["benchmark"] == headline["benchmark"])

    def cell(arm: Arm, benchmark: str, metric: str, versus: str | None) -> str:
        subset = headline["subset"] if benchmark == headline["benchmark"] else "all"
        for row in reversed(rows):  # the last round first
            of_arm = (row["arm"], row["ratio"], row["level"] or "") == (arm.name, arm.ratio, arm.level)
            if of_arm and row["judge"] in (judge, None) and row["value"] is not None and (
                row["benchmark"], row["subset"], row["metric"], row["versus"]
            ) == (benchmark, subset, metric, versus):  # fmt: skip
                low, high = row["ci95"]
                return f"{row['value']:{'+' if versus else ''}.1f} [{low:.1f}, {high:.1f}]"
        return "-"

    head = headline["benchmark"], headline["metric"]
    columns = [(headline["metric"], *head, None), ("minus control", *head, "control")]
    columns += [("lie", head[0], "lie", None)] * (head[0] == "mask")
    columns += [
        ({"mask": "belief", "arithmetic": "addition"}.get(name, name), name, "accuracy", None)
        for name in dict.fromkeys(row["benchmark"] for row in rows if row["metric"] == "accuracy")
        if not name.startswith("custom:advice")
    ]
    table = [["arm", *(title for title, *_ in columns)]]
    table += [[arm.label, *(cell(arm, *what) for _, *what in columns)] for arm in arms]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table)
