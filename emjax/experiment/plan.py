"""What an experiment will do and cost, as text."""

from collections.abc import Sequence

from emjax import cost, presets
from emjax.config import GridConfig, TrainingConfig
from emjax.presets import Chosen


def describe(chosen: Chosen, missing: Sequence[str] = (), target: str = "") -> str:
    """The plan; `missing`: what must be there before a run. target: devices, as
    `cost.devices.target` reads them."""
    if chosen.cells:
        parts = {
            name: describe(cell, presets.missing(cell), target if isinstance(cell.config, TrainingConfig) else "")
            for name, cell in chosen.cells.items()
        }
        return cost.describe_grid(parts)
    assert not isinstance(chosen.config, GridConfig)
    limits = chosen.world.limits if chosen.world else None
    return cost.describe(chosen.config, limits=limits, benchmarks=chosen.benchmarks, missing=missing, target=target)
