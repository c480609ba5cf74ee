"""What every kind of experiment shares."""

import contextlib
import importlib.metadata
import json
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from emjax.errors import UserError
from emjax.eval import suite
from emjax.models import lora, sharding
from emjax.runtime import process
from emjax.runtime.files import digest, unfinished, write_atomically
from emjax.runtime.locks import alone, lock
from emjax.runtime.store import Stage, Store
from emjax.sampling import Engine

LOCK = "lock"  # a work directory's: the run that writes there

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "numpy")

# How fast and for how much a judge is asked, and what people said: it decides no verdict, and a finished run may change it.
_PACE = tuple(f"eval.judge.{name}" for name in ("budget.", "rates.", "failures", "collect", "replay", "sheet"))
# The same of users, raters and persona writers, and of how many of them may fail.
_CALLS = re.compile(r"interact\.(models\.\w+\.(budget|rates)\.|failures|speed\.|personas\.tries)")


def claim(config: Any, workdir: Path, *, locked: bool = True) -> None:
    """Writes the config into the workdir, or refuses a workdir that holds another one or that a run is at work in.

    Called when the config is known to be good: a mistyped value must not claim the place of the run that mends it.
    """
    process.on_first(lambda: _claim(shown(config), workdir, locked))


def _claim(mine: dict[str, Any], workdir: Path, locked: bool) -> None:
    _refuse_strangers(mine, workdir)
    if locked and (who := lock(workdir / LOCK)):
        raise UserError(
            f"A run is at work in {workdir}: {who}. Wait for it or end it; the same command goes on from where it stopped. "
            "Another experiment needs its own --workdir."
        )
    _refuse_strangers(mine, workdir)  # one that came before the lock
    if not (workdir / "config.json").is_file():
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(workdir / "config.json", json.dumps(mine, indent=1, sort_keys=True))


def _refuse_strangers(mine: dict[str, Any], workdir: Path) -> None:
    file = workdir / "config.json"
    if file.is_file():
        theirs = json.loads(file.read_text())
        for name in sorted({*_flat(mine), *_flat(theirs)}):
            if name.startswith(_PACE) or _CALLS.match(name):
                continue
            a, b = _flat(theirs).get(name), _flat(mine).get(name)
            if a != b:
                raise UserError(
                    f"{workdir} belongs to another experiment: there config.{name} is {a!r}, here it is {b!r}. "
                    "Give this one its "
                    "own --workdir (and the same --store, if it should share finished stages)."
                )
    elif workdir.exists() and {*workdir.iterdir()} - {workdir / "store", workdir / LOCK, unfinished(file)}:
        raise UserError(f"{workdir} is not empty and holds no config.json of emjax. Choose a new or empty --workdir.")


def shown(config: Any) -> dict[str, Any]:
    """The config as what an experiment is: without `watch`, which only looks at it, and a grid's choice of cells to run now."""
    return {name: value for name, value in json.loads(config.to_json()).items() if name not in ("watch", "only")}


def one_of(field: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"config.{field} is {value!r}; choose {', '.join(choices)}.")


def named(label: str, number: int, step: int | None = None) -> str:
    """An arm's model by its round, and by the step where training had not ended: its stages' name."""
    return label + (f", round {number}" if number > 1 else "") + ("" if step is None else f", step {step}")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def mesh_of(config: Any, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """config.mesh over `devices`, or over those that are present."""
    devices = devices or jax.devices()
    sizes = {axis: int(config.mesh[axis]) for axis in sharding.AXES}
    fixed = 1
    for size in sizes.values():
        fixed *= size or 1
    # 0 stands for the devices that are left.
    return sharding.make_mesh(**{axis: size or len(devices) // fixed for axis, size in sizes.items()}, devices=devices)


def lora_of(train: Any) -> lora.LoraConfig | None:
    """config.train.lora, or None for full tuning."""
    if train.tuning == "full":
        return None
    return lora.LoraConfig(**{**train.lora, "targets": tuple(train.lora.targets), "layers": tuple(train.lora.layers)})


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found, "backend": jax.default_backend()}


def staged(
    store: Store, title: str, name: str, settings: dict[str, Any], inputs: list[Stage | str], make: Callable[[Path], None]
) -> Stage:
    """Runs a stage in the store, and says so."""
    started = time.perf_counter()
    ran = False

    def loud(directory: Path) -> None:
        nonlocal ran
        ran = True
        say(f"{title} ...")
        make(directory)

    stage = store.run(name, json.loads(json.dumps(settings)), inputs, loud)
    state = f"done in {time.perf_counter() - started:.1f} s" if ran else "already done"
    say(f"{title}: {state} ({stage.directory})")
    return stage


@contextlib.contextmanager
def answers(store: Store, target: Any, how: suite.Settings) -> Iterator[Path]:
    """Where a model's answers are kept: apart from the verdicts on them, so that another judge, other rules and a further
    benchmark ask it for nothing that it has said. target: all that decides the answers beside `how`.

    Inside, no other run asks this model. For all processes to enter."""
    name = digest([target, vars(how)])[:16]
    with alone(store.root / "locks" / f"answers-{name}", "answers of this model"):
        folder = store.root / "answers" / name
        if process.first():
            folder.mkdir(parents=True, exist_ok=True)
        yield folder / "answers.jsonl"


def say(text: str) -> None:
    """Prints, once for all processes."""
    if process.first():
        print(text, flush=True)


def lead(engine: Engine, work: Callable[[], Any]) -> None:
    """work(), which asks the engine, on process 0; the others run the engine with it until it is done."""
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
