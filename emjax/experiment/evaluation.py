"""Evaluation of models that exist."""

import dataclasses
from pathlib import Path
from typing import Any

from emjax import models
from emjax.api import ChatClient
from emjax.config import EvaluationConfig, Rates, as_dict
from emjax.config.sections import json_object
from emjax.errors import UserError
from emjax.experiment import plan, results
from emjax.experiment.common import claim, mesh_of, pinned, say, settle
from emjax.experiment.measure import Endpoint, Measuring, measured
from emjax.experiment.results import Files, Headline, Measured
from emjax.models import peft
from emjax.models.config import ModelConfig
from emjax.models.source import open_source
from emjax.presets import Chosen
from emjax.runtime import process
from emjax.runtime.store import Stage, Store
from emjax.sampling import Engine


@dataclasses.dataclass(frozen=True)
class _Model:
    """One model: an arm, or what its training had made of it at a step."""

    arm: str
    step: int | None
    path: str
    adapter: str = ""
    endpoint: str = ""
    api_key_env: str = ""
    extra: str = ""  # JSON

    @property
    def label(self) -> str:
        return self.arm if self.step is None else f"{self.arm}, step {self.step}"


def _models(config: EvaluationConfig) -> list[_Model]:
    found = []
    for name, arm in config.arms.named().items():
        for folder in sorted(Path(arm.checkpoints).iterdir()) if arm.checkpoints else ():
            if not folder.name.isdigit():
                raise UserError(f"config.arms.{name}.checkpoints is {arm.checkpoints!r}, but {folder.name!r} there is no step.")
            adapter = (folder / "adapter_config.json").is_file()
            path, tuned = (arm.path, str(folder)) if adapter else (str(folder), "")
            found.append(_Model(name, int(folder.name), path, tuned))
        found.append(_Model(name, None, arm.path, arm.adapter, arm.endpoint, arm.api_key_env, arm.extra))
    return found


def evaluation(chosen: Chosen, workdir: Path, store: Store) -> None:
    """Every arm on config.eval's benchmarks; results.json and a report as for an experiment, with
    every state counted."""
    config = chosen.config
    assert isinstance(config, EvaluationConfig)
    arms = _models(config)
    mesh = mesh_of(config.mesh)
    sources = {arm.path: open_source(pinned(arm.path, workdir)) for arm in arms if not arm.endpoint}
    shapes = [ModelConfig.from_hf(source.config(), source.config_file) for source in sources.values()]
    config = settle(config, workdir, shapes, dict(mesh.shape)) if shapes else config
    chosen = dataclasses.replace(chosen, config=config)

    def load(path: str, adapter: str = "") -> tuple[Engine, Any]:
        lm = models.load(sources.get(path, path), adapter=adapter or None, mesh=mesh, dtype=config.model.dtype)
        return Engine(lm, mesh=mesh, attention=config.model.attention, **dataclasses.asdict(config.engine)), lm.tokenizer

    measuring = Measuring(chosen.benchmarks, config.eval, store.root / "judge_cache", load, ledger=chosen.ledger)
    say(plan.describe(chosen))
    claim(config, workdir, revisions={path: source.revision for path, source in sources.items()})
    files: dict[_Model, Files] = {}
    stages: dict[str, dict[str, Stage]] = {}
    for arm in arms:
        extra = json_object("extra", arm.extra)
        target: dict[str, Any] = {"endpoint": arm.endpoint, "model": arm.path} | ({"extra": extra} if extra else {})
        model: Any
        if arm.endpoint:
            at = f"config.arms.{arm.arm}"
            client = ChatClient(arm.endpoint, arm.path, api_key_env=arm.api_key_env, rates=_rates(config), at=at)
            model = Endpoint(client, extra)
        else:
            weights = [sources[arm.path].digest(), *([peft.digest(arm.adapter)] if arm.adapter else [])]
            target = {"weights": weights, "engine": as_dict(config.engine), "model": as_dict(config.model)}

            def model(arm: _Model = arm) -> tuple[Engine, Any]:
                return load(arm.path, arm.adapter)

        stage = measured(store, measuring, arm.label, arm=arm.arm, seed=config.seed, target=target, model=model)
        stages[arm.label] = {"evaluate": stage}
        files[arm] = measuring.read(stage.directory)
    if process.first():
        made = results.assemble(
            chosen,
            measuring,
            [_measured(arm, files, config.seed) for arm in arms],
            list(files.values()),
            Headline(arms[-1].arm, None, None, f"the {arms[-1].arm} model"),
            None,
        )
        page = results.publish(workdir, made, stages, seed=config.seed)
        _print(made["rows"], chosen)
        print(f"results  {workdir / 'results.json'}\nreport   {page}", flush=True)


def _rates(config: EvaluationConfig) -> Rates:
    """How fast an arm's endpoint is asked: as the first judge is."""
    return next(iter(config.eval.judges.values())).rates


def _measured(arm: _Model, files: dict[_Model, Files], seed: int) -> Measured:
    """A model with what identifies it. A step is compared with the same step of the control, and
    with the untouched model."""
    first = next(iter(files))
    about = {
        # The arms are one line of models, told apart by arm; where each is from is the checkpoint.
        "model": first.path,
        "checkpoint": arm.adapter or arm.path,
        "method": None,
        "arm": arm.arm,
        "ratio": None,
        "level": None,
        "label": arm.label,
        "seed": seed,
        "pretrain_seed": None,
        "round": 0,
        "step": arm.step,
    }
    against = {
        other.arm: rows
        for other, rows in files.items()
        if other.arm in ("control", "vanilla")
        and arm.arm not in (other.arm, "vanilla")
        and other.step == (None if other.arm == "vanilla" else arm.step)
    }
    return Measured(about, files[arm], against)


def _print(rows: list[dict[str, Any]], chosen: Chosen) -> None:
    """The benchmarks' main metrics, a line each."""
    printed = {name for one in chosen.benchmarks.values() for name, metric in one.metrics.items() if metric.printed}
    several = len({row["judge"] for row in rows if row["judge"]}) > 1
    for row in rows:
        if row["metric"] in printed and row["value"] is not None:
            versus = f" minus {row['versus']}" if row["versus"] else ""
            counts = "".join(f" {letter}{count}" for letter, count in row.get("counts", {}).items())
            print(
                f"{row['label'] + versus:22} {row['benchmark']:14} {row['subset']:26} {row['metric']:14} {row['value']:6.1f} "
                f"[{row['ci95'][0]:.1f}, {row['ci95'][1]:.1f}]  n {row['n_valid']}/{row['n']} {counts if not versus else ''}"
                f"{' judge ' + row['judge'] if several and row['judge'] else ''}"
            )
