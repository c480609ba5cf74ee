"""What an experiment will cost, before it starts: how much each stage runs, and what that takes in
time, memory and money.

Everything follows from declared sizes: no weights, no network.

    interaction, finetune, evaluation   what each kind of experiment runs
    rates                               hours, at measured speeds
    devices                             memory, time and money on the devices of --target
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from emjax.config import EvaluationConfig, FinetuneConfig, InteractionConfig, PretrainConfig, TrainingConfig
from emjax.cost import devices, evaluation, finetune, interaction, rates
from emjax.cost.evaluation import totals
from emjax.cost.rates import Target
from emjax.design.check import check
from emjax.design.steps import all_steps
from emjax.design.users import Limits, scenario_names
from emjax.errors import UserError
from emjax.eval.items import Benchmark

__all__ = ["Total", "describe", "describe_grid", "total", "totals"]


Config = InteractionConfig | FinetuneConfig | EvaluationConfig | PretrainConfig


class Total(NamedTuple):
    """What all of an experiment takes, as far as it can be known beforehand.

    calls: to endpoints; unpriced: who is asked there without a price. hours: on the target, of
    training, conversations and answers; None: the model's size is not known here.
    """

    calls: int
    usd: float
    unpriced: tuple[str, ...]
    hours: float | None

    def __add__(self, other: "Total") -> "Total":  # type: ignore[override]
        hours = None if self.hours is None or other.hours is None else self.hours + other.hours
        unpriced = tuple(dict.fromkeys((*self.unpriced, *other.unpriced)))
        return Total(self.calls + other.calls, self.usd + other.usd, unpriced, hours)

    def line(self, where: Target) -> str:
        """The plan's line."""
        more = f", and what {', '.join(self.unpriced)} cost" if self.unpriced else ""
        money = f"{self.calls:,} calls to endpoints, about {self.usd:,.2f} USD{more}"
        if self.hours is None:
            return f"in all     {money}; the hours are not known: the model's size is not known here"
        rent = where.usd(self.hours)
        price = "" if rent is None else f", about {rent:,.0f} USD of rent"
        return f"in all     {money}; about {self.hours:.2g} hours on {where}{price}"


def total(config: Config, *, limits: Limits | None, benchmarks: Mapping[str, Benchmark], target: str = "") -> Total:
    """What the experiment takes. The arguments are those of `describe`."""
    where, calls, usd, seconds = rates.target(target), 0, 0.0, 0.0
    unpriced: list[str] = []
    if isinstance(config, PretrainConfig) or (isinstance(config, TrainingConfig) and config.world):
        return Total(0, 0.0, (), 0.0)
    if isinstance(config, InteractionConfig) and not config.interact.trajectories:
        among = scenario_names(config, limits)
        calls, usd, unpriced = interaction.money(config, among)
        read, drawn = interaction.sampled(config, among)
        speed = rates.conversing(config, where)
        seconds += read / speed.read + drawn / speed.drawn
    judged = evaluation.endpoints(config, benchmarks)
    local = [config.model.path] if isinstance(config, TrainingConfig) else [
        arm.path for arm in config.arms.named().values() if not arm.endpoint
    ]  # fmt: skip
    each = evaluation.models(config) / max(1, len(local))
    for path in local:
        read, drawn = evaluation.sampled(config.eval, benchmarks, 1)
        speed = rates.engine(path, config.model, where, config.engine.slots)
        seconds += each * (read / speed.read + drawn / speed.drawn)
    if isinstance(config, TrainingConfig) and (found := rates.training(config, where)):
        seconds += _tokens(config, limits) / found[0]
    hours = seconds / 3600 if all(rates.billions(path) for path in local) else None
    return Total(calls + judged.calls, usd + judged.usd, (*unpriced, *judged.unpriced), hours)


def _tokens(config: InteractionConfig | FinetuneConfig, limits: Limits | None) -> float:
    if isinstance(config, FinetuneConfig):
        return finetune.tokens(config)
    return interaction.tokens(config, scenario_names(config, limits))


def describe(
    config: Config,
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
    fits them, and its hours are for them. Raises UserError for what no run could take.
    """
    among: Sequence[str] = ()
    where = rates.target(target)
    if isinstance(config, InteractionConfig):
        check(config, limits)
        among = scenario_names(config, limits)
        lines = interaction.describe(config, among, where, played=limits is None)
    elif isinstance(config, FinetuneConfig):
        lines = finetune.describe(config, where)
    elif isinstance(config, EvaluationConfig):
        lines = evaluation.describe(config)
    else:
        lines = [f"pretrain   {config.documents} documents of world {config.seed}, once; then the base's gates"]
    if isinstance(config, EvaluationConfig) or (not isinstance(config, PretrainConfig) and not config.world):
        lines += evaluation.measured(config.eval, benchmarks, evaluation.models(config))
        lines.append(total(config, limits=limits, benchmarks=benchmarks, target=target).line(where))
    if target:
        if isinstance(config, PretrainConfig):
            raise UserError(
                f"--target plans a training or an evaluation, and config.experiment is {config.experiment!r}; leave it out."
            )
        if isinstance(config, InteractionConfig | FinetuneConfig):
            lines.append(devices.describe(config, target, all_steps(config, among)))
    if missing:
        lines += ["before you start", *(f"  {sentence}" for sentence in missing)]
    return "\n".join(lines)


def describe_grid(parts: Mapping[str, str], line: str = "") -> str:
    """The plan of a grid from its cells' plans, by the cell's name, with the jobs for a
    launcher. line: what all cells take."""
    cells = [f"cell       {name}\n{text}" for name, text in parts.items()]
    jobs = "\n".join(f"job        <this command, with --workdir> --config.only=\"('{name}',)\"" for name in parts)
    cells.append(
        f"{jobs}\nEach job runs one cell and resumes where it was stopped. Cells that share stages (the untouched model's\n"
        "evaluation, conversations) wait for each other unless each has its own --store. When all are done, the command\n"
        "without --config.only gathers them."
    )
    if line:
        cells.append(
            f"{line}\n           Cells that share a stage make it once, and their judges' replies: this counts it in each."
        )
    return "\n\n".join(cells)
