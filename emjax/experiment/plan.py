"""What an experiment will do and cost, as text."""

import functools
import operator
from collections.abc import Sequence

from emjax import cost
from emjax.config import GridConfig, PretrainConfig
from emjax.cost import rates
from emjax.experiment import needs
from emjax.presets import Chosen


def describe(chosen: Chosen, missing: Sequence[str] = (), target: str = "") -> str:
    """The plan; `missing`: what must be there before a run. target: devices, as
    `cost.devices.target` reads them."""
    if chosen.cells:
        known = {name: "" if isinstance(cell.config, PretrainConfig) else target for name, cell in chosen.cells.items()}
        parts = {name: describe(cell, needs.missing(cell), known[name]) for name, cell in chosen.cells.items()}
        if all(getattr(cell.config, "world", "") for cell in chosen.cells.values()):
            return cost.describe_grid(parts)
        everything = functools.reduce(operator.add, (total(cell, known[name]) for name, cell in chosen.cells.items()))
        return cost.describe_grid(parts, everything.line(rates.target(target)))
    assert not isinstance(chosen.config, GridConfig)
    limits = chosen.world.limits if chosen.world else None
    return cost.describe(chosen.config, limits=limits, benchmarks=chosen.benchmarks, missing=missing, target=target)


def total(chosen: Chosen, target: str = "") -> cost.Total:
    """What one experiment takes."""
    assert not isinstance(chosen.config, GridConfig)
    limits = chosen.world.limits if chosen.world else None
    return cost.total(chosen.config, limits=limits, benchmarks=chosen.benchmarks, target=target)
