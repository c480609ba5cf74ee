"""What an experiment needs that is not on this machine: files, keys, packages, checkpoints."""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from emjax import config as cfg
from emjax.config import fields
from emjax.data import sources
from emjax.eval import checks
from emjax.eval.items import Benchmark
from emjax.interact import population
from emjax.models.source import is_local_source
from emjax.presets import Chosen, data_sets


def missing(chosen: Chosen, environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each thing that the experiment needs and that is not on this machine.

    Of a grid: the cells that are to be run now.
    """
    config = chosen.config
    if isinstance(config, cfg.GridConfig):
        wanted = config.only or tuple(chosen.cells)
        return [f"{name}: {text}" for name in wanted for text in missing(chosen.cells[name], environment)]
    found = []
    for name in ("interact", "select", "arms"):
        if part := getattr(config, name, None):
            found += fields.missing(part, dict(environment), f"config.{name}")
    found += _missing_for_measuring(config.eval, chosen.benchmarks, environment)
    if isinstance(config, cfg.FinetuneConfig):
        own = chosen.world.datasets() if chosen.world else ()
        found += [
            f"config.{field}.path: {text}"
            for field, data, levels in data_sets(config)
            for level in levels
            if data.source not in own and (text := sources.missing(data.source, data.path, level))
        ]
    return list(dict.fromkeys([*found, *_missing_packages(chosen), *_missing_models(chosen)]))


def _missing_for_measuring(config: cfg.EvalConfig, used: Mapping[str, Benchmark], environment: Mapping[str, str]) -> list[str]:
    """Files of benchmarks, keys and files of the judges that read them, and the people's sheet."""
    found = []
    asked: list[str] = []
    for name, one in used.items():
        section = config.sections[name]
        found += fields.missing(section, dict(environment), f"config.eval.{name}")
        found += [
            f"config.eval.{name}.{field} is empty; give the benchmark's file, or put it below --data_root"
            + (f" as {known.under}." if known.under else ".")
            for field, value, known in fields.options(section)
            if field == "path" and known.needs and not value
        ]
        if one.judge == "model":
            named, others = checks.readers(name, one, config)
            asked += [*named, *others]
    for name in dict.fromkeys(asked):
        judge = config.judges[name]
        if judge.kind == "engine":  # no key is read
            judge = dataclasses.replace(judge, api_key_env="")
        found += fields.missing(judge, dict(environment), f"config.eval.judges.{name}")
    if config.sheet and not Path(config.sheet).is_file():
        found.append(f"config.eval.sheet: there is no file {config.sheet}.")
    return found


def _missing_packages(chosen: Chosen) -> list[str]:
    """Packages that only some experiments need."""
    config = chosen.config
    watch = getattr(config, "watch", cfg.Watch())
    sets = data_sets(config) if isinstance(config, cfg.FinetuneConfig) else []
    needed = {
        "wandb": "config.watch.wandb" if watch.wandb else "",
        "gcsfs": "config.watch.checkpoints" if watch.checkpoints.startswith("gs://") else "",
        "tensorflow_datasets": next((f"config.{field}.path" for field, one, _ in sets if one.path.startswith("tfds")), ""),
        "lm_eval": "config.eval.benchmarks" if "capability" in chosen.benchmarks else "",
    }
    install = {"lm_eval": "'emjax[capability]'"}
    return [
        f"{field} needs the package {package}: pip install {install.get(package, package)}."
        for package, field in needed.items()
        if field and importlib.util.find_spec(package) is None
    ]


def _missing_models(chosen: Chosen) -> list[str]:
    """Local checkpoints that are not there; a hub id is fetched by the run."""
    config, brought = chosen.config, chosen.world.models if chosen.world else {}
    named: list[tuple[str, str]] = []
    if isinstance(config, cfg.TrainingConfig):
        named.append(("config.model.path", config.model.path))
    elif isinstance(config, cfg.EvaluationConfig):
        named += [(f"config.arms.{n}.path", arm.path) for n, arm in config.arms.named().items() if not arm.endpoint]
    if isinstance(config, cfg.InteractionConfig) and not chosen.world:
        roles = config.interact.models.named()
        named += [
            (f"config.interact.models.{n}.model", role.model)
            for n, role in roles.items()
            if role.model and not role.base_url and role.model != population.SELF
        ]
    if not isinstance(config, cfg.GridConfig):
        used = {judge for name, one in chosen.benchmarks.items() for judge in checks.readers(name, one, config.eval)[0]}
        judges = {name: config.eval.judges[name] for name in sorted(used)}
        named += [(f"config.eval.judges.{n}.model", judge.model) for n, judge in judges.items() if judge.kind == "engine"]
    return [
        f"{field}: there is no {'file' if path.endswith('.gguf') else 'folder'} {path}."
        for field, path in named
        if path not in brought and not path.startswith("cell:") and fields.is_local(path) and not is_local_source(path)
    ]
