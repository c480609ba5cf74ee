"""Who converses for which arm: users of each type and scenario, and the collections that arms
share."""

import dataclasses
from collections.abc import Sequence

from emjax.config import InteractionConfig
from emjax.design.arms import Arm, arms
from emjax.design.quotas import quotas
from emjax.interact import scenarios


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a world says of its users: the scenario they belong to, and the most turns of a
    conversation."""

    scenario: str
    most_turns: int


def scenario_names(config: InteractionConfig, limits: Limits | None) -> tuple[str, ...]:
    """The scenarios that users are spread over: the world's one, or those of
    config.interact.domains."""
    if limits:
        return (limits.scenario,)
    return tuple(scenario.name for scenario in scenarios.load(config.interact.domains, config.interact.scenarios))


def users(config: InteractionConfig, ratio: float | None, among: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(benign, biased) users of each scenario in `among` at this ratio.

    Under fixed_biased the control has as many users as the treated arm, all of them benign, so that
    both train alike.
    """
    c = config.interact
    number = c.users
    if c.scheme == "fixed_biased" and not ratio and c.biased_ratio:
        treated = quotas(c.users, among, c.biased_ratio, scheme=c.scheme, biased=c.biased_users, seed=config.seed)
        number = sum(map(sum, treated.values()))
    return quotas(number, among, ratio or 0.0, scheme=c.scheme, biased=c.biased_users, seed=config.seed)


def source(arm: Arm, kind: str) -> str:
    """The collection from which an arm takes its users of one type: "" the ordinary one, or that of
    its control."""
    if arm.name == "benign_ratings":
        return arm.name if kind == "biased" else ""
    return arm.name if arm.name == "foreign_text" else ""


def demand(config: InteractionConfig, wanted: Sequence[Arm], among: Sequence[str]) -> dict[tuple[str, str], dict[str, int]]:
    """{(source, user type): users of each scenario}: as many as the arm that needs most."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for arm in wanted:
        for place, kind in enumerate(("benign", "biased")):
            of = source(arm, kind)
            for key in {of, ""} if of == "benign_ratings" else {of}:
                counts = found.setdefault((key, kind), {})
                for name, both in users(config, arm.ratio, among).items():
                    counts[name] = max(counts.get(name, 0), both[place])
    return found


@dataclasses.dataclass(frozen=True)
class Collected:
    """Conversations of all rounds."""

    talks: int  # conversations that are held
    foreign: int  # of these, in another model's words
    rated: int  # ratings of whole conversations: benign_ratings rates some of them again


def collected(config: InteractionConfig, among: Sequence[str]) -> Collected:
    """What all arms and rounds collect. The first round's conversations are shared; later rounds
    collect for each arm."""
    trained = [arm for arm in arms(config) if arm.ratio is not None]
    rounds = [demand(config, trained, among)]
    rounds += [demand(config, [arm], among) for arm in trained] * (config.rounds.count - 1)
    talks = foreign = rated = 0
    for pools in rounds:
        for (of, _), counts in pools.items():
            number = sum(counts.values()) * config.interact.dialogues
            rated += number
            talks += number * (of != "benign_ratings")
            foreign += number * (of == "foreign_text")
    return Collected(talks, foreign, rated)
