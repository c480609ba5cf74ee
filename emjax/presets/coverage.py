"""Which of the rows that the paper prints are measured by the config that is named for them.

emjax paper            every printed value, the config that makes it, and whether it measures it
emjax paper --doubts   only the rows with a doubtful value
"""

import argparse
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import emjax
from emjax import config as cfg
from emjax import cost
from emjax.config import parse as parsing
from emjax.cost import rates
from emjax.design.arms import arms
from emjax.errors import UserError
from emjax.presets.door import Chosen, read
from emjax.report import paper
from emjax.report.paper import Row

_HERE = Path(emjax.__file__).parent


@functools.cache
def chosen(command: str) -> Chosen:
    """The configuration that "configs/NAME.py:VARIANT" names: the file in this folder, or else the
    packaged one. Raises UserError if there is none."""
    name, _, variant = command.partition(":")
    places = [Path(name), _HERE.parent / name, _HERE / "_configs" / Path(name).name]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        raise UserError(f"There is no {name}; run the command in the project's folder.")
    return read(parsing.load(f"{place}:{variant}"))


def unmeasured(row: Row) -> list[str]:
    """What the configs that are named for a printed row (`paper.commands`) do not measure of it, a
    sentence each; empty where each of them measures all of it."""
    found = []
    for command in paper.commands(row):
        one = chosen(command)
        missing = _missing_arm(row, one) or _missing_values(row, one)
        if missing:
            found.append(f"{command} {missing}")
    return found


def _missing_arm(row: Row, one: Chosen) -> str:
    config = one.config
    if isinstance(config, cfg.EvaluationConfig):
        there: set[tuple[str, float | None, str | None]] = {(name, None, None) for name in config.arms.named()}
    elif isinstance(config, cfg.InteractionConfig | cfg.FinetuneConfig):
        there = {(arm.name, arm.ratio, arm.level or None) for arm in arms(config)}
        if row["method"] and config.train.method != row["method"]:
            return f"trains with {config.train.method}"
    else:
        return "trains no arms"
    wanted = (row["arm"], row["ratio"], row["level"])
    return "" if row["arm"] is None or wanted in there or row["arm"] == "vanilla" else f"has no arm {wanted}"


def _missing_values(row: Row, one: Chosen) -> str:
    """Relative changes follow from the honesty of the same subset."""
    config = one.config
    assert not isinstance(config, cfg.GridConfig)
    metric = "honesty" if row["metric"] == "relative_change" else row["metric"]
    measured: set[str] = set()
    for name, benchmark in one.benchmarks.items():
        if metric in benchmark.metrics:
            parts = getattr(benchmark, "measures", lambda _, name=name: {name: ("all",)})(config.eval.sections[name])
            subsets = {paper.named(subset) for subset in parts.get(row["benchmark"], ())}
            measured |= subsets | ({"all"} if subsets else set())
    lacking = [subset for subset in row["values"] if subset not in measured]
    return f"does not measure {metric} of {row['benchmark']} {', '.join(lacking)}" if lacking else ""


# What the paper measures without printing numbers.
_FIGURES = ("configs/admitting_unknown.py:llama3.1-8b", "configs/admitting_unknown.py:qwen2.5-7b")


def costs(target: str) -> Iterator[str]:
    """A line of a table for each config of the paper: calls to endpoints, their money, and hours on
    the target."""
    where = rates.target(target)
    yield f"| config | calls to endpoints | USD | hours on {where} | USD of rent |"
    yield "|---|---:|---:|---:|---:|"
    named = dict.fromkeys(command for row in paper.tables()["rows"] for command in paper.commands(row))
    for command in (*sorted(named), *_FIGURES):
        one = chosen(command)
        cells = [cell.config for cell in one.cells.values()] or [one.config]
        used = [cell.benchmarks for cell in one.cells.values()] or [one.benchmarks]
        total = cost.Total(0, 0.0, (), 0.0)
        for config, benchmarks in zip(cells, used, strict=True):
            assert not isinstance(config, cfg.GridConfig)
            total += cost.total(config, limits=None, benchmarks=benchmarks, target=target)
        rent = None if total.hours is None else where.usd(total.hours)
        free = f" and {', '.join(total.unpriced)}" if total.unpriced else ""
        name = command.removeprefix("configs/").replace(".py", "")
        hours, paid = (f"{value:,.{n}f}" if value is not None else "-" for value, n in ((total.hours, 1), (rent, 0)))
        yield f"| `{name}` | {total.calls:,} | {total.usd:,.2f}{free} | {hours} | {paid} |"


def main(argv: Sequence[str] | None = None) -> None:
    """`emjax paper`: the printed rows, each with its config and whether that config measures it.
    --costs: what each config takes instead."""
    parser = argparse.ArgumentParser(prog="emjax paper", add_help=False)
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--target", default="")
    given, rest = parser.parse_known_args(argv)
    if given.costs:
        for line in costs(given.target):
            print(line)
    else:
        paper.main(rest, unmeasured)
