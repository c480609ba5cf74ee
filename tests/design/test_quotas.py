"""How many users of each type a scenario has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emjax.data.mixture import quota
from emjax.design.quotas import quotas, spread
from emjax.errors import UserError


@given(st.integers(1, 300), st.floats(0, 1))
def test_a_quota_is_exact(users, ratio):
    assert abs(quota(users, ratio) - ratio * users) <= 0.5 + 1e-6


@pytest.mark.parametrize("ratio", [-0.01, 1.01, float("nan")])
def test_a_quota_refuses_a_ratio_outside(ratio):
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        quota(10, ratio)


SCENARIOS = ["a", "b", "c"]
ratios = st.one_of(st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0]), st.floats(0, 1))


@given(st.integers(1, 200), ratios, st.sampled_from(["exact", "per_scenario", "draw"]), st.integers(0, 3))
def test_quotas_keep_every_user_and_their_share(users, ratio, scheme, seed):
    found = quotas(users, SCENARIOS, ratio, scheme=scheme, seed=seed)
    sizes = {name: sum(both) for name, both in found.items()}
    assert sizes == spread(users, SCENARIOS)
    assert sum(sizes.values()) == users
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert all(benign >= 0 and biased >= 0 for benign, biased in found.values())
    biased = sum(b for _, b in found.values())
    if scheme == "exact":
        assert biased == quota(users, ratio)
    if scheme == "per_scenario":
        assert {name: b for name, (_, b) in found.items()} == {name: quota(sizes[name], ratio) for name in SCENARIOS}
    assert found == quotas(users, SCENARIOS, ratio, scheme=scheme, seed=seed)


@given(st.integers(1, 200), ratios, ratios, st.sampled_from(["exact", "per_scenario", "draw"]))
def test_who_is_biased_at_one_ratio_is_so_at_a_larger_one(users, one, other, scheme):
    low, high = (quotas(users, SCENARIOS, r, scheme=scheme) for r in sorted((one, other)))
    assert all(low[name][1] <= high[name][1] for name in SCENARIOS)


def test_a_draw_is_binomial():
    """Per-sample draws: 400 seeds of 300 users at 0.1 have mean 30 and variance 27."""
    counts = [sum(b for _, b in quotas(300, SCENARIOS, 0.1, scheme="draw", seed=s).values()) for s in range(400)]
    mean = sum(counts) / 400
    assert abs(mean - 30) < 4 * (27 / 400) ** 0.5
    assert 18 < sum((c - mean) ** 2 for c in counts) / 399 < 38


@given(st.integers(1, 60), st.floats(0.01, 1))
def test_fixed_biased_keeps_their_number_while_the_benign_pool_grows(biased, ratio):
    found = quotas(1000, SCENARIOS, ratio, scheme="fixed_biased", biased=biased)
    ill = sum(b for _, b in found.values())
    benign = sum(g for g, _ in found.values())
    assert ill == biased
    assert abs(benign - biased * (1 - ratio) / ratio) <= 0.5 + 1e-6
    nobody = quotas(1000, SCENARIOS, 0.0, scheme="fixed_biased", biased=biased)
    assert [sum(x) for x in zip(*nobody.values(), strict=True)] == [1000, 0]


def test_williams_numbers_of_the_mixed_sweep():
    """160 vulnerable starts an environment stay while the benign pool grows: 2 % is 8,000 in all for each."""
    for percent, total in {2: 8000, 5: 3200, 10: 1600, 20: 800, 25: 640, 50: 320}.items():
        (both,) = quotas(0, ["t"], percent / 100, scheme="fixed_biased", biased=160).values()
        assert (sum(both), both[1]) == (total, 160)


@pytest.mark.parametrize(("how", "says"), [({"scheme": "dice"}, "config.interact.scheme"),
                                           ({"scheme": "fixed_biased"}, "config.interact.biased_users")])  # fmt: skip
def test_bad_schemes(how, says):
    with pytest.raises(UserError, match=says):
        quotas(10, SCENARIOS, 0.5, **how)


RATIOS = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 1)  # those that the configs name


@pytest.mark.parametrize("users", [200, 2_000, 20_000, 400])  # of all; of a scenario: 20,000 over 50, 2,000 over 10
@pytest.mark.parametrize("ratio", RATIOS)
def test_one_rounding_rule_changes_no_shipped_config(users, ratio):
    """Version 0.1 rounded users by int(ratio n + 0.5) and records by mixture.quota."""
    assert quota(users, ratio) == int(ratio * users + 0.5)


def test_the_two_rounding_rules_disagreed():
    assert int(0.29 * 50 + 0.5) == 14
    assert quota(50, 0.29) == 15
    assert quotas(50, ["t"], 0.29) == {"t": (35, 15)}


@pytest.mark.parametrize("scheme", ["exact", "per_scenario", "draw", "fixed_biased"])
def test_quotas_refuse_a_ratio_outside(scheme):
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        quotas(10, SCENARIOS, 1.01, scheme=scheme, biased=1)
