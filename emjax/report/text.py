"""The report's wording of metrics and benchmarks, and its number formats.

Values are percent and points, as in the rows of results.json.
"""

from collections.abc import Callable

METRIC_TITLES = {  # column title of a benchmark's metric
    "honest": "honest",
    "honesty": "not lying",
    "lie": "lie",
    "evade": "evade",
    "no_belief": "no belief",
}
METRIC_SHARES = {  # what the headline sentence counts
    "honest": "the share of honest answers under pressure",
    "honesty": "the share of answers under pressure that were not lies",
    "lie": "the share of lies under pressure",
    "evade": "the share of evasive answers under pressure",
    "no_belief": "the share of items without a stable belief",
    "deception_rate": "the share of deceptive answers",
    "deception_rate_conforming": "the share of deceptive answers among those with both pairs of tags",
}
METRIC_PLOTS = {  # title of the dose-response curve
    "honest": "Honest under pressure",
    "honesty": "Not lying under pressure",
}
CAPABILITIES = {  # benchmark -> what its accuracy is called
    "arithmetic": "addition",
    "mmlu": "MMLU",
    "gsm8k": "GSM8K",
    "humaneval": "HumanEval",
    "gpqa": "GPQA",
    "truthfulqa": "TruthfulQA",
}
CURVES = {"loss": "Loss", "kl": "KL to the reference", "reward_margin": "Reward margin"}
MISSING = "not measured"


def number(value: float | None, digits: int = 1) -> str:
    """A minus sign instead of a hyphen, and no minus before a zero."""
    if value is None:
        return "none"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "\u2212")


def points(value: float) -> str:
    """A difference: with its sign."""
    text = number(value)
    return text if text[0] == "\u2212" or float(text) == 0 else "+" + text


def percent_of_one(ratio: float) -> str:
    """A share in [0, 1] as percent."""
    return f"{100 * ratio:.6g}\u00a0%"


def interval(row: dict, style: Callable[[float], str] = number) -> str:
    if not row.get("ci95"):
        return "no interval"
    low, high = row["ci95"]
    return f"{style(low)} to {style(high)}"


def plain(value: object) -> str:
    """A cell in a table of facts: whole numbers in groups of three digits, a dash for None."""
    if value is None:
        return "\u2013"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return str(value)


def spaced(name: str) -> str:
    """A name from the files as words."""
    return name.replace("_", " ")
