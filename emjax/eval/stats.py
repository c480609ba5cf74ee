"""Rates, paired differences and their 95 % intervals; everything is clustered by what the items
share.

Items that share a context are not independent, so the standard error is that of cluster sums
(Miller 2024, arXiv:2411.00640; the same number as a statsmodels OLS on a constant with cluster
covariance). The intervals of one run (`rate`, `paired_difference`) speak of other items of the same
kind, not of other training seeds or bases: those are levels of their own (`pooled`, `with_noise`).
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval: percent for a rate, points for a difference."""

    value: float
    low: float
    high: float
    n: int
    clusters: int


def rate(hits: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Share of hits in percent, with a cluster-aware Wilson interval.

    hits [n]: 0/1 or a share in [0, 1] for each item; clusters [n]: label of what the item shares
    with others. The interval is Wilson's at the effective sample size p(1-p)/se^2, se being the
    cluster-robust standard error, so it stays inside [0, 100]. The effective size is never more
    than n, and it is the number of clusters where they show no spread at all (p = 0 or 1, for
    example). With one item a cluster it is n - 1. Fewer than about twenty clusters make any such
    interval somewhat too narrow. Raises ValueError on empty input or on values outside [0, 1].
    """
    hits_n = _unit(hits)
    mean, variance, groups = _clustered_mean(hits_n, clusters)
    # No spread between clusters to measure: each counts as one observation.
    flat = groups == 1 or variance < 1e-18
    size = float(groups) if flat else min(mean * (1 - mean) / variance, float(len(hits_n)))
    low, high = _wilson(mean, size)
    return Estimate(100 * mean, 100 * low, 100 * high, len(hits_n), groups)


def paired_difference(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Mean of a_i - b_i in points, with a cluster-robust 95 % t-interval (clusters - 1 degrees of
    freedom).

    a, b [n]: 0/1 or a share in [0, 1] of the same items in the same order; clusters [n] as in
    `rate`. Where the clusters show no spread (all differences equal, or one cluster only) a
    t-interval would have no width or not exist. Then the bound is Wilson's for "none of G clusters
    deviates": up to u = z^2/(G + z^2) of clusters like these may deviate, each by as much as a
    difference can: c - u(1 + c) to c + u(1 - c). Raises ValueError on empty input or on values
    outside [0, 1].
    """
    a_n, b_n = _unit(a), _unit(b)
    if len(a_n) != len(b_n):
        raise ValueError(f"paired values must be of the same items: {len(a_n)} against {len(b_n)}")
    mean, variance, groups = _clustered_mean(a_n - b_n, clusters)
    if groups == 1 or variance < 1e-18:
        unseen = _wilson(0.0, groups)[1]
        low, high = mean - unseen * (1 + mean), mean + unseen * (1 - mean)
    else:
        half = float(stats.t.ppf(0.975, groups - 1)) * math.sqrt(variance)
        low, high = max(mean - half, -1.0), min(mean + half, 1.0)
    return Estimate(100 * mean, 100 * low, 100 * high, len(a_n), groups)


def pooled(values: Sequence[float], tops: Sequence[Hashable], clusters: Sequence[Hashable], *, level: bool = False) -> Estimate:
    """Mean over the highest level (bases, or the training seeds of one base) of each one's mean, in
    points, with a 95 % interval that comes from that level.

    values [n]: 0/1 or a share for a level, a_i - b_i of two arms for a paired difference, so in
    [-1, 1]; tops [n]: the base or the seed; clusters [n]: what the questions share. Worlds of
    different bases need labels of their own.

    Bases have questions of their own: the interval is Student's t over the bases' means
    (T - 1 degrees of freedom). It holds what lies below, seeds and questions, and says something of
    other bases. Seeds of one base are asked the same questions, which no difference between seeds
    shows: the variance of the seeds' mean and the cluster-robust variance of the questions' means
    over seeds add up, with Satterthwaite's degrees of freedom (both hold the draws of answers, so
    the sum is somewhat too large). One top: `paired_difference`'s interval, which says nothing of
    others. level: the values are levels, so the interval ends at 0. Without any spread the bound is `paired_difference`'s too.
    `python -m benchmarks.intervals` simulates the coverage. Raises ValueError on empty input or on
    values outside [-1, 1].
    """
    values_n = np.asarray(values, np.float64)
    if values_n.ndim != 1 or not values_n.size or not (np.abs(values_n) <= 1).all():
        raise ValueError("need a non-empty list of values in [-1, 1]")
    if not len(values_n) == len(tops) == len(clusters):
        raise ValueError(f"{len(values_n)} values, {len(tops)} seeds and {len(clusters)} clusters do not pair up")
    of_top: dict[Hashable, list[int]] = {}
    of_cluster: dict[Hashable, list[int]] = {}
    owners: dict[Hashable, set[Hashable]] = {}
    for i, (top, cluster) in enumerate(zip(tops, clusters, strict=True)):
        of_top.setdefault(top, []).append(i)
        of_cluster.setdefault(cluster, []).append(i)
        owners.setdefault(cluster, set()).add(top)
    mean_T = np.array([values_n[some].mean() for some in of_top.values()])
    mean, T, groups = float(mean_T.mean()), len(of_top), len(of_cluster)
    variance = float(mean_T.var(ddof=1)) / T if T > 1 else 0.0
    freedom = float(T - 1)
    if T == 1 or any(len(of) > 1 for of in owners.values()):
        asked, _ = _clustered_mean(values_n, clusters)[1:]
        asked = 0.0 if math.isnan(asked) else asked
        both = variance + asked
        if both > 1e-18:
            parts = [part**2 / df for part, df in ((variance, T - 1), (asked, groups - 1)) if df]
            variance, freedom = both, both**2 / sum(parts)
    if variance < 1e-18:
        unseen = _wilson(0.0, groups)[1]
        low, high = mean - unseen * (1 + mean), mean + unseen * (1 - mean)
    else:
        half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
        low, high = mean - half, mean + half
    floor = 0.0 if level else -1.0
    return Estimate(100 * mean, 100 * max(low, floor), 100 * min(high, 1.0), len(values_n), groups)


def over(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of one number of each base, or of each seed: Student's t, 95 %. NaN ends
    for one number alone."""
    found = np.asarray(values, np.float64)
    mean, n = float(found.mean()), len(found)
    if n < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, n - 1)) * float(found.std(ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


@dataclass(frozen=True)
class Noise:
    """How far a paired difference moves when nothing but the training seed changes: its standard
    deviation in points, and the degrees of freedom that this was measured with."""

    sd: float
    df: int


def noise(pairs: Sequence[float]) -> Noise:
    """Of pairs of arms that differ in the training seed alone: their differences in points, whose
    mean is 0 by design."""
    return Noise(math.sqrt(float(np.mean(np.square(pairs)))), len(pairs))


def with_noise(value: float, low: float, high: float, of: Noise) -> tuple[float, float]:
    """The ends of an interval over questions, widened by the noise of training: each side's
    distance and the noise's own add in squares."""
    more = float(stats.t.ppf(0.975, of.df)) * of.sd
    return value - math.hypot(value - low, more), value + math.hypot(high - value, more)


def needed(sd: float, half: float) -> int:
    """The number of bases (or seeds) at which `over` has this half-width, if they differ with this
    standard deviation."""
    n = 2
    while float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n) > half:
        n += 1
    return n


def mcnemar_exact(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided exact McNemar p-value of paired 0/1 outcomes; it takes the items as independent.

    Raises ValueError on empty input or on anything but 0 and 1.
    """
    a_n, b_n = _unit(a), _unit(b)
    if len(a_n) != len(b_n) or not np.isin(np.concatenate([a_n, b_n]), (0, 1)).all():
        raise ValueError("McNemar's test needs paired outcomes that are 0 or 1")
    only_a, only_b = int(np.sum(a_n > b_n)), int(np.sum(b_n > a_n))
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def bounds(hits: Sequence[float], n_dropped: int) -> tuple[float, float]:
    """The rate in percent if every dropped item had been 0, and if every one had been 1.

    hits [n]: the items that were kept (may be empty if some were dropped).
    Raises ValueError if there is no item at all.
    """
    if n_dropped < 0 or len(hits) + n_dropped == 0:
        raise ValueError(f"bounds need an item and no negative count: {len(hits)} kept, {n_dropped} dropped")
    total = float(np.sum(_unit(hits))) if len(hits) else 0.0
    n = len(hits) + n_dropped
    return 100 * total / n, 100 * (total + n_dropped) / n


def macro(estimates: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The mean of independent (value, low, high), with the interval that their own intervals imply.

    Each side's distances add in squares (Zou and Donner 2008, "MOVER"), so skewed intervals stay
    skewed.
    """
    values, lows, highs = np.array(estimates, np.float64).T
    mean, n = float(values.mean()), len(values)
    return mean, mean - math.hypot(*(values - lows)) / n, mean + math.hypot(*(highs - values)) / n


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of one family (a metric on several subsets), adjusted for their number by Holm's
    step-down rule."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def detectable(n: int, p: float = 0.5, power: float = 0.8) -> float:
    """The difference in points between two unpaired rates near p, each of n items, that is found
    with this power at 5 %."""
    return 100 * (_Z + float(stats.norm.ppf(power))) * math.sqrt(2 * p * (1 - p) / n)


def corrected(judge: Sequence[float], judge_labelled: Sequence[float], human: Sequence[float]) -> Estimate:
    """A judge's rate, put right by a random subset that people labelled too (prediction-powered
    inference, Angelopoulos et al. 2023): mean(judge) + mean(human - judge on the subset), in
    percent, with its normal 95 % interval.

    judge [n]: 0/1 on all items that are not in the subset; judge_labelled, human [m]: on the
    subset.
    """
    judge_n, judge_m, human_m = _unit(judge), _unit(judge_labelled), _unit(human)
    if len(judge_m) != len(human_m) or len(human_m) < 2 or len(judge_n) < 2:
        raise ValueError("the correction needs at least two items labelled by both, and two by the judge alone")
    gap_m = human_m - judge_m
    value = float(judge_n.mean() + gap_m.mean())
    half = _Z * math.sqrt(judge_n.var(ddof=1) / len(judge_n) + gap_m.var(ddof=1) / len(gap_m))
    low, high = max(value - half, 0.0), min(value + half, 1.0)
    return Estimate(100 * value, 100 * low, 100 * high, len(judge_n) + len(gap_m), len(judge_n) + len(gap_m))


# --- agreement ------------------------------------------------------------------------------------


def confusion(a: Sequence[Hashable], b: Sequence[Hashable], labels: Sequence[Hashable]) -> np.ndarray:
    """Counts [labels, labels]: rows what `a` says, columns what `b` says of the same items."""
    place = {label: i for i, label in enumerate(labels)}
    counts_LxL = np.zeros((len(labels), len(labels)), np.int64)
    for x, y in zip(a, b, strict=True):
        counts_LxL[place[x], place[y]] += 1
    return counts_LxL


def kappa(counts_LxL: np.ndarray) -> float:
    """Cohen's kappa of two raters from their `confusion`; NaN where both give one and the same
    label throughout."""
    share_LxL = counts_LxL / counts_LxL.sum()
    chance = float(share_LxL.sum(0) @ share_LxL.sum(1))
    return (float(np.trace(share_LxL)) - chance) / (1 - chance) if chance < 1 else math.nan


def coincidences(ratings: Sequence[Sequence[Hashable | None]]) -> np.ndarray:
    """[items, labels, labels]: how often two raters' labels meet on each item, as Krippendorff
    counts it.

    ratings [raters][items]; None: not rated. An item with fewer than two ratings counts nothing.
    """
    labels = list(dict.fromkeys(x for rater in ratings for x in rater if x is not None))
    place = {label: i for i, label in enumerate(labels)}
    count_NxL = np.zeros((len(ratings[0]), len(labels)))
    for rater in ratings:
        for i, label in enumerate(rater):
            if label is not None:
                count_NxL[i, place[label]] += 1
    together_NxLxL = count_NxL[:, :, None] * count_NxL[:, None, :]
    together_NxLxL[:, np.arange(len(labels)), np.arange(len(labels))] -= count_NxL
    return together_NxLxL / np.maximum(count_NxL.sum(1) - 1, 1)[:, None, None]


def alpha(together_LxL: np.ndarray) -> float:
    """Krippendorff's alpha for labels without an order, from the sum of `coincidences` over items.

    NaN where no item has two ratings, or all have the same label.
    """
    total_L, n = together_LxL.sum(0), together_LxL.sum()
    expected = n**2 - total_L @ total_L
    return float(1 - (n - 1) * (n - np.trace(together_LxL)) / expected) if expected > 1e-9 * n**2 else math.nan


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    counts: np.ndarray,
    clusters: Sequence[Hashable],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of statistic(sum of counts) over draws of whole clusters; undefined
    draws (NaN) are left out.

    counts [n, ...]: what each item adds to the sum. NaN, NaN where more than half of the draws are
    undefined.
    """
    number: dict[Hashable, int] = {}
    index_n = [number.setdefault(label, len(number)) for label in clusters]
    groups = len(number)
    parts_GxK = np.zeros((groups, counts[0].size))
    np.add.at(parts_GxK, index_n, counts.reshape(len(index_n), -1))
    times_DxG = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=draws)
    found = [statistic(drawn.reshape(counts.shape[1:])) for drawn in times_DxG @ parts_GxK]
    defined = [x for x in found if not math.isnan(x)]
    if 2 * len(defined) < draws:
        return math.nan, math.nan
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _unit(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"need a non-empty list of values, got shape {array.shape}")
    if not ((array >= 0) & (array <= 1)).all():  # also catches NaN
        raise ValueError("values must be in [0, 1]")
    return array


def _clustered_mean(values_n: np.ndarray, clusters: Sequence[Hashable]) -> tuple[float, float, int]:
    """Mean, its cluster-robust variance, number of clusters G.

    The variance is G/(G-1) sum_g (sum_i r_gi)^2 / n^2, and NaN for one cluster.
    """
    n = len(values_n)
    if len(clusters) != n:
        raise ValueError(f"{n} values but {len(clusters)} cluster labels")
    number: dict[Hashable, int] = {}
    index_n = [number.setdefault(label, len(number)) for label in clusters]
    mean = float(values_n.mean())
    residual_g = np.bincount(index_n, weights=values_n - mean)
    groups = len(number)
    variance = groups / (groups - 1) * float(residual_g @ residual_g) / n**2 if groups > 1 else math.nan
    return mean, variance, groups


def _wilson(p: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share p at a sample size n that need not be whole."""
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p)
