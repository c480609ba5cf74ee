"""What every kind of experiment shares."""

import contextlib
import dataclasses
import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from emjax.config import EvaluationConfig, FinetuneConfig, InteractionConfig, MeshConfig, Section, as_dict, names, walk
from emjax.cost import auto
from emjax.errors import UserError
from emjax.models import sharding
from emjax.models.config import ModelConfig
from emjax.runtime import hardware, numbers, process
from emjax.runtime.files import digest, dumps, flat, loads, unfinished, write_atomically
from emjax.runtime.locks import alone, lock
from emjax.runtime.store import STORE_FORMAT, Stage, Store
from emjax.sampling import Engine

C = TypeVar("C", InteractionConfig, FinetuneConfig, EvaluationConfig)

SPENT = "spent.jsonl"  # of a work directory whose run has a cap on money
LOCK = "lock"  # a work directory's: the run that writes there

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "numpy")


# --- work directories -----------------------------------------------------------------------------


def recorded(workdir: Path) -> dict[str, Any]:
    """The content of the workdir's config.json; {} before the first start claims it.

    Raises UserError if the file is damaged.
    """
    file = workdir / "config.json"
    if not file.is_file():
        return {}
    try:
        return dict(loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({error}). Put back a copy of it, or choose a new --workdir with --store "
            f"{workdir / 'store'}, where finished stages are kept."
        ) from error


def settle(config: C, workdir: Path, shapes: Sequence[ModelConfig], sizes: Mapping[str, int]) -> C:
    """The configuration with a value in each field that says auto: what the workdir's config.json
    has, or else what the rule of cost.auto makes of the model and this device.

    shapes: of the models that the engines hold, one at a time. sizes: of the mesh. Raises UserError
    if the device cannot hold the result.
    """

    def decide() -> dict[str, Any]:
        place = hardware.here()
        made = _recorded(config, workdir)
        if auto.is_auto(made):
            every = [auto.settled(made, shape, place, sizes) for shape in shapes]
            made = min(every, key=lambda one: one.engine.slots)
            say(
                f"auto       config.model.dtype={made.model.dtype} .attention={made.model.attention} "
                f"config.engine.slots={made.engine.slots}"
            )
        for shape in shapes:
            auto.check(made, shape, place, sizes)
        return {"dtype": made.model.dtype, "attention": made.model.attention, "slots": made.engine.slots}

    found = process.on_first(decide)
    slots = found.pop("slots")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **found),
        engine=dataclasses.replace(config.engine, slots=slots),
    )


def _recorded(config: C, workdir: Path) -> C:
    """The configuration with what an earlier start recorded for its auto fields; `claim` checks the
    others."""
    theirs = flat(recorded(workdir))
    auto_fields = [name for name in ("dtype", "attention") if getattr(config.model, name) == names.AUTO]
    model: dict[str, Any] = {name: theirs[f"model.{name}"] for name in auto_fields if f"model.{name}" in theirs}
    slots = config.engine.slots or theirs.get("engine.slots", 0)
    try:
        return dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, **model),
            engine=dataclasses.replace(config.engine, slots=numbers.integer(slots, "engine.slots", low=0)),
        )
    except UserError as error:
        raise UserError(f"{workdir / 'config.json'}: {error} Choose a new --workdir.") from error


def pinned(path: str, workdir: Path) -> str:
    """A model's path; a hub id with the commit that an earlier start of this workdir recorded."""
    commit = recorded_revisions(workdir).get(path)
    return f"{path.partition('@')[0]}@{commit}" if commit else path


def recorded_revisions(workdir: Path) -> dict[str, str]:
    """{path: commit} of the models from the hub that a workdir's config.json has."""
    kept = recorded(workdir).get("revisions")
    return {path: str(commit) for path, commit in kept.items()} if isinstance(kept, dict) else {}


def claim(config: Section, workdir: Path, *, locked: bool = True, revisions: Mapping[str, str] | None = None) -> None:
    """Writes the config into the workdir, or refuses a workdir that holds another one or in which a
    run is at work.

    Called when the config is known to be good: a mistyped value must not claim the place of the run
    that corrects it. revisions: {path: commit} of models from the hub, to which `pinned` keeps.
    """
    process.on_first(lambda: _claim(config, workdir, locked, revisions or {}))


def _claim(config: Section, workdir: Path, locked: bool, revisions: Mapping[str, str]) -> None:
    _refuse_others(config, workdir)
    if locked and (who := lock(workdir / LOCK)):
        raise UserError(
            f"A run is at work in {workdir}: {who}. Wait for it or end it; the same command continues where it stopped. "
            "Another experiment needs its own --workdir."
        )
    _refuse_others(config, workdir)  # one that came before the lock
    if not (workdir / "config.json").is_file():
        workdir.mkdir(parents=True, exist_ok=True)
        fetched = {path: commit for path, commit in revisions.items() if commit}
        about = {"revisions": fetched} if fetched else {}
        text = dumps({"store_format": STORE_FORMAT, **about, **as_dict(config)}, indent=1, sort_keys=True)
        write_atomically(workdir / "config.json", text)


def _refuse_others(config: Section, workdir: Path) -> None:
    file = workdir / "config.json"
    if file.is_file():
        theirs = recorded(workdir)
        if theirs.pop("store_format", None) != STORE_FORMAT:
            raise UserError(f"{workdir} was written by another version of emjax; choose a new --workdir.")
        theirs.pop("revisions", None)
        # How fast, for how much and how closely watched may change; nothing else may.
        pace = {name.removeprefix("config.") for name, _, known in walk(config) if known.pace}
        own, other = flat(loads(dumps(as_dict(config)))), flat(theirs)
        for name in sorted({*own, *other}):
            if name not in pace and own.get(name) != other.get(name):
                raise UserError(
                    f"{workdir} belongs to another experiment: there config.{name} is {other.get(name)!r}, here it is "
                    f"{own.get(name)!r}. Give this one its own --workdir (and the same --store, if it should share finished "
                    "stages)."
                )
    elif workdir.exists() and {*workdir.iterdir()} - {workdir / "store", workdir / LOCK, workdir / SPENT, unfinished(file)}:
        raise UserError(f"{workdir} is not empty and holds no config.json of emjax. Choose a new or empty --workdir.")


def config_hash(config: Section) -> str:
    """The hash of an experiment's identity: without what only watches it, and a grid's choice of
    cells to run now."""
    pace = {name.removeprefix("config.") for name, _, known in walk(config) if known.pace}
    return digest({name: value for name, value in flat(as_dict(config)).items() if name not in pace})


# --- stages ---------------------------------------------------------------------------------------


_TRAINING = "config.train.batch_size or the last of config.train.buckets, or raise config.train.microbatches"
_SAMPLING = "config.engine.slots or config.engine.cache_length"


def staged(
    store: Store, title: str, name: str, settings: dict[str, Any], inputs: list[Stage | str], make: Callable[[Path], None]
) -> Stage:
    """Runs a stage in the store, and prints what became of it."""
    started = time.perf_counter()
    ran = False

    def loud(directory: Path) -> None:
        nonlocal ran
        ran = True
        say(f"{title} ...")
        with hardware.memory_for(title, _TRAINING if name in ("train", "pretrain") else _SAMPLING):
            make(directory)

    stage = store.run(name, loads(dumps(settings)), inputs, loud)
    state = f"done in {time.perf_counter() - started:.1f} s" if ran else "already done"
    say(f"{title}: {state} ({stage.directory})")
    return stage


@contextlib.contextmanager
def answers(store: Store, target: dict[str, Any]) -> Iterator[Path]:
    """The folder of a model's answers. They are kept apart from the verdicts, so that another
    judge, other rules and a further benchmark ask the model nothing that it has answered. target:
    all that decides the answers beside the draw.

    Inside, no other run asks this model. All processes enter.
    """
    name = digest(target)[:16]
    with alone(store.root / "locks" / f"answers-{name}", "answers of this model"):
        folder = store.root / "answers" / name
        if process.first():
            folder.mkdir(parents=True, exist_ok=True)
        yield folder


# --- names, words, devices ------------------------------------------------------------------------


def named(label: str, number: int, step: int | None = None) -> str:
    """The name of an arm's model by its round, and by the step where training had not ended."""
    return label + (f", round {number}" if number > 1 else "") + ("" if step is None else f", step {step}")


def mesh_of(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh over `devices`, or over those that are present; a size of 0 takes the devices that
    are left."""
    devices = devices or jax.devices()
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    fixed = 1
    for size in sizes.values():
        fixed *= size or 1
    return sharding.make_mesh(**{axis: size or len(devices) // fixed for axis, size in sizes.items()}, devices=devices)


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found, "backend": jax.default_backend()}


def say(text: str) -> None:
    """Prints, once for all processes."""
    if process.first():
        print(text, flush=True)


def lead(engine: Engine, work: Callable[[], Any]) -> None:
    """work(), which asks the engine, on process 0; the others run the engine with it until it is
    done."""
    if process.first():
        work()
        engine.close()
    else:
        engine.follow()


def command() -> str:
    """The command that made this, without the places it wrote to."""
    kept, rest = [], iter(sys.argv)
    for word in rest:
        if word.lstrip("-") in ("workdir", "store"):
            next(rest, None)
        elif not word.lstrip("-").startswith(("workdir=", "store=")):
            kept.append(word)
    return shlex.join(["python", *kept])
