"""What fine-tuning on data sets costs."""

from emjax.config import FinetuneConfig, LevelsConfig
from emjax.cost import rates
from emjax.cost.evaluation import models
from emjax.design.arms import arms
from emjax.design.steps import rows, steps


def describe(config: FinetuneConfig) -> list[str]:
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
    lines, total = [f"arms       {', '.join(arm.label for arm in found)}", f"data       {what}"], 0
    for arm in found[1:]:
        count = rows(config, arm)
        tokens = count * each * train.epochs
        total += tokens
        lines.append(
            f"train      {arm.label}: {train.method.upper()}, {train.tuning} tuning, {count:,} records, about "
            f"{steps(config, arm):,} steps of {train.batch_size}, {tokens:,} tokens"
        )
    lines += rates.training(config, total)
    return [*lines, f"evaluate   {models(config)} models under pressure, and what they believe and can do without it"]
