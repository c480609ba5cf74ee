"""Benchmarks, one module each (docs/benchmarks.md)."""

import importlib
from typing import cast

from emjax.errors import UserError
from emjax.eval.items import Benchmark

SHIPPED = (
    "mask",
    "deceptionbench",
    "mesa_and_mask",
    "pressure",
    "free_form",
    "admitting_unknown",
    "humaneval",
    "capability",
)
_NEEDED = ("name", "Config", "metrics", "positions", "judge", "load", "ask", "verdicts", "cost")


def find(name: str) -> Benchmark:
    """The benchmark of a shipped name, or of the import path of a user's module. Raises UserError
    if there is none."""
    path = f"{__name__}.{name}" if name in SHIPPED else name
    choices = f"choose {', '.join(SHIPPED)}, or the import path of a module"
    try:
        module = importlib.import_module(path)
    except Exception as error:  # a user's module raises what it likes
        why = "" if isinstance(error, ModuleNotFoundError) and error.name == name else f" ({type(error).__name__}: {error})"
        raise UserError(f"config.eval.benchmarks holds {name!r}, which cannot be imported{why}; {choices}.") from error
    if lacking := [field for field in _NEEDED if not hasattr(module, field)]:
        raise UserError(f"config.eval.benchmarks holds {name!r}, a module without {', '.join(lacking)}; {choices}.")
    return cast(Benchmark, module)
