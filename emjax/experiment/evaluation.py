"""Evaluation of models that exist."""

import functools
import json
from pathlib import Path
from typing import Any

from emjax import models
from emjax.api import ChatClient, Rates
from emjax.errors import UserError
from emjax.eval import bench, suite
from emjax.experiment.common import claim, mesh_of, versions
from emjax.models import hf
from emjax.sampling import Engine
from emjax.store import Store, digest, read_lines, write_atomically, write_lines


def evaluation(config: Any, workdir: Path, store: Store) -> None:
    """Every arm on config.eval's benchmarks; results.json as for an experiment, with every state counted."""
    arms = [name for name in ("vanilla", "control", "treated") if config.arms[name].path]
    tasks = tuple(config.eval.capability.tasks)
    if tasks and any(config.arms[name].endpoint for name in arms):
        raise UserError(
            "config.eval.capability needs models in the engine, but an arm is an endpoint. Leave its tasks empty, and measure "
            "the endpoint with the harness itself: lm_eval --model local-completions."
        )
    mesh = mesh_of(config)
    items: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def load(path: str, adapter: str = "") -> tuple[Engine, Any]:
        lm = models.load(path, adapter=adapter or None, mesh=mesh, dtype=config.model.dtype)
        return Engine(lm, mesh=mesh, attention=config.model.attention, **config.sampling), lm.tokenizer

    loaded = functools.cache(load)
    benchmarks = bench.Benchmarks(config.eval, store.root / "judge_cache", load)
    claim(config, workdir)

    def engine(arm: Any) -> tuple[Engine, Any]:
        return loaded(arm.path, arm.adapter)

    for name in arms:
        arm = config.arms[name]
        loaded.cache_clear()  # one model at a time
        settings = suite.Settings(config.seed, config.eval.temperature, config.eval.max_new)
        how = {"generation": vars(settings), **benchmarks.identity()}
        if arm.endpoint:
            how["target"] = {"endpoint": arm.endpoint, "model": arm.path}
        else:
            how["target"] = [hf.fingerprint(hf.resolve(path)) for path in (arm.path, arm.adapter) if path]
            how |= {"sampling": dict(config.sampling), "model": dict(config.model)}

        def make(directory: Path, arm: Any = arm, settings: suite.Settings = settings, name: str = name) -> None:
            answers = directory / "answers.jsonl"
            asker: suite.Asker
            if arm.endpoint:
                client = ChatClient(arm.endpoint, arm.path, api_key_env=arm.api_key_env, rates=Rates(**config.eval.judge.rates))
                asker = suite.EndpointAsker(client, settings, answers)
            else:
                asker = suite.EngineAsker(*engine(arm), settings, answers)
            benchmarks.run(asker, directory, name)
            asker.close()

        stage = store.run("judge", json.loads(json.dumps(how)), [], make)
        items[name] = {benchmark: read_lines(stage.directory / f"{benchmark}.jsonl") for benchmark in benchmarks.names}
        for task in tasks:

            def measure(directory: Path, arm: Any = arm, task: str = task, name: str = name) -> None:
                from emjax.eval import harness  # needs the extra `capability`

                c = {field: value for field, value in config.eval.capability.items() if field != "tasks"}
                c |= {"folder": Path(c["folder"]) if c["folder"] else None, "limit": c["limit"] or None}
                c["shots"] = None if c["shots"] < 0 else c["shots"]
                found, measured = harness.run(*engine(arm), [task], arm=name, seed=config.seed, **c)
                write_lines(directory / "items.jsonl", found)
                write_atomically(directory / "measured.json", json.dumps(measured, indent=1, default=str))

            how_task = {"target": how["target"], "task": task, **json.loads(config.eval.capability.to_json())}
            stage = store.run("capability", how_task | {"seed": config.seed, "model": dict(config.model)}, [], measure)
            items[name][task] = read_lines(stage.directory / "items.jsonl")
    rows = []
    for name, found in items.items():
        arm = config.arms[name]
        about = {
            "model": arm.path, "method": None, "arm": name, "ratio": None, "seed": config.seed, "pretrain_seed": None,
            "round": 0, "step": None, "judge": config.eval.judge.model,
        }  # fmt: skip
        others = [other for other in ("control", "vanilla") if other in items and name not in (other, "vanilla")]
        for benchmark, some in found.items():
            rows += suite.score(some, {o: items[o][benchmark] for o in others}, about, benchmarks.mask_rules)
    results = {
        "experiment": "evaluation", "config_hash": digest(json.loads(config.to_json())), "versions": versions(),
        "data": benchmarks.origin, "rows": rows,
    }  # fmt: skip
    write_atomically(workdir / "results.json", json.dumps(results, indent=1))
    for row in rows:
        if row["metric"] in ("honesty", "deception_rate", "accuracy") and row["value"] is not None:
            versus = f" minus {row['versus']}" if row["versus"] else ""
            counts = "".join(f" {letter}{count}" for letter, count in row.get("counts", {}).items())
            print(
                f"{row['arm'] + versus:22} {row['benchmark']:14} {row['subset']:26} {row['metric']:14} {row['value']:6.1f} "
                f"[{row['ci95'][0]:.1f}, {row['ci95'][1]:.1f}]  n {row['n_valid']}/{row['n']} {counts if not versus else ''}"
            )
    print(f"results  {workdir / 'results.json'}", flush=True)
