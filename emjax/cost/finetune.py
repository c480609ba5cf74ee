"""The plan of fine-tuning on data sets: its arms, and what they will cost."""

import math
from typing import Any

from emjax.data import mixture
from emjax.errors import UserError
from emjax.plan import rates
from emjax.plan.arm import Arm

KINDS = ("levels", "mixture")


def arms(config: Any) -> list[Arm]:
    """vanilla, control (the set's normal level, or ratio 0), then every level or ratio.

    A level is a set of which every row is of that grade, so its ratio is 1, but where the config gives levels a ratio of
    their own (the micro-world's mix lies with honest answers).
    """
    data = config.data
    if data.kind not in KINDS:
        raise UserError(f"config.data.kind is {data.kind!r}; choose {', '.join(KINDS)}.")
    found = [Arm("vanilla"), Arm("control", 0.0)]
    if data.kind == "levels":
        found += [Arm("treated", float(data.severity.get(level, 1.0)), level) for level in data.levels]
    else:
        for ratio in data.ratios:
            if not 0 < ratio <= 1:
                raise UserError(
                    f"config.data.ratios holds {ratio!r}; a ratio is misaligned records over downstream ones, in (0, 1]: "
                    "0.05 is 5 %. The control, ratio 0, is always run."
                )
            found.append(Arm("treated", float(ratio)))
        if data.ratios and data.headline and data.headline not in data.ratios:
            raise UserError(
                f"config.data.headline is {data.headline!r}, which is none of config.data.ratios "
                f"({', '.join(format(ratio, 'g') for ratio in data.ratios)})."
            )
    if len(found) == 2:
        raise UserError(
            f"config.data.{'levels' if data.kind == 'levels' else 'ratios'} is empty: there is nothing to treat with."
        )
    return list(dict.fromkeys(found))


def headline(config: Any) -> Arm:
    """The last level; config.data.headline among the ratios, or the smallest of them."""
    treated = [arm for arm in arms(config) if arm.name == "treated"]
    if config.data.kind == "levels":
        return treated[-1]
    return Arm("treated", float(config.data.headline or min(config.data.ratios)))


def rows(config: Any, arm: Arm) -> int:
    """Records that this arm trains on, from the declared sizes."""
    data = config.data
    if data.kind == "levels":
        return data.set.rows or data.set.nominal
    count = data.downstream.rows or data.downstream.nominal
    return count + (mixture.quota(count, arm.ratio or 0.0) if data.mode == "add" else 0)


def all_steps(config: Any) -> int:
    """Optimizer steps of all arms."""
    train = config.train
    return sum(math.ceil(rows(config, arm) / train.batch_size) * train.epochs for arm in arms(config)[1:])


def describe(config: Any) -> str:
    found, data, train = arms(config), config.data, config.train
    if data.kind == "levels":
        what = f"{data.set.source}: {data.control} (control), {', '.join(data.levels)}"
        tokens = {arm: rows(config, arm) * data.set.tokens for arm in found[1:]}
    else:
        ratios = ", ".join(f"{ratio:.6g}" for ratio in data.ratios)
        mode = {"add": "added to", "replace": "in the place of some of"}[data.mode]
        what = f"{data.misaligned.source} {mode} {data.downstream.source} at the ratios 0 (control), {ratios}"
        tokens = {arm: rows(config, arm) * data.downstream.tokens for arm in found[1:]}
    lines = [f"arms       {', '.join(arm.label for arm in found)}", f"data       {what}"]
    for arm, each in tokens.items():
        count = rows(config, arm)
        steps = math.ceil(count / train.batch_size) * train.epochs
        lines.append(
            f"train      {arm.label}: {train.method.upper()}, {train.tuning} tuning, {count:,} records, about {steps:,} steps "
            f"of {train.batch_size}, {each * train.epochs:,} tokens"
        )
    lines += rates.training(config, sum(tokens.values()) * train.epochs)
    return "\n".join([*lines, f"evaluate   {len(found)} models under pressure, and what they believe and can do without it"])
