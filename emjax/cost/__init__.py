"""What an experiment will do, before it starts: its arms, and how much each stage has to run.

From declared sizes alone: no weights, no network.
"""

from collections.abc import Callable
from typing import Any

from emjax.errors import UserError
from emjax.plan import arm, evaluation, finetune, interaction
from emjax.plan.arm import Arm

__all__ = ["Arm", "arms", "describe", "headline"]

_DESCRIBED: dict[str, Callable[[Any], str]] = {
    "interaction": interaction.describe,
    "finetune": finetune.describe,
    "evaluation": evaluation.describe,
    "grid": lambda config: _grid(config),
    "pretrain": lambda config: f"pretrain   {config.documents} documents of world {config.seed}, once; then the base's gates",
}


def arms(config: Any) -> list[Arm]:
    """The arms of an experiment that trains: vanilla, control, then the treated ones; each once."""
    return (finetune if config.experiment == "finetune" else arm).arms(config)


def headline(config: Any) -> Arm:
    """The arm that the headline tells of."""
    return (finetune if config.experiment == "finetune" else arm).headline(config)


def _grid(config: Any) -> str:
    """Every cell's plan, and the jobs for a launcher."""
    parts = [f"cell       {name}\n{describe(cell)}" for name, cell in config.cells.items()]
    jobs = "\n".join(f"job        <this command, with --workdir> --config.only=\"('{name}',)\"" for name in config.cells)
    parts.append(
        f"{jobs}\nEach job is one cell and goes on where it was stopped. Cells that share stages (the untouched model's\n"
        "evaluation, conversations) wait for each other, or have a --store each. Last, the command without --config.only\n"
        "gathers them all."
    )
    return "\n\n".join(parts)


_STEPS: dict[str, Callable[[Any], int]] = {"interaction": interaction.all_steps, "finetune": finetune.all_steps}


def describe(config: Any, target: str = "") -> str:
    """The plan as text; with `target`, devices as in `devices.target`, also whether and how training fits on them."""
    if config.experiment not in _DESCRIBED:
        raise UserError(f"config.experiment is {config.experiment!r}; choose {', '.join(_DESCRIBED)}.")
    told = _DESCRIBED[config.experiment](config)
    if config.experiment in ("interaction", "finetune") and "benchmarks" in config.eval:
        steps = len(config.eval.at_steps)
        told += "\n" + "\n".join(evaluation.measured(config.eval, len(arms(config)) + steps * (len(arms(config)) - 1)))
    if target:
        if config.experiment not in _STEPS:
            raise UserError(
                f"--target plans a training, and config.experiment is {config.experiment!r}; give {', '.join(_STEPS)}."
            )
        from emjax.plan import devices  # with jax

        told += "\n" + devices.describe(config, target, _STEPS[config.experiment](config))
    return told
