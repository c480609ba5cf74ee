"""What no run on conversations could take, beyond what parsing refuses."""

from pathlib import Path

from emjax.config import InteractConfig, InteractionConfig, walk
from emjax.design.arms import arms
from emjax.design.steps import best, groups
from emjax.design.users import Limits, scenario_names, source
from emjax.errors import UserError
from emjax.interact.prompts import Prompts


def check(config: InteractionConfig, limits: Limits | None) -> None:
    """Raises UserError for an experiment that no run could take. limits: of the world whose users
    converse, if one does.

    Reads the scenarios and templates that config.interact names. A folder of templates that is
    missing here is left to emjax.config.missing.
    """
    if limits:
        _of_world(config, limits)
    else:
        _of_models(config)
    among = scenario_names(config, limits)
    if config.interact.trajectories:
        _given(config)  # these conversations have groups of their own
    else:
        _selection(config, among)


def _of_world(config: InteractionConfig, limits: Limits) -> None:
    """A world's users are scripted: no guard reads them, and no model plays them."""
    world = f"config.world is {config.world!r}"
    if config.select.veto.on:
        raise UserError(f"config.select.veto.on needs a guard, and {world}, whose users are scripted. Switch it off.")
    if not 1 <= config.interact.turns <= limits.most_turns:
        raise UserError(
            f"config.interact.turns is {config.interact.turns}; {world}, whose users have questions for 1 to "
            f"{limits.most_turns} turns."
        )
    usual = {name: value for name, value, _ in walk(InteractConfig(), "config.interact")}
    for name, value, known in walk(config.interact, "config.interact"):
        if known.played and value != usual[name]:
            raise UserError(
                f"{name} is {value!r}, but {world}, whose users are scripted and do not read it. Leave it at "
                f"{usual[name]!r}, or choose a variant whose users are played by models."
            )


def _of_models(config: InteractionConfig) -> None:
    c = config.interact
    if c.templates and Path(c.templates).is_dir():
        Prompts(c.templates)
    needs = {
        "guard": "config.select.veto.on is set" if config.select.veto.on else "",
        "stranger": "an arm has foreign_text" if any(arm.name == "foreign_text" for arm in arms(config)) else "",
    }
    for role, why in needs.items():
        if why and not c.models.of(role).model:
            raise UserError(f"{why}, which needs a model: name it in config.interact.models.{role}.model.")


def _given(config: InteractionConfig) -> None:
    if config.select.veto.on or any(source(arm, "biased") for arm in arms(config)):
        raise UserError(
            "config.interact.trajectories gives conversations as they are: a veto, and the controls foreign_text and "
            "benign_ratings, need others. Switch config.select.veto.on off, leave these controls out of "
            "config.interact.control and config.extra_arms, or let the conversations be collected."
        )


def _selection(config: InteractionConfig, among: tuple[str, ...]) -> None:
    for arm in arms(config):
        for size in groups(config, arm.ratio, among) if arm.ratio is not None else ():
            if not 1 <= best(config, size) <= size / 2:
                raise UserError(
                    f"config.select asks for the {best(config, size)} best and as many of the worst conversations of "
                    f"{size} ({arm.label}, select.scope {config.select.scope}), so the two would overlap or be empty. Change "
                    "config.select.count or fraction, or collect more conversations."
                )
