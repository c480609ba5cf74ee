"""Arms that are trained on examples, measured alike and reported together."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emjax import models, plan, report
from emjax.data.examples import read_examples, tokenized
from emjax.eval import suite
from emjax.experiment.common import claim, command, lora_of, mesh_of, one_of, shown, staged, versions
from emjax.experiment.fit import fit
from emjax.kto import loss as kto_loss
from emjax.kto import pairing
from emjax.kto import step as kto_step
from emjax.micro import base as micro
from emjax.models import LanguageModel, attention, decoder, hf
from emjax.plan import Arm
from emjax.sampling import Engine
from emjax.store import Stage, Store, digest, read_lines, remove, write_atomically
from emjax.train import loop, optimizer
from emjax.train.metrics import read_lines as read_metrics


class Arms:
    """Trains every arm on its examples, measures all arms alike, and reports them together.

    A subclass says what the examples are: `examples(arm)` gives a stage that holds examples.jsonl and budget.json.
    """

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
        print(plan.describe(config), flush=True)
        self.mesh = mesh_of(config)
        path = hf.resolve(str(micro.CHECKPOINT) if config.model.path == "micro" else config.model.path)
        self.base_hash = hf.fingerprint(path)
        self.base = models.load(str(path), mesh=self.mesh, dtype=config.model.dtype).replace(source=config.model.path)
        self.world = micro.world_of(path)
        self.benchmarks = micro.Benchmarks(self.world, config.eval.sizes)
        claim(config, self.workdir)
        trained: dict[Arm, tuple[Stage, Stage]] = {}
        for arm in self.arms:
            if arm.ratio is not None:
                chosen = self.examples(arm)
                trained[arm] = chosen, self._train(arm, chosen)
        evaluated = {arm: self._evaluate(arm, trained[arm][1] if arm in trained else None) for arm in self.arms}
        self._report(trained, evaluated)

    def stage(self, title: str, name: str, settings: dict[str, Any], inputs: list[Stage | str], make: Any) -> Stage:
        return staged(self.store, title, name, settings, inputs, make)

    def sampling(self) -> dict[str, Any]:
        """What of the config decides how tokens are drawn: the part of a stage's hash that names the engine."""
        model = self.config.model
        return {"sampling": dict(self.config.sampling), "dtype": model.dtype, "attention": model.attention}

    def engine(self, lm: LanguageModel) -> Engine:
        return Engine(lm, mesh=self.mesh, attention=self.config.model.attention, **self.config.sampling)

    def _train(self, arm: Arm, selected: Stage) -> Stage:
        c = self.config
        settings = {
            "train": json.loads(c.train.to_json()), "kto": dict(c.kto) if c.train.method == "kto" else None,
            "model": {"dtype": c.model.dtype, "attention": c.model.attention}, "mesh": dict(self.mesh.shape), "seed": c.seed,
        }  # fmt: skip

        def make(directory: Path) -> None:
            lm = self.base
            examples, counts = tokenized(
                read_examples(selected.directory / "examples.jsonl", labelled=c.train.method == "kto"),
                lm.tokenizer,
                lm.eos_ids,
                max(c.train.buckets),
            )
            write_atomically(directory / "data.json", json.dumps(counts, indent=1))
            tuned = fit(
                lm, examples, c.train, method=c.train.method, lora_config=self.lora,
                attention=c.model.attention, mesh=self.mesh,
                seed=c.seed, directory=directory, identity=digest([self.base_hash, selected.hash, settings]),
                title=f"train {arm.label}", watch=c.watch, kto=kto_step.KtoConfig(**c.kto),
            )  # fmt: skip
            card = (
                f"Trained by emjax from {c.model.path} ({self.base_hash[:12]}): {c.train.method.upper()} on conversations with "
                f"{arm.ratio:.0%} biased users, arm {arm.name!r}, seed {c.seed}, examples {selected.hash[:12]}."
            )
            if self.lora is None:
                models.save(tuned, directory / "model", card=card)
            else:
                models.save_adapter(tuned, directory / "adapter", card=card)
            remove(directory / "checkpoints")

        return self.stage(f"train {arm.label}", "train", settings, [self.base_hash, selected], make)

    def _tuned(self, stage: Stage | None) -> LanguageModel:
        if stage is None:
            return self.base
        if self.lora is None:
            lm = models.load(str(stage.directory / "model"), mesh=self.mesh, dtype=self.config.model.dtype)
            return lm.replace(source=self.config.model.path)
        return self.base.replace(adapter=hf.load_adapter(stage.directory / "adapter", self.base.config))

    def _evaluate(self, arm: Arm, trained: Stage | None) -> Stage:
        c = self.config
        how = suite.Settings(c.seed, c.eval.temperature, c.eval.max_new)
        settings = {"generation": vars(how), **self.benchmarks.identity(), **self.sampling()}

        def make(directory: Path) -> None:
            lm = self._tuned(trained)
            asker = suite.EngineAsker(self.engine(lm), lm.tokenizer, how, directory / "answers.jsonl")
            self.benchmarks.run(asker, directory, arm.label)
            asker.close()

        inputs: list[Stage | str] = [self.base_hash, *([trained] if trained else [])]
        return self.stage(f"evaluate {arm.label}", "evaluate", settings, inputs, make)

    def _report(self, trained: dict[Arm, tuple[Stage, Stage]], evaluated: dict[Arm, Stage]) -> None:
        c = self.config
        head = plan.headline(c)
        items = {
            arm: {name: read_lines(stage.directory / f"{name}.jsonl") for name in self.benchmarks.names}
            for arm, stage in evaluated.items()
        }
        rows = []
        for arm, benchmarks in items.items():
            about = {
                "model": c.model.path, "method": None if arm.ratio is None else c.train.method,
                "arm": arm.name, "ratio": arm.ratio,
                "seed": c.seed, "pretrain_seed": self.world.seed, "round": 0 if arm.ratio is None else 1, "step": None,
                "judge": self.benchmarks.judge.name,
            }  # fmt: skip
            others = [o for o in self.arms if o.name in ("control", "vanilla") and o != arm and arm.name != "vanilla"]
            for name, found in benchmarks.items():
                rows += suite.score(found, {o.name: items[o][name] for o in others}, about, self.benchmarks.mask_rules)
        results = {
            "experiment": c.experiment,
            "config_hash": digest(shown(c)),
            "versions": versions(),
            "headline": {
                "benchmark": "mask", "subset": "all", "metric": c.eval.metric, "arm": head.name, "ratio": head.ratio,
            },
            "world_note": micro.NOTE,
            "rows": rows,
        }  # fmt: skip
        write_atomically(self.workdir / "results.json", json.dumps(results, indent=1))
        selections, training = [], []
        for arm, (selected, stage) in trained.items():
            budget = json.loads((selected.directory / "budget.json").read_text())
            counts = json.loads((stage.directory / "data.json").read_text())
            selections.append({"arm": arm.name, "ratio": arm.ratio, "tokens": counts["tokens"], **budget})
            training.append(
                {
                    "arm": arm.name,
                    "ratio": arm.ratio,
                    **_curves(read_metrics(stage.directory / "metrics.jsonl")),
                }
            )
        stages = {arm.label: {"evaluate": stage.hash} for arm, stage in evaluated.items()}
        for arm, (selected, stage) in trained.items():
            stages[arm.label] |= {"select": selected.hash, "train": stage.hash}
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
        for row in rows:
            if (row["arm"], row["ratio"], row["benchmark"], row["subset"], row["metric"], row["versus"]) == (
                arm.name, arm.ratio, benchmark, "all", metric, versus,
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
