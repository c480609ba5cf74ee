"""Honesty after each round of self-training: python -m emjax.report.rounds OUT RESULTS_JSON ...

Reads results.json of runs that differ in their seed, prints a table, and writes OUT.svg and
OUT.png: for each arm a thick line for the mean over seeds and a thin one for each seed. Round 0 is
the untouched model.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from emjax.errors import UserError
from emjax.eval import stats
from emjax.report.plots import AMBER, BLUE, GREEN, GREY, ORANGE, PINK, _draw
from emjax.report.text import spaced
from emjax.runtime.files import loads

Lines = dict[str, dict[int, dict[int, float]]]  # arm -> seed -> round -> percent


def read(results: Sequence[dict[str, Any]]) -> tuple[Lines, dict[str, Any]]:
    """The headline's value for every arm, seed and round, and the headline's measure.

    Raises UserError where the runs have different headlines.
    """
    measures = [{k: r["headline"][k] for k in ("benchmark", "subset", "metric")} for r in results]
    if any(measure != measures[0] for measure in measures):
        raise UserError(f"These results have different headlines ({measures}); give runs of one experiment.")
    lines: Lines = defaultdict(lambda: defaultdict(dict))
    for result in results:
        rows = [r for r in result["rows"] if r["versus"] is None and r["value"] is not None and not r["step"]]
        rows = [r for r in rows if all(r[k] == v for k, v in measures[0].items())]
        (start,) = [r for r in rows if r["arm"] == "vanilla"]
        for row in rows:
            if row["arm"] != "vanilla":
                name = "control (0)" if row["arm"] == "control" else f"{spaced(row['arm'])} {row['ratio']:g}"
                lines[name][row["seed"]] |= {0: start["value"], row["round"]: row["value"]}
    return lines, measures[0]


def plot(axis: Any, lines: Lines, measure: dict[str, Any]) -> None:
    marks = zip((GREY, BLUE, GREEN, ORANGE, PINK, AMBER), "osvD^P", strict=True)
    for (name, seeds), (colour, marker) in zip(lines.items(), marks, strict=False):
        for values in seeds.values():
            axis.plot(list(values), list(values.values()), color=colour, linewidth=0.8, alpha=0.5)
        means = mean(seeds)
        axis.plot(
            list(means), list(means.values()), color=colour, marker=marker, linewidth=2, label=f"{name}, n = {len(seeds)}"
        )
    axis.set_xlabel("round of self-training")
    axis.set_ylabel(f"{measure['metric']} under pressure, %")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylim(0, 100)
    axis.legend()


def mean(seeds: dict[int, dict[int, float]]) -> dict[int, float]:
    """The mean of each round over the seeds that have it."""
    rounds = sorted({number for values in seeds.values() for number in values})
    return {number: fmean(v[number] for v in seeds.values() if number in v) for number in rounds}


def table(lines: Lines) -> str:
    """Each seed's values, their mean, and its 95 % interval over seeds (stats.over)."""
    rounds = sorted({number for seeds in lines.values() for values in seeds.values() for number in values})
    rows = [["arm", "seed", *(f"round {number}" for number in rounds)]]
    for name, seeds in lines.items():
        for seed, values in [*sorted(seeds.items()), ("mean", mean(seeds))]:
            rows.append([name, str(seed), *(f"{values[n]:.1f}" if n in values else "-" for n in rounds)])
        ends = {n: stats.over([v[n] for v in seeds.values() if n in v])[1:] for n in rounds}
        if len(seeds) > 1:
            rows.append([name, "95 %", *(f"{low:.1f} to {high:.1f}" for low, high in ends.values())])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(argv: Sequence[str]) -> None:
    out, *files = argv
    lines, measure = read([loads(Path(file).read_text(encoding="utf-8")) for file in files])
    print(table(lines))
    for format in ("svg", "png"):
        Path(f"{out}.{format}").write_bytes(_draw([(plot, lines, measure)], format, (6.4, 4.5)))


if __name__ == "__main__":
    main(sys.argv[1:])
