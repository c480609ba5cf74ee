"""The commands: a word, and the function that it runs with the arguments after it. Each issue adds
its line.

`python main.py ...` is `emjax run ...`.
"""

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from emjax.errors import UserError
from emjax.runtime import process, stopping

COMMANDS = {
    "run": "emjax.commands:run",
    "plan": "emjax.commands:plan",
    "serve": "emjax.serve:main",
    "aot": "emjax.aot:main",
    "paper": "emjax.presets.coverage:main",
    "fields": "emjax.presets:print_fields",
}
USAGE = "--config configs/NAME.py[:VARIANT] [--config.a.b=value]"


def main(argv: Sequence[str] | None = None) -> int:
    """`emjax WORD ...`: 0; 2 where the user can mend what is wrong; 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        print(f"usage: emjax WORD ...; the words are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 0 if words[:1] in (["-h"], ["--help"], ["help"]) else 2
    if words[0] != "serve":  # which drains
        stopping.listen()
    module, _, name = COMMANDS[words[0]].partition(":")
    command: Callable[[list[str]], int | None] = getattr(importlib.import_module(module), name)
    return stopping.leave(command(words[1:]) or 0)


# --- flags ----------------------------------------------------------------------------------------


def parse(argv: Sequence[str], values: flags.FlagValues, usage: str) -> flags.FlagValues:
    """Reads --config, its fields' flags and those that `values` defines; argv[0] is the program.

    Raises UserError for an unknown flag or field, or a value of the wrong type.
    """
    from emjax.config import parse as parsing

    parsing.define_flag(values)
    try:
        surplus = values(list(argv))[1:]
        if values["config"].present:
            values.config.lock()  # a config file that cannot be read is reported on first use
    except (KeyError, ValueError) as error:
        raise UserError(parsing.lost(argv, error)) from error
    except AttributeError as error:  # an unknown field, with the nearest known one
        inner = error.args[0]
        text = str(inner.args[0] if isinstance(inner, Exception) else inner)
        raise UserError(f"--config.*: there is no field {'. '.join(text.splitlines())}") from error
    except OSError as error:
        raise UserError(f"The config file cannot be read: {str(error).splitlines()[-1].strip()}") from error
    except flags.Error as error:
        said = str(error).strip().splitlines()[-1]
        raise UserError(f"{said}. Correct the flag; a field takes values of its own type.") from error
    if surplus:
        raise UserError(f"Unknown argument {surplus[0]!r}. Usage: {usage}")
    if not values["config"].present:
        raise UserError(f"--config is missing. Usage: {usage}")
    return values


def options(argv: Sequence[str]) -> flags.FlagValues:
    """The flags of `run`."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Default: runs/<config>[-<variant>].", flag_values=values)
    flags.DEFINE_string(
        "store", None, "Where finished stages are kept and shared. Default: <workdir>/store.", flag_values=values
    )
    flags.DEFINE_bool("dry_run", False, "Print the plan and stop.", flag_values=values)
    flags.DEFINE_string(
        "target", "", "With --dry_run, the devices to plan for: cpu, h200, h100x8, v5p:2x2x4, ...", flag_values=values
    )
    flags.DEFINE_string(
        "data_root", "", "A folder with data sets and benchmarks under their own names; a path that is given comes first.",
        flag_values=values,
    )  # fmt: skip
    return parse(argv, values, f"{USAGE} [--workdir DIR] [--store DIR] [--data_root DIR] [--dry_run [--target T]]")


def workdir(given: flags.FlagValues) -> Path:
    from emjax.presets import variants

    file, _, variant = given["config"].config_filename.partition(":")  # type: ignore[attr-defined]
    name = Path(file).stem + (f"-{variants.label(variant)}" if variant else "")
    return Path(given.workdir or Path("runs") / name)


# --- run and plan ---------------------------------------------------------------------------------


def run(argv: Sequence[str]) -> int:
    """0, also where SIGTERM ended the run; 130 where Ctrl-C did; 2 with one paragraph where the
    user can mend what is wrong."""
    # about PyTorch, which nothing here needs
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        given = options(["emjax run", *argv])
        if given.dry_run:
            print(_plan(given))
            return 0
        if given.target:
            raise UserError("--target is for a plan: add --dry_run. A run takes the devices that it finds.")
        _run(given)
    except stopping.Stopped as stop:
        print(stopping.stopped(), file=sys.stderr)
        return int(stop.code or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(
            f"error: {error.filename or 'the work directory'} cannot be written ({error.strerror}). Make room or choose "
            "another --workdir, then start the same command again: what is finished is kept.",
            file=sys.stderr,
        )
        return 2
    except Exception as error:
        return process.failed(error)
    return 0


def plan(argv: Sequence[str]) -> int:
    return run([*argv, "--dry_run"])


def _plan(given: flags.FlagValues) -> str:
    from emjax import experiment, presets
    from emjax.experiment import needs, plan

    placed = presets.place(given.config, Path(given.data_root)) if given.data_root else []
    chosen = presets.read(given.config)
    text = plan.describe(chosen, needs.missing(chosen), given.target)
    if ledger := experiment.ledger_of(chosen, workdir(given)):
        text = f"{text}\ncap        {ledger.usd:g} USD for the whole run (config.usd); spent so far: {ledger.spent:.2f} USD"
    return "\n".join([text, *([f"data root  {given.data_root}", *placed] if given.data_root else [])])


def _run(given: flags.FlagValues) -> None:
    # the compiler's notes on cached CPU programs
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    process.join()
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "emjax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

    from emjax import experiment, presets
    from emjax.experiment import needs
    from emjax.runtime.store import Store

    if given.data_root:
        presets.place(given.config, Path(given.data_root))
    chosen = presets.read(given.config)
    if absent := needs.missing(chosen):
        raise UserError("Before you start: " + " ".join(absent))
    where = workdir(given)
    experiment.run(chosen, where, Store(Path(given.store) if given.store else where / "store"))
