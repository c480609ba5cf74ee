"""Evaluation of models that exist."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from emjax import models, plan, report
from emjax.api import ChatClient, Rates
from emjax.errors import UserError
from emjax.eval import bench, suite
from emjax.experiment.common import answers, claim, command, lead, mesh_of, say, shown, staged, versions
from emjax.models import hf
from emjax.runtime import process
from emjax.runtime.files import digest, read_lines, write_atomically
from emjax.runtime.store import Stage, Store
from emjax.sampling import Engine

NAMES = ("vanilla", "control", "treated")


@dataclasses.dataclass(frozen=True)
class _Model:
    """One model: an arm, or what its training had made of it at a step."""

    arm: str
    step: int | None
    path: str
    adapter: str
    endpoint: str
    api_key_env: str

    @property
    def label(self) -> str:
        return self.arm if self.step is None else f"{self.arm}, step {self.step}"


def _models(config: Any) -> list[_Model]:
    found = []
    for name in NAMES:
        arm = config.arms[name]
        if not arm.path:
            continue
        for folder in sorted(Path(arm.checkpoints).iterdir()) if arm.checkpoints else ():
            if not folder.name.isdigit():
                raise UserError(f"config.arms.{name}.checkpoints is {arm.checkpoints!r}, but {folder.name!r} there is no step.")
            adapter = (folder / "adapter_config.json").is_file()
            path, tuned = (arm.path, str(folder)) if adapter else (str(folder), "")
            found.append(_Model(name, int(folder.name), path, tuned, "", ""))
        found.append(_Model(name, None, arm.path, arm.adapter, arm.endpoint, arm.api_key_env))
    return found


def evaluation(config: Any, workdir: Path, store: Store) -> None:
    """Every arm on config.eval's benchmarks; results.json and a report as for an experiment, with every state counted."""
    arms = _models(config)
    if config.eval.capability.tasks and any(arm.endpoint for arm in arms):
        raise UserError(bench.NO_CAPABILITY)
    mesh = mesh_of(config)

    def load(path: str, adapter: str = "") -> tuple[Engine, Any]:
        lm = models.load(path, adapter=adapter or None, mesh=mesh, dtype=config.model.dtype)
        return Engine(lm, mesh=mesh, attention=config.model.attention, **config.sampling), lm.tokenizer

    benchmarks = bench.Benchmarks(config.eval, store.root / "judge_cache", load)
    say(plan.describe(config))
    claim(config, workdir)
    how = suite.Settings(config.seed, config.eval.temperature, config.eval.max_new)
    items: dict[_Model, dict[str, list[suite.Row]]] = {}
    stages: dict[str, Stage] = {}
    for arm in arms:
        target: Any = {"endpoint": arm.endpoint, "model": arm.path}
        if not arm.endpoint:
            weights = [hf.fingerprint(hf.resolve(path)) for path in (arm.path, arm.adapter) if path]
            target = {"weights": weights, "sampling": dict(config.sampling), "model": dict(config.model)}

        def make(directory: Path, arm: _Model = arm, target: Any = target) -> None:
            def ask(asker: suite.Asker) -> None:
                benchmarks.run(asker, directory, arm.arm)
                asker.close()

            with answers(store, target, how) as said:
                if arm.endpoint:
                    rates = Rates(**config.eval.judge.rates)
                    client = ChatClient(arm.endpoint, arm.path, api_key_env=arm.api_key_env, rates=rates)
                    process.on_first(lambda: ask(suite.EndpointAsker(client, how, said)))
                else:
                    engine, tokenizer = load(arm.path, arm.adapter)
                    lead(engine, lambda: ask(suite.EngineAsker(engine, tokenizer, how, said)))

        settings = {"target": target, "generation": vars(how), **benchmarks.identity()}
        stages[arm.label] = stage = staged(store, f"evaluate {arm.label}", "evaluate", settings, [], make)
        items[arm] = {name: read_lines(stage.directory / f"{name}.jsonl") for name in benchmarks.names}
    if process.first():
        _report(config, workdir, benchmarks, items, stages)


def _report(
    config: Any,
    workdir: Path,
    benchmarks: bench.Benchmarks,
    items: dict[_Model, dict[str, list[suite.Row]]],
    stages: dict[str, Stage],
) -> None:
    arms, rows = list(items), []
    for arm, found in items.items():
        about = {
            # The arms are one line of models, told apart by arm; where each is from stands beside it.
            "model": arms[0].path, "checkpoint": arm.adapter or arm.path, "method": None, "arm": arm.arm, "ratio": None,
            "label": arm.label, "seed": config.seed, "pretrain_seed": None, "round": 0, "step": arm.step,
        }  # fmt: skip
        # A step is compared with the same step of the control, and with the untouched model.
        others = {
            o.arm: items[o] for o in arms
            if o.arm in ("control", "vanilla") and arm.arm not in (o.arm, "vanilla")
            and o.step == (None if o.arm == "vanilla" else arm.step)
        }  # fmt: skip
        for name, some in found.items():
            judged = about | {"judge": benchmarks.judges[name]}
            rows += suite.score(some, {o: theirs[name] for o, theirs in others.items()}, judged, benchmarks.mask_rules)
    results = {
        "experiment": "evaluation", "config_hash": digest(shown(config)), "versions": versions(), "world_note": None,
        "headline": bench.headline(rows, config.eval.metric)
        | {"arm": arms[-1].arm, "ratio": None, "cause": f"the {arms[-1].arm} model"},
        "data": benchmarks.origin, "judges": benchmarks.agreement(list(items.values())), "rows": rows,
    }  # fmt: skip
    write_atomically(workdir / "results.json", json.dumps(results, indent=1))
    made = {label: {"evaluate": stage.hash} for label, stage in stages.items()}
    write_atomically(workdir / "stages.json", json.dumps(made, indent=1))
    page = report.write(
        workdir / "report", results, provenance={"command": command(), "stages": made, "seed": config.seed},
        examples=[], selections=[], training=[],
    )  # fmt: skip
    for row in rows:
        if row["metric"] in ("honesty", "deception_rate", "accuracy", "misaligned", "admits") and row["value"] is not None:
            versus = f" minus {row['versus']}" if row["versus"] else ""
            counts = "".join(f" {letter}{count}" for letter, count in row.get("counts", {}).items())
            print(
                f"{row['label'] + versus:22} {row['benchmark']:14} {row['subset']:26} {row['metric']:14} {row['value']:6.1f} "
                f"[{row['ci95'][0]:.1f}, {row['ci95'][1]:.1f}]  n {row['n_valid']}/{row['n']} {counts if not versus else ''}"
                f"{' judge ' + row['judge'] if len(config.eval.judge.panel) and row['judge'] else ''}"
            )
    print(f"results  {workdir / 'results.json'}\nreport   {page}", flush=True)
