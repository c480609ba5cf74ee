"""What each arm trains on, and the optimizer steps that this makes, from the declared sizes."""

import math
from collections.abc import Sequence

from emjax.config import FinetuneConfig, InteractionConfig, LevelsConfig, SetConfig
from emjax.data import sources
from emjax.data.mixture import quota
from emjax.design.arms import Arm, arms
from emjax.design.users import users


def groups(config: InteractionConfig, ratio: float | None, among: Sequence[str]) -> list[int]:
    """Conversations of each group that selection ranks by itself, in an arm of this ratio."""
    counts = users(config, ratio, among)
    people = sum(map(sum, counts.values()))
    found = {
        "global": [people],
        "scenario": [sum(both) for both in counts.values()],
        "user_type": [sum(kind) for kind in zip(*counts.values(), strict=True)],
        "user": [1] * people,
    }
    return [number * config.interact.dialogues for number in found[config.select.scope] if number]


def best(config: InteractionConfig, size: int) -> int:
    """How many of a group of this size are the best, and as many the worst."""
    return config.select.count or int(config.select.fraction * size)


def rows(config: FinetuneConfig, arm: Arm) -> int:
    """Records that this arm trains on."""
    data = config.data
    if isinstance(data, LevelsConfig):
        return _records(data.set, arm.level or data.control)
    count = _records(data.downstream, data.downstream.level)
    return count + (quota(count, arm.ratio or 0.0) if data.mode == "add" else 0)


def _records(part: SetConfig, level: str) -> int:
    """Records that are drawn: as many as are asked for, or those of the file where it is here, or
    the declared number."""
    if part.rows or part.source not in sources.SOURCES:
        return part.rows or part.nominal
    counted = sources.count(part.source, part.path, level)
    return part.nominal if counted is None else counted


def steps(config: InteractionConfig | FinetuneConfig, arm: Arm, among: Sequence[str] = ()) -> int:
    """Optimizer steps of one arm (and round). among: the scenarios of conversations.

    A conversation is counted with an answer in each of its turns.
    """
    count = rows(config, arm) if isinstance(config, FinetuneConfig) else _turns(config, arm, among)
    return math.ceil(count / config.train.batch_size) * config.train.epochs


def _turns(config: InteractionConfig, arm: Arm, among: Sequence[str]) -> int:
    """Examples of one arm and round, safety data included."""
    chosen = sum(best(config, size) for size in groups(config, arm.ratio, among))
    count = config.interact.turns * chosen * (2 if config.train.method == "kto" else 1)
    share = config.select.safety.share
    return count + (round(count * share / (1 - share)) if share else 0)


def all_steps(config: InteractionConfig | FinetuneConfig, among: Sequence[str] = ()) -> int:
    """Optimizer steps of all arms and rounds."""
    rounds = config.rounds.count if isinstance(config, InteractionConfig) else 1
    return rounds * sum(steps(config, arm, among) for arm in arms(config) if arm.ratio is not None)
