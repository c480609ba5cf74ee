import math
import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from emjax.eval import stats

Z = scipy_stats.norm.ppf(0.975)


def clustered(groups: int, size: int, p: float, correlation: float, seed: int):
    """0/1 items whose clusters lean one way: (hits, labels)."""
    rng = np.random.default_rng(seed)
    lean = rng.beta(p * (1 / correlation - 1), (1 - p) * (1 / correlation - 1), groups)
    hits = (rng.random((groups, size)) < lean[:, None]).astype(float).ravel()
    return hits, [f"prompt-{g}" for g in range(groups) for _ in range(size)]


def cluster_se(values, labels) -> float:
    groups = np.unique(labels, return_inverse=True)[1]
    return sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups}).bse[0]


@pytest.mark.parametrize("seed", range(5))
def test_rate_is_wilson_at_the_statsmodels_cluster_error(seed):
    hits, labels = clustered(30, 4, 0.6, 0.4, seed)
    got = stats.rate(hits, labels)
    p, se = hits.mean(), cluster_se(hits, labels)
    size = p * (1 - p) / se**2
    assert size < 0.8 * len(hits)  # otherwise the case would not tell clustered from unclustered
    centre, half = (p + Z**2 / (2 * size)), Z * np.sqrt(p * (1 - p) / size + Z**2 / (4 * size**2))
    expected = 100 * p, 100 * (centre - half) / (1 + Z**2 / size), 100 * (centre + half) / (1 + Z**2 / size)
    np.testing.assert_allclose([got.value, got.low, got.high], expected, rtol=1e-9)
    assert (got.n, got.clusters) == (120, 30)


@pytest.mark.parametrize("seed", range(5))
def test_paired_difference_is_the_statsmodels_cluster_t_interval(seed):
    a, labels = clustered(25, 4, 0.5, 0.3, seed)
    b, _ = clustered(25, 4, 0.7, 0.3, seed + 100)
    fit = sm.OLS(a - b, np.ones(len(a))).fit(
        cov_type="cluster", cov_kwds={"groups": np.unique(labels, return_inverse=True)[1]}, use_t=True
    )
    got = stats.paired_difference(a, b, labels)
    expected = 100 * np.array([fit.params[0], *fit.conf_int(0.05)[0]])
    np.testing.assert_allclose([got.value, got.low, got.high], expected, rtol=1e-9, atol=1e-9)
    assert (got.n, got.clusters) == (100, 25)


@pytest.mark.parametrize(("k", "n"), [(0, 16), (33, 33), (0, 1000)])
def test_a_unanimous_rate_is_wilson_over_clusters(k, n):
    got = stats.rate([float(k > 0)] * 3 * n, list(range(n)) * 3)
    expected = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
    np.testing.assert_allclose([got.low, got.high], [100 * expected.low, 100 * expected.high], atol=1e-9)


@given(st.lists(st.booleans(), min_size=3, max_size=400).filter(lambda hits: 0 < sum(hits) < len(hits)))
def test_one_item_a_cluster_is_ordinary_wilson_with_one_item_fewer(hits):
    """The G/(G-1) correction makes the effective size n - 1, which moves the limits by less than 100/n."""
    got = stats.rate(hits, list(range(len(hits))))
    n = len(hits)
    expected = scipy_stats.binomtest(sum(hits), n).proportion_ci(method="wilson")
    np.testing.assert_allclose([got.low, got.high], [100 * expected.low, 100 * expected.high], atol=100 / n)
    assert got.high - got.low >= 100 * (expected.high - expected.low)


items = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 6)), min_size=1, max_size=40)


@given(items)
def test_intervals_contain_their_value_and_stay_in_range(rows):
    a, b, labels = zip(*rows, strict=True)
    one, two = stats.rate(a, labels), stats.paired_difference(a, b, labels)
    assert 0 <= one.low <= one.value <= one.high <= 100
    assert one.low < one.high
    assert -100 <= two.low <= two.value <= two.high <= 100
    assert two.low < two.high
    assert one.n == two.n == len(rows)
    assert one.clusters == two.clusters == len(set(labels))


@given(items, st.randoms(use_true_random=False))
def test_item_order_and_cluster_names_do_not_matter(rows, random):
    shuffled = [(a, b, f"name {7 - c}") for a, b, c in rows]
    random.shuffle(shuffled)
    for pick in (lambda t: stats.rate(t[0], t[2]), lambda t: stats.paired_difference(*t)):
        one, two = pick(list(zip(*rows, strict=True))), pick(list(zip(*shuffled, strict=True)))
        np.testing.assert_allclose([one.value, one.low, one.high], [two.value, two.low, two.high], atol=1e-6)


@given(items)
def test_swapping_the_sides_mirrors_the_difference(rows):
    a, b, labels = zip(*rows, strict=True)
    one, two = stats.paired_difference(a, b, labels), stats.paired_difference(b, a, labels)
    np.testing.assert_allclose([one.value, one.low, one.high], [-two.value, -two.high, -two.low], atol=1e-9)


def test_repeating_every_item_in_its_cluster_adds_no_certainty():
    hits, labels = clustered(40, 1, 0.6, 0.3, 3)
    one, ten = stats.rate(hits, labels), stats.rate(np.repeat(hits, 10), np.repeat(labels, 10).tolist())
    np.testing.assert_allclose([one.low, one.high], [ten.low, ten.high], rtol=1e-9)


@pytest.mark.parametrize(("difference", "low", "high"), [(0, -3.699, 3.699), (1, 92.601, 100), (-1, -100, -92.601)])
def test_equal_differences_still_have_a_width(difference, low, high):
    a, b = [max(difference, 0)] * 200, [max(-difference, 0)] * 200
    got = stats.paired_difference(a, b, [i // 2 for i in range(200)])  # u = z^2 / (100 + z^2) = 3.699 %
    np.testing.assert_allclose([got.value, got.low, got.high], [100 * difference, low, high], atol=1e-3)


def test_one_cluster_counts_as_one_observation():
    got = stats.rate([1, 0, 1, 1], ["p"] * 4)
    assert got.clusters == 1
    assert got.high - got.low > 75
    difference = stats.paired_difference([1, 1, 0], [0, 1, 0], ["p"] * 3)
    assert difference.low < 0 < difference.high
    assert difference.high - difference.low > 150


def test_coverage_of_both_intervals():
    """Of 400 samples of 60 correlated clusters about 95 % must cover the truth (unclustered: far fewer)."""
    covered = np.zeros(2)
    for seed in range(400):
        a, labels = clustered(60, 6, 0.7, 0.4, seed)
        b, _ = clustered(60, 6, 0.6, 0.4, 1000 + seed)
        one, two = stats.rate(a, labels), stats.paired_difference(a, b, labels)
        covered += [one.low <= 70 <= one.high, two.low <= 10 <= two.high]
    np.testing.assert_allclose(covered / 400, 0.95, atol=0.03)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_mcnemar_agrees_with_statsmodels(pairs):
    from statsmodels.stats.contingency_tables import mcnemar

    table = np.zeros((2, 2))
    for a, b in pairs:
        table[a, b] += 1
    expected = mcnemar(table, exact=True).pvalue
    assert stats.mcnemar_exact(*zip(*pairs, strict=True)) == pytest.approx(expected, abs=1e-9)


def test_bounds_are_the_worst_and_the_best_case():
    assert stats.bounds([1, 0, 1], 1) == (50.0, 75.0)
    assert stats.bounds([1, 0, 1, 1], 0) == (75.0, 75.0)
    assert stats.bounds([], 2) == (0.0, 100.0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: stats.rate([], []), "non-empty"),
        (lambda: stats.rate([0.5, 1.5], [0, 1]), r"in \[0, 1\]"),
        (lambda: stats.rate([0.5, float("nan")], [0, 1]), r"in \[0, 1\]"),
        (lambda: stats.rate([1, 0], [0]), "2 values but 1 cluster"),
        (lambda: stats.paired_difference([], [], []), "non-empty"),
        (lambda: stats.paired_difference([1, 0], [1], [0, 1]), "2 against 1"),
        (lambda: stats.mcnemar_exact([], []), "non-empty"),
        (lambda: stats.mcnemar_exact([1, 0.5], [0, 1]), "0 or 1"),
        (lambda: stats.bounds([], 0), "at least one|an item"),
        (lambda: stats.bounds([1], -1), "-1 dropped"),
    ],
)
def test_senseless_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# --- agreement ----------------------------------------------------------------------------------------------------------

LETTERS = st.sampled_from("ABCD")


@given(st.lists(st.tuples(LETTERS, LETTERS), min_size=1, max_size=60))
def test_kappa_agrees_with_statsmodels(pairs):
    from statsmodels.stats.inter_rater import cohens_kappa

    a, b = zip(*pairs, strict=True)
    table = stats.confusion(a, b, "ABCD")
    assert table.sum() == len(pairs)
    if len({*a, *b}) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own variance, where a label is missing
            expected = cohens_kappa(table, return_results=False)
        assert stats.kappa(table) == pytest.approx(expected, abs=1e-9)
    else:
        assert math.isnan(stats.kappa(table))


@given(st.lists(st.tuples(*[st.one_of(st.none(), LETTERS)] * 3), min_size=1, max_size=40))
def test_alpha_agrees_with_krippendorff(items):
    import krippendorff

    rated = [item for item in items if sum(x is not None for x in item) > 1]
    ratings = list(zip(*items, strict=True))
    if len({x for item in rated for x in item if x is not None}) > 1:
        numbers = [[np.nan if x is None else float("ABCD".index(x)) for x in rater] for rater in ratings]
        expected = krippendorff.alpha(reliability_data=numbers, level_of_measurement="nominal")
        assert stats.alpha(stats.coincidences(ratings).sum(0)) == pytest.approx(expected, abs=1e-9)
    else:
        assert math.isnan(stats.alpha(stats.coincidences(ratings).sum(0)))


@settings(max_examples=15, deadline=None)  # theirs takes 0.05 s a call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_agrees_with_statsmodels(p_values):
    from statsmodels.stats.multitest import multipletests

    np.testing.assert_allclose(stats.holm(p_values), multipletests(p_values, method="holm")[1], atol=1e-9)


@pytest.mark.parametrize(("n", "points"), [(1000, 6.3), (274, 12.0), (180, 14.8), (16, 49.5), (14042, 1.7)])
def test_the_detectable_difference(n, points):
    """At p = 0.5 and 80 % power, rounded to a tenth."""
    assert stats.detectable(n) == pytest.approx(points, abs=0.051)


def test_the_bootstrap_of_a_mean_is_the_clustered_interval():
    """Monte-Carlo error of a 2.5 % quantile from 4,000 draws: about 0.04 standard errors of the mean."""
    hits, labels = clustered(40, 5, 0.6, 0.4, 1)
    low, high = stats.bootstrap(lambda sums: sums[0] / sums[1], np.stack([hits, np.ones(200)], 1), labels, draws=4000)
    half = Z * cluster_se(hits, labels)
    np.testing.assert_allclose([low, high], [hits.mean() - half, hits.mean() + half], atol=0.2 * half)
    from scipy.stats import bootstrap

    sums = hits.reshape(40, 5).mean(axis=1)  # clusters of one size: the mean of their means
    theirs = bootstrap((sums,), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    np.testing.assert_allclose([low, high], [theirs.low, theirs.high], atol=0.1 * half)


def test_a_bootstrap_of_what_is_mostly_undefined_has_no_ends():
    assert all(math.isnan(x) for x in stats.bootstrap(lambda sums: math.nan, np.ones((3, 1)), [1, 2, 3], draws=20))


def test_the_correction_by_people_removes_a_judges_bias():
    """A judge that misses a third of the lies; the corrected interval covers the truth as often as it says."""
    rng = np.random.default_rng(0)
    covered, biased = 0, []
    for _ in range(300):
        truth = rng.random(800) < 0.6
        said = truth & (rng.random(800) < 0.67)
        got = stats.corrected(said[200:], said[:200], truth[:200])
        covered += got.low <= 60 <= got.high
        biased.append(100 * said.mean())
    assert np.mean(biased) < 45
    assert covered / 300 == pytest.approx(0.95, abs=0.035)


def test_the_correction_is_the_sum_of_two_means():
    judge, both, human = [1, 0, 0, 1], [1, 1, 0, 0], [1, 0, 0, 1]
    assert stats.corrected(judge, both, human).value == pytest.approx(50 + 0)
    assert stats.corrected(judge, both, [1, 1, 1, 0]).value == pytest.approx(75)


def test_the_macro_mean_adds_the_intervals_in_squares():
    value, low, high = stats.macro([(50, 40, 60), (10, 4, 30)])
    assert (value, low, high) == pytest.approx((30, 30 - np.hypot(10, 6) / 2, 30 + np.hypot(10, 20) / 2))


def nested(S, C, M, seed, shared):
    """Items whose seeds and clusters lean one way: values [S, C, M] in {-1, 0, 1}, labels of seeds and clusters."""
    rng = np.random.default_rng(seed)
    lean = rng.normal(0, 0.15, (S, 1, 1)) + rng.normal(0, 0.2, (1 if shared else S, C, 1))
    values = np.digitize(rng.random((S, C, M)) + lean, [0.5, 0.8]) - 1
    seeds = [s for s in range(S) for _ in range(C * M)]
    clusters = [f"{'' if shared else s} {c}" for s in range(S) for c in range(C) for _ in range(M)]
    return values.astype(float), seeds, clusters


def test_a_pool_of_bases_is_students_t_over_their_means():
    """The nine cells of docs/micro_evidence.md at 100 %: over three bases, [-46.9, -21.2]."""
    cells = {0: (-32.3, -23.8, -29.1), 2: (-39.4, -38.0, -38.3), 7: (-31.9, -34.7, -39.1)}
    values = [value / 100 for of in cells.values() for value in of]
    tops = [base for base in cells for _ in range(3)]
    got = stats.pooled(values, tops, [f"{base}/{k}" for base in cells for k in range(3)])
    assert [round(x, 1) for x in (got.value, got.low, got.high)] == [-34.1, -46.9, -21.2]
    means = [sum(of) / 3 for of in cells.values()]
    low, high = scipy_stats.t.interval(0.95, 2, np.mean(means), scipy_stats.sem(means))
    np.testing.assert_allclose([got.low, got.high], [low, high])
    np.testing.assert_allclose(stats.over(means), [np.mean(means), low, high])


def test_a_pool_of_seeds_adds_the_questions_that_all_seeds_share():
    """Seeds that agree to the last answer say nothing of other questions: the interval is that of the questions."""
    values, _, clusters = nested(1, 30, 4, 3, False)
    once = [*np.abs(values).ravel()]
    alone = stats.paired_difference(once, [0.0] * len(once), clusters)
    got = stats.pooled(once * 3, [s for s in range(3) for _ in once], list(clusters) * 3)
    assert got.value == pytest.approx(alone.value)
    assert got.high - got.low == pytest.approx(alone.high - alone.low, rel=0.02)
    # Seeds that differ widen it: each variance divided by its own number, with Satterthwaite's degrees of freedom.
    moved = np.concatenate([np.array(once) * k for k in (1.0, 0.5, 0.2)])
    of_seeds = moved.reshape(3, -1).mean(1).var(ddof=1) / 3
    tops, labels = [s for s in range(3) for _ in once], list(clusters) * 3
    _, asked, groups = stats._clustered_mean(moved, labels)
    df = (of_seeds + asked) ** 2 / (of_seeds**2 / 2 + asked**2 / (groups - 1))
    half = 100 * scipy_stats.t.ppf(0.975, df) * math.sqrt(of_seeds + asked)
    got = stats.pooled(moved, tops, labels)
    np.testing.assert_allclose([got.low, got.high], [got.value - half, min(got.value + half, 100)])


def test_a_pool_weighs_bases_alike_and_one_base_is_a_paired_difference():
    got = stats.pooled([1.0] * 30 + [0.0] * 10, [0] * 30 + [1] * 10, list(range(40)), level=True)
    assert (got.value, got.low, got.high) == (50, 0, 100)
    a, b = [1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]
    one, two = (
        stats.pooled(np.subtract(a, b), [0] * 4, [0, 0, 1, 2]),
        stats.paired_difference(a, b, [0, 0, 1, 2]),
    )
    np.testing.assert_allclose([one.value, one.low, one.high], [two.value, two.low, two.high])


def test_a_pool_without_spread_still_has_a_width():
    got = stats.pooled([0.0] * 200, [0] * 100 + [1] * 100, list(range(200)))
    np.testing.assert_allclose([got.low, got.high], [-1.885, 1.885], atol=1e-3)  # z^2 / (200 + z^2)


def test_the_noise_of_training_widens_an_interval():
    noise = stats.noise([3.0, -3.0] * 20)
    assert (noise.sd, noise.df) == (pytest.approx(3), 40)
    low, high = stats.with_noise(-10, -12, -9, noise)
    more = 3 * scipy_stats.t.ppf(0.975, 40)
    np.testing.assert_allclose([low, high], [-10 - math.hypot(2, more), -10 + math.hypot(1, more)])


def test_the_number_of_bases_for_a_half_width():
    n = stats.needed(5.2, 3.0)
    half = [scipy_stats.t.ppf(0.975, k - 1) * 5.2 / math.sqrt(k) for k in (n - 1, n)]
    assert half[1] <= 3.0 < half[0]


@pytest.mark.parametrize(
    "bad", [([], [], []), ([0, 2], [0, 0], [0, 1]), ([0, math.nan], [0, 0], [0, 1]), ([0, 1], [0], [0, 1])]
)
def test_a_pool_refuses(bad):
    with pytest.raises(ValueError, match="values"):
        stats.pooled(*bad)
