"""What an experiment will do, before it starts: its arms, and how much each stage has to run.

From declared sizes alone: no weights, no network.
"""

from typing import Any

from emjax.errors import UserError
from emjax.plan import evaluation, interaction
from emjax.plan.arm import Arm, arms, headline

__all__ = ["Arm", "arms", "describe", "headline"]

_DESCRIBED = {
    "interaction": interaction.describe,
    "evaluation": evaluation.describe,
    "pretrain": lambda config: f"pretrain   {config.documents} documents of world {config.seed}, once; then the base's gates",
}


def describe(config: Any) -> str:
    """The plan as text."""
    if config.experiment not in _DESCRIBED:
        raise UserError(f"config.experiment is {config.experiment!r}; choose {', '.join(_DESCRIBED)}.")
    return _DESCRIBED[config.experiment](config)
