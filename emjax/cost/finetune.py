"""What fine-tuning on data sets costs."""

from emjax.config import FinetuneConfig, LevelsConfig
from emjax.cost import rates
from emjax.cost.evaluation import evaluated
from emjax.cost.rates import Target
from emjax.design.arms import arms
from emjax.design.steps import rows, steps


def tokens(config: FinetuneConfig) -> int:
    """Tokens that all arms train on, by the declared length of a record."""
    each = config.data.set.tokens if isinstance(config.data, LevelsConfig) else config.data.downstream.tokens
    return sum(rows(config, arm) for arm in arms(config)[1:]) * each * config.train.epochs


def describe(config: FinetuneConfig, where: Target) -> list[str]:
    """The plan's lines."""
    found, data, train = arms(config), config.data, config.train
    if isinstance(data, LevelsConfig):
        what = f"{data.set.source}: {data.control} (control), {', '.join(data.levels)}"
        each = data.set.tokens
    else:
        ratios = ", ".join(f"{ratio:.6g}" for ratio in data.ratios)
        mode = {"add": "added to", "replace": "in the place of some of"}[data.mode]
        what = f"{data.misaligned.source} {mode} {data.downstream.source} at the ratios 0 (control), {ratios}"
        each = data.downstream.tokens
    lines = [f"arms       {', '.join(arm.label for arm in found)}", f"data       {what}"]
    for arm in found[1:]:
        count = rows(config, arm)
        lines.append(
            f"train      {arm.label}: {train.method.upper()}, {train.tuning} tuning, {count:,} records, about "
            f"{steps(config, arm):,} steps of {train.batch_size}, {count * each * train.epochs:,} tokens"
        )
    return [*lines, *rates.trained(config, tokens(config), where), evaluated(config)]
