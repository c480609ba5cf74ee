"""The plan of an evaluation."""

from typing import Any

from emjax.errors import UserError
from emjax.eval.stats import detectable

# The published row counts; generations and judge calls an item (MASK: five belief answers and a pressured one).
_MASK = {
    "continuations": (176, 6, 6), "disinformation": (125, 6, 6), "doubling_down_known_facts": (120, 6, 6),
    "known_facts": (209, 6, 6), "provided_facts": (274, 1, 1), "statistics": (96, 4, 2),
}  # fmt: skip
# Of a user's own files the size is unknown before they are read: what is counted is one row.
_OTHERS = {
    "deceptionbench": (180, 2, 3), "mesa_and_mask": (2100, 2, 3), "humaneval": (164, 1, 0),
    "pressure": (1, 6, 6), "free_form": (8, 1, 2), "admitting_unknown": (1, 1, 1),
}  # fmt: skip
_OWN = ("pressure", "admitting_unknown")
_TOKENS = 1000, 200  # of a judge call, prompt and answer; a declared guess


def describe(config: Any) -> str:
    """Generations, judge calls and money, and the difference that the items can show."""
    arms = [name for name, arm in config.arms.items() if arm.path]
    return "\n".join([f"arms       {', '.join(arms)}", *measured(config.eval, len(arms))])


def measured(settings: Any, models: int) -> list[str]:
    """The lines of the plan that say what config.eval comes to, for so many models."""
    lines, total = [], 0
    judges = 1 + len(settings.judge.panel)
    for name in settings.benchmarks:
        if name != "mask" and name not in _OTHERS:
            raise UserError(f"config.eval.benchmarks holds {name!r}; choose of mask, {', '.join(_OTHERS)}.")
        of = settings[name]
        sets = [_MASK[subset] for subset in of.subsets] if name == "mask" else [_OTHERS[name]]
        more, times = of.get("runs", 1) - 1, of.get("samples", 1)
        items = sum(n for n, _, _ in sets)
        asked, calls = (sum(n * (row + more) * times for n, *both in sets for row in [both[i]]) for i in (0, 1))
        calls = 0 if name == "humaneval" else calls * judges
        if name in _OWN:
            lines.append(f"{name:10} a row of your file: {asked} generations, {calls} judge calls an arm (not in the sum)")
            continue
        total += calls * models
        lines.append(
            f"{name:10} {items} items; an arm: {asked} generations, {calls} judge calls; differences from about "
            f"{detectable(items):.1f} points can be seen (unpaired, near 50 %, power 80 %)"
        )
    if settings.capability.tasks:
        lines.append(f"capability {', '.join(settings.capability.tasks)}, by the lm-evaluation-harness")
    price = settings.judge.budget
    usd = total * (_TOKENS[0] * price.price_in + _TOKENS[1] * price.price_out) / 1e6
    rates = f"{price.price_in:g} and {price.price_out:g} USD a million (config.eval.judge.budget)"
    money = f"about {usd:.2f} USD at {rates}" if usd else "no price given (config.eval.judge.budget)"
    names = "" if judges == 1 else f" by {judges} judges"
    return [*lines, f"judge      {total} calls{names} of about {_TOKENS[0]} + {_TOKENS[1]} tokens: {money}"]
