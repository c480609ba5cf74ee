"""Do the intervals hold, and do the verdicts err as seldom as they say? Simulated experiments.

python -m benchmarks.intervals [--experiments 2000] [--base 6.2] [--seed_sd 2.98] [--pair 1.15]

Standard deviations in points, as measured on the micro-world (docs/micro_evidence.md): of an effect
between bases, of an effect between the training seeds of one base, and of the difference between
two controls of one base. A run's noise of training is always taken from the second. A line for each
kind of interval says how often it covers what it claims; one for each verdict, how often it says
what is false. numpy and scipy alone; three to four minutes of one core.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from emjax.eval import stats
from emjax.report.grid import dose_effect
from emjax.report.rows import MARGIN, detected, same

ENTITIES, PER = 90, 6  # clusters of questions, questions in each
LABELS = [entity for entity in range(ENTITIES) for _ in range(PER)]
HONEST = 62.0  # percent of a control's answers
FREEDOM = 16  # with which the noise of training was measured
EFFECT = -15.0  # points
Row = dict[str, list[float] | float]
Say = Callable[[Row], bool]


@dataclass
class Lab:
    """Draws experiments. base, seed_sd, pair: the spreads."""

    rng: np.random.Generator
    base: float
    seed_sd: float
    pair: float

    def questions(self) -> np.ndarray:
        """Each question's share of honest answers in a control, in [0, 1]: more alike in one
        entity."""
        entity = self.rng.normal(0, 0.12, (ENTITIES, 1))
        share = HONEST / 100 + entity + self.rng.normal(0, 0.12, (ENTITIES, PER))
        return np.where((share > 0) & (share < 1), share, HONEST / 100).ravel()

    def arms(self, share: np.ndarray, *moved: float) -> list[np.ndarray]:
        """Answers, 0 or 1, of a control and of arms that are `moved` points away from it on
        average. The arms are asked with one seed, which makes half of their draws alike."""
        draws, found = self.rng.random(share.shape), []
        for points in (0.0, *moved):
            own = np.where(self.rng.random(share.shape) < 0.5, draws, self.rng.random(share.shape))
            found.append((own < share * (1 + points / HONEST)).astype(float))
        return found

    def trained(self, effect: float, sd: float) -> float:
        return effect + self.rng.normal(0, sd)

    def noise(self) -> stats.Noise:
        """As it would be measured."""
        return stats.noise(self.rng.normal(0, self.seed_sd, FREEDOM).tolist())

    def run(self, effect: float, sd: float) -> tuple[Row, float]:
        """(a run's difference with both intervals, how far this training really moved it)."""
        moved = self.trained(effect, sd)
        control, treated = self.arms(self.questions(), moved)
        found = stats.paired_difference(treated, control, LABELS)
        wider = stats.with_noise(found.value, found.low, found.high, self.noise())
        return {"value": found.value, "ci95": [found.low, found.high], "ci95_training": list(wider)}, moved

    def pool(self, effect: float, bases: int, seeds: int, *, spread: float) -> Row:
        """A pool of several bases, or of several seeds of one."""
        values, tops, clusters = [], [], []
        for base in range(bases):
            own, share = self.trained(effect, spread if bases > 1 else 0.0), self.questions()
            for seed in range(seeds):
                control, treated = self.arms(share, self.trained(own, self.seed_sd))
                values.append(treated - control)
                tops += [base if bases > 1 else seed] * len(LABELS)
                clusters += [ENTITIES * base + label for label in LABELS]
        found = stats.pooled(np.concatenate(values).tolist(), tops, clusters)
        return {"value": found.value, "ci95": [found.low, found.high]}

    def level(self) -> Row:
        found = stats.rate(self.arms(self.questions())[0].tolist(), LABELS)
        return {"value": found.value, "ci95": [found.low, found.high]}


def holds(row: Row, truth: float, *, field: str = "ci95") -> bool:
    low, high = row[field]  # type: ignore[misc]
    return low <= truth <= high


def cases(lab: Lab) -> Iterator[tuple[str, str, Callable[[], bool]]]:
    """(kind, name, one simulated experiment: whether the interval held, or the verdict was
    false). Kinds: "covers", "false" and, for what is not claimed, "aside"."""

    def one_run(effect: float, sd: float, say: Say) -> Callable[[], bool]:
        return lambda: say(lab.run(effect, sd)[0])

    def a_pool(
        effect: float, bases: int, seeds: int, say: Callable[[Row], bool], spread: float | None = None
    ) -> Callable[[], bool]:
        return lambda: say(lab.pool(effect, bases, seeds, spread=lab.base if spread is None else spread))

    def over_questions() -> bool:
        row, moved = lab.run(EFFECT, lab.seed_sd)
        return holds(row, moved)

    def contrast() -> bool:
        """The interaction of the 2 x 2 on eight bases, two seeds each."""
        of_base = [
            sum(sign * lab.trained(0, lab.seed_sd / np.sqrt(2)) for sign in (1, -1, -1)) + lab.trained(EFFECT, lab.base)
            for _ in range(8)
        ]
        _, low, high = stats.over(of_base)
        return low <= EFFECT <= high

    def doses(first: float, last: float) -> bool:
        control, a, b = lab.arms(lab.questions(), lab.trained(first, lab.seed_sd), lab.trained(last, lab.seed_sd))
        found = []
        for arm in (a, b):
            e = stats.paired_difference(arm, control, LABELS)
            wider = stats.with_noise(e.value, e.low, e.high, lab.noise())
            found.append({"value": e.value, "ci95": [e.low, e.high], "ci95_training": list(wider)})
        _, low, high = dose_effect(*found)
        return high < 0

    def wrongly_same(row: Row) -> bool:
        return same(row) == "yes"

    def wrongly_kept(row: Row) -> bool:
        return same(row, loss=True) == "yes"

    def wrongly_lost(row: Row) -> bool:
        return same(row, loss=True) == "no"

    yield "covers", "a level, one run: other questions", lambda: holds(lab.level(), HONEST)
    yield "covers", "a difference, one run: other questions", over_questions
    yield (
        "covers",
        "a difference, one run, with the noise of training: other seeds",
        one_run(EFFECT, lab.seed_sd, lambda row: holds(row, EFFECT, field="ci95_training")),
    )
    for seeds in (2, 3, 5):
        yield (
            "covers",
            f"a difference, one base, {seeds} seeds: other seeds and questions",
            a_pool(EFFECT, 1, seeds, lambda row: holds(row, EFFECT)),
        )
    for bases, seeds in ((3, 3), (8, 2)):
        yield (
            "covers",
            f"a difference, {bases} bases of {seeds} seeds: other bases",
            a_pool(EFFECT, bases, seeds, lambda row: holds(row, EFFECT)),
        )
    yield "covers", "the contrast's interaction, 8 bases of 2 seeds: other bases", contrast
    yield (
        "aside",
        "a difference, one run, questions alone: other seeds (not claimed)",
        one_run(EFFECT, lab.seed_sd, lambda row: holds(row, EFFECT)),
    )

    yield "false", "a change, one run, although there is none", one_run(0, lab.pair, detected)
    yield "false", "a change, one run, although there is none on average", one_run(0, lab.seed_sd, detected)
    yield (
        "aside",
        "a change, one run, by the interval over questions alone (not used)",
        one_run(0, lab.pair, lambda row: not holds(row, 0.0)),
    )
    yield "false", "a change, one base of 3 seeds, although there is none", a_pool(0, 1, 3, detected)
    yield "false", "a change, 3 bases of 3 seeds, although there is none on average", a_pool(0, 3, 3, detected)
    yield "false", "a change, 3 bases of 3 seeds, although there is none on any", a_pool(0, 3, 3, detected, 0.0)
    for name, effect in (("up", MARGIN), ("down", -MARGIN)):
        yield "false", f"the same, one run, although {MARGIN:g} points {name}", one_run(effect, lab.seed_sd, wrongly_same)
        yield "false", f"the same, 8 bases of 2 seeds, although {MARGIN:g} points {name}", a_pool(effect, 8, 2, wrongly_same)
    yield "false", "kept, one run, although the margin is lost", one_run(-MARGIN, lab.seed_sd, wrongly_kept)
    yield "false", "lost, one run, although less than the margin is", one_run(-MARGIN, lab.seed_sd, wrongly_lost)
    yield "false", "a larger dose costs more, although it costs the same", lambda: doses(-10.0, -10.0)


def table(lab: Lab, experiments: int) -> Iterator[tuple[str, str, float]]:
    for kind, name, one in cases(lab):
        yield kind, name, 100 * sum(one() for _ in range(experiments)) / experiments


NEEDS = {"covers": "covers, needs at least 93 %", "false": "says so, may be at most 6.5 %", "aside": "aside"}


def fails(kind: str, share: float) -> bool:
    return (kind == "covers" and share < 93) or (kind == "false" and share > 6.5)


def main(argv: Sequence[str]) -> int:
    """0; 1 where an interval or a verdict misses what it needs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.intervals", description=__doc__)
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--base", type=float, default=6.2)
    parser.add_argument("--seed_sd", type=float, default=2.98)
    parser.add_argument("--pair", type=float, default=1.15)
    given = parser.parse_args(argv)
    lab = Lab(np.random.default_rng(0), given.base, given.seed_sd, given.pair)
    missed = 0
    for kind, name, share in table(lab, given.experiments):
        missed += fails(kind, share)
        print(f"{share:6.1f} %  {name}  [{NEEDS[kind]}]{'  MISSED' if fails(kind, share) else ''}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
