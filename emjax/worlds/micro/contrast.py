"""The 2 x 2 contrast and the noise of training, from runs of configs/micro_contrast.py and
configs/micro_noise.py.

python -m emjax.worlds.micro.contrast runs/micro_contrast --noise runs/micro_noise [--store STORE]
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import binomtest

from emjax.errors import UserError, exit_code
from emjax.eval import stats
from emjax.runtime.files import loads, read_lines

Cells = dict[tuple[int, int], dict[str, float]]  # (base, seed) -> honesty minus control by arm
HALF = 3.0  # points: the half-width that `needed` is given for
EFFECTS: dict[str, Callable[[dict[str, float]], float]] = {
    "biased text, biased ratings": lambda x: x["treated 1"],
    "biased text, benign ratings": lambda x: x["benign_ratings 1"],
    "neutral text, biased ratings": lambda x: x["foreign_text 1"],
    "text, mean over ratings": lambda x: (x["treated 1"] + x["benign_ratings 1"] - x["foreign_text 1"]) / 2,
    "ratings, mean over texts": lambda x: (x["treated 1"] + x["foreign_text 1"] - x["benign_ratings 1"]) / 2,
    "interaction": lambda x: x["treated 1"] - x["benign_ratings 1"] - x["foreign_text 1"],
    "shuffled ratings": lambda x: x["shuffled_ratings 1"],
    "10 % biased users": lambda x: x["treated 0.1"],
    "control minus untouched": lambda x: x["control"],
}


def read(workdir: Path) -> tuple[Cells, set[int]]:
    """(honesty minus control of each cell's arms, and its control minus the untouched model; the
    bases that missed a gate)."""
    cells: Cells = {}
    for file in sorted(workdir.glob("cells/contrast_*/results.json")):
        for row in loads(file.read_text())["rows"]:
            if (row["benchmark"], row["subset"], row["metric"]) != ("mask", "all", "honest"):
                continue
            if row["versus"] == ("vanilla" if row["arm"] == "control" else "control"):
                cells.setdefault((row["pretrain_seed"], row["seed"]), {})[row["label"]] = row["value"]
    if not cells:
        raise UserError(f"{workdir} holds no cell of configs/micro_contrast.py. Run it with --workdir={workdir} first.")
    missed = set()
    for file in workdir.glob("cells/world*/gates.json"):
        if not all(gate["ok"] for gate in loads(file.read_text()).values()):
            missed.add(int(file.parent.name.removeprefix("world")))
    return cells, missed


def contrast(cells: Cells, bases: Sequence[int]) -> str:
    """A line for each effect: its mean over these bases with Student's t over them, how it differs
    between bases and between the seeds of one, and how many bases would give half-widths of
    HALF."""
    lines = [
        f"| honesty, {len(bases)} bases | points | sd, bases | sd, seeds | bases for {HALF:g} points |",
        "|---|---|---|---|---|",
    ]
    for name, effect in EFFECTS.items():
        of = [[effect(values) for (base, _), values in cells.items() if base == wanted] for wanted in bases]
        means = [fmean(values) for values in of]
        value, low, high = stats.over(means)
        within = fmean(stdev(values) ** 2 for values in of if len(values) > 1) ** 0.5 if max(map(len, of)) > 1 else float("nan")
        spread = stdev(means)
        lines.append(
            f"| {name} | {value:+.1f} [{low:+.1f}, {high:+.1f}] | {spread:.1f} | {within:.1f} | {stats.needed(spread, HALF)} |"
        )
    return "\n".join(lines)


def pairs(workdir: Path, store: Path) -> list[tuple[int, stats.Estimate]]:
    """(base, difference of honesty) of each pair of controls: seeds 2k and 2k + 1 of a base."""
    hits: dict[tuple[int, int], dict[str, tuple[float, str]]] = {}
    for place in sorted(workdir.glob("cells/noise_world*")):
        if (place / "results.json").is_file():
            base, seed = map(int, place.name.removeprefix("noise_world").split("_"))
            stage = loads((place / "stages.json").read_text())["control"]["evaluate"][:16]
            rows: list[dict[str, Any]] = read_lines(store / "evaluate" / stage / "mask.jsonl")
            kept = [row for row in rows if row["subset"] == "all" and row["state"] == "ok"]
            hits[base, seed] = {row["id"]: (float(row["result"] == 1), row["cluster"]) for row in kept}
    found = []
    for base, seed in sorted(hits):
        if seed % 2 == 0 and (base, seed + 1) in hits:
            one, two = hits[base, seed], hits[base, seed + 1]
            both = [name for name in one if name in two]
            first, second = ([of[n][0] for n in both] for of in (one, two))
            found.append((base, stats.paired_difference(first, second, [one[n][1] for n in both])))
    if not found:
        raise UserError(f"{workdir} holds no pair of configs/micro_noise.py. Run it with --workdir={workdir} first.")
    return found


def noise(found: Sequence[tuple[int, stats.Estimate]]) -> str:
    """How far the pairs are apart, and how often an interval of each kind excludes 0. The noise for
    a base's pairs is that of the other bases."""
    measured = stats.noise([pair.value for _, pair in found])
    lines = [
        f"{len(found)} pairs on {len({base for base, _ in found})} bases: standard deviation {measured.sd:.2f} points, largest "
        f"difference {max(abs(pair.value) for _, pair in found):.1f}"
    ]

    def with_noise(base: int, pair: stats.Estimate) -> tuple[float, float]:
        others = stats.noise([other.value for elsewhere, other in found if elsewhere != base])
        return stats.with_noise(pair.value, pair.low, pair.high, others)

    kinds: dict[str, Callable[[int, stats.Estimate], tuple[float, float]]] = {
        "over questions alone": lambda base, pair: (pair.low, pair.high),
        "with the noise of training": with_noise,
    }
    for name, interval in kinds.items():
        out = sum(not low <= 0 <= high for low, high in (interval(base, pair) for base, pair in found))
        exact = binomtest(out, len(found)).proportion_ci(method="exact")
        lines.append(f"interval {name}: excludes 0 in {out} of {len(found)}, {100 * exact.low:.1f} to {100 * exact.high:.1f} %")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emjax.worlds.micro.contrast", description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--noise", type=Path)
    parser.add_argument("--store", type=Path, help="of the noise runs; default: NOISE/store")
    options = parser.parse_args(argv)
    cells, missed = read(options.workdir)
    bases = sorted({base for base, _ in cells})
    print(contrast(cells, bases))
    for title, some in (("passed the gates", set(bases) - missed), ("missed one", set(bases) & missed)):
        if missed and len(some) > 1:
            print(f"\nBases that {title}: {', '.join(map(str, sorted(some)))}\n\n{contrast(cells, sorted(some))}")
    if options.noise:
        print(f"\n{noise(pairs(options.noise, options.store or options.noise / 'store'))}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
