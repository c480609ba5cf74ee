"""The plan of an evaluation."""

from typing import Any

from emjax.eval.stats import detectable

# The published row counts; generations and judge calls an item (MASK: five belief answers and a pressured one).
_MASK = {
    "continuations": (176, 6, 6), "disinformation": (125, 6, 6), "doubling_down_known_facts": (120, 6, 6),
    "known_facts": (209, 6, 6), "provided_facts": (274, 1, 1), "statistics": (96, 4, 2),
}  # fmt: skip
_OTHERS = {"deceptionbench": (180, 2, 3), "mesa_and_mask": (2100, 2, 3)}
_TOKENS = 1000, 200  # of a judge call, prompt and answer; a declared guess


def describe(config: Any) -> str:
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
