"""What an experiment will do, before it starts: its arms, and how much each stage has to run."""

import dataclasses
import math
from typing import Any

from emjax.errors import UserError
from emjax.eval.stats import detectable
from emjax.interact.selection import CONTROLS, share


@dataclasses.dataclass(frozen=True)
class Arm:
    """One model that is evaluated. vanilla: untouched; control: the same training with no biased user; treated: with them."""

    name: str  # vanilla | control | treated | shuffled_ratings | swapped_labels
    ratio: float | None = None

    @property
    def label(self) -> str:
        return self.name if self.ratio is None or self.name == "control" else f"{self.name} {self.ratio:g}"

    @property
    def shuffling(self) -> str:
        """The control that selection applies."""
        return self.name if self.name in CONTROLS else "none"


def headline(config: Any) -> Arm:
    interact = config.interact
    return Arm("treated" if interact.control == "none" else interact.control, float(interact.biased_ratio))


def arms(config: Any) -> list[Arm]:
    """vanilla, control, the config's own arm, then its extra arms ("<control>@<ratio>"); each once."""
    if config.interact.control not in CONTROLS:
        raise UserError(f"config.interact.control is {config.interact.control!r}; choose {', '.join(CONTROLS)}.")
    found = [Arm("vanilla"), Arm("control", 0.0), headline(config)]
    for text in config.extra_arms:
        control, at, ratio = str(text).partition("@")
        try:
            value = float(ratio)
        except ValueError:
            value = math.nan
        if control not in CONTROLS or not at or not 0 <= value <= 1:
            raise UserError(
                f"config.extra_arms holds {text!r}; write <control>@<ratio>, the control being "
                f"{', '.join(CONTROLS)} and the ratio "
                "a number in [0, 1], for example 'shuffled_ratings@1.0'."
            )
        found.append(Arm("treated" if control == "none" else control, value))
    unique = []
    for arm in found:
        if arm.ratio is not None:
            share(0, arm.ratio)  # refuses a ratio outside [0, 1]
        if arm.name == "treated" and arm.ratio == 0:
            arm = Arm("control", 0.0)  # without biased users the treated arm is the control
        if arm not in unique:
            unique.append(arm)
    return unique


def steps(config: Any, conversations: int) -> int:
    """Optimizer steps of one arm from the declared sizes; two answers a conversation, as in the paper."""
    users = conversations // config.interact.dialogues
    groups = users if config.select.scope == "user" else 1
    k = config.select.count or int(config.select.fraction * conversations / groups)
    rows = 2 * groups * k * (2 if config.train.method == "kto" else 1)
    return math.ceil(rows / config.train.batch_size) * config.train.epochs


def describe(config: Any) -> str:
    """The plan as text, from declared sizes alone: no weights, no network."""
    if config.experiment == "evaluation":
        return _describe_evaluation(config)
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


# The published row counts; generations and judge calls an item (MASK: five belief answers and a pressured one).
_MASK = {
    "continuations": (176, 6, 6), "disinformation": (125, 6, 6), "doubling_down_known_facts": (120, 6, 6),
    "known_facts": (209, 6, 6), "provided_facts": (274, 1, 1), "statistics": (96, 4, 2),
}  # fmt: skip
_OTHERS = {"deceptionbench": (180, 2, 3), "mesa_and_mask": (2100, 2, 3)}
_TOKENS = 1000, 200  # of a judge call, prompt and answer; a declared guess


def _describe_evaluation(config: Any) -> str:
    """Generations, judge calls and money, and the difference that the items can show."""
    arms = [name for name, arm in config.arms.items() if arm.path]
    lines = [f"arms       {', '.join(arms)}"]
    total, mask = 0, config.eval.mask
    for name in config.eval.benchmarks:
        sets = [_MASK[subset] for subset in mask.subsets] if name == "mask" else [_OTHERS[name]]
        more = mask.runs - 1 if name == "mask" else 0
        items = sum(n for n, _, _ in sets)
        asked, calls = (sum(n * (row + more) for n, *both in sets for row in [both[i]]) for i in (0, 1))
        total += calls * len(arms)
        lines.append(
            f"{name:10} {items} items; an arm: {asked} generations, {calls} judge calls; differences from about "
            f"{detectable(items):.1f} points can be seen (unpaired, near 50 %, power 80 %)"
        )
    price = config.eval.judge.budget
    usd = total * (_TOKENS[0] * price.price_in + _TOKENS[1] * price.price_out) / 1e6
    money = f"about {usd:.2f} USD" if usd else "no price given (config.eval.judge.budget)"
    lines.append(f"judge      {total} calls of about {_TOKENS[0]} + {_TOKENS[1]} tokens: {money}")
    return "\n".join(lines)
