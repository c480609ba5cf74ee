"""What an experiment will cost, before it starts: how much each stage runs, and what that takes in
time, memory and money.

Everything follows from declared sizes: no weights, no network.

    interaction, finetune, evaluation   what each kind of experiment runs
    rates                               hours, at measured speeds
    devices                             memory, time and money on the devices of --target
"""

from collections.abc import Mapping, Sequence

from emjax.config import EvaluationConfig, FinetuneConfig, InteractionConfig, PretrainConfig
from emjax.cost import evaluation, finetune, interaction
from emjax.cost.evaluation import totals
from emjax.design.check import check
from emjax.design.steps import all_steps
from emjax.design.users import Limits, scenario_names
from emjax.errors import UserError
from emjax.eval.items import Benchmark

__all__ = ["describe", "describe_grid", "totals"]


def describe(
    config: InteractionConfig | FinetuneConfig | EvaluationConfig | PretrainConfig,
    *,
    limits: Limits | None,
    benchmarks: Mapping[str, Benchmark],
    missing: Sequence[str] = (),
    target: str = "",
) -> str:
    """The plan as text.

    limits: of the world whose users converse, if one does. benchmarks: what the models are measured
    on, by name; a world's have an exact judge and are not listed. missing: sentences on what is not
    here yet. target: devices as in `devices.target`; the plan then says whether and how training
    fits them. Raises UserError for what no run could take.
    """
    among: Sequence[str] = ()
    if isinstance(config, InteractionConfig):
        check(config, limits)
        among = scenario_names(config, limits)
        lines = interaction.describe(config, among, played=limits is None)
    elif isinstance(config, FinetuneConfig):
        lines = finetune.describe(config)
    elif isinstance(config, EvaluationConfig):
        lines = evaluation.describe(config)
    else:
        lines = [f"pretrain   {config.documents} documents of world {config.seed}, once; then the base's gates"]
    if isinstance(config, EvaluationConfig) or (not isinstance(config, PretrainConfig) and not config.world):
        lines += evaluation.measured(config.eval, benchmarks, evaluation.models(config))
    if target:
        if not isinstance(config, InteractionConfig | FinetuneConfig):
            raise UserError(
                f"--target plans a training, and config.experiment is {config.experiment!r}; use it with an experiment of the "
                "kind interaction or finetune."
            )
        from emjax.cost import devices  # with jax

        lines.append(devices.describe(config, target, all_steps(config, among)))
    if missing:
        lines += ["before you start", *(f"  {sentence}" for sentence in missing)]
    return "\n".join(lines)


def describe_grid(parts: Mapping[str, str]) -> str:
    """The plan of a grid from its cells' plans, by the cell's name, with the jobs for a
    launcher."""
    cells = [f"cell       {name}\n{text}" for name, text in parts.items()]
    jobs = "\n".join(f"job        <this command, with --workdir> --config.only=\"('{name}',)\"" for name in parts)
    cells.append(
        f"{jobs}\nEach job runs one cell and resumes where it was stopped. Cells that share stages (the untouched model's\n"
        "evaluation, conversations) wait for each other unless each has its own --store. When all are done, the command\n"
        "without --config.only gathers them."
    )
    return "\n\n".join(cells)
