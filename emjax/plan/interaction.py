"""The plan of self-training on conversations."""

import math
from typing import Any

from emjax.interact.selection import share
from emjax.plan.arm import arms


def steps(config: Any, conversations: int) -> int:
    """Optimizer steps of one arm from the declared sizes; two answers a conversation, as in the paper."""
    users = conversations // config.interact.dialogues
    groups = users if config.select.scope == "user" else 1
    k = config.select.count or int(config.select.fraction * conversations / groups)
    rows = 2 * groups * k * (2 if config.train.method == "kto" else 1)
    return math.ceil(rows / config.train.batch_size) * config.train.epochs


def describe(config: Any) -> str:
    each = config.interact.users * config.interact.dialogues
    trained = [arm for arm in arms(config) if arm.name != "vanilla"]
    biased = max(share(config.interact.users, arm.ratio or 0) for arm in trained) * config.interact.dialogues
    lines = [
        f"arms       {', '.join(arm.label for arm in arms(config))}",
        f"collect    {each} conversations with benign users, {biased} with biased ones (shared by all arms)",
        f"select     the best and the worst {config.select.count or format(config.select.fraction, '.0%')} of "
        f"each {config.select.scope} group",
        f"train      {len(trained)} x {config.train.method.upper()}, {config.train.tuning} tuning, about "
        f"{steps(config, each)} steps of "
        f"{config.train.batch_size} examples",
        f"evaluate   {len(arms(config))} models under pressure, and what they believe and can do without it",
    ]
    return "\n".join(lines)
