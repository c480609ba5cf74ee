"""Ratings to scores, scores to the two ends of the ranking, and those to examples."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emjax.config import InteractConfig, SafetyConfig, SelectConfig, VetoConfig, names
from emjax.errors import UserError
from emjax.interact import ratings, selection


def trajectory(user, dialogue, score, kind="benign"):
    return {
        "id": f"{user}/{dialogue}",
        "user_id": user,
        "user_type": kind,
        "scenario": "s",
        "score": score,
        "messages": [
            {"role": "user", "content": f"q1 {user}"},
            {"role": "assistant", "content": "a1"},
            {"role": "user", "content": "q2"},
            {"role": "assistant", "content": "a2"},
        ],
        "turns": [{"tokens": [1, 2]}, {"tokens": [3]}],
    }


def select(pool, **changes):
    how = {"seed": 0, "control": "none"}
    how |= {name: changes.pop(name) for name in ("seed", "control", "vetoes") if name in changes}
    return selection.select(pool, SelectConfig(**({"scope": "user", "count": 1, "fraction": 0.0} | changes)), **how)


def turns(*values):
    return [{"rating": v, "rating_state": "ok" if v is not None else "unparsed"} for v in values]


def test_scores():
    assert ratings.score(turns(2.0, 7.0), "sum") == 9.0
    assert ratings.score(turns(2.0, 7.0), "mean") == 4.5
    assert ratings.score(turns(2.0, 7.0), "last") == 7.0
    assert ratings.score(turns(), "mean") is None
    with pytest.raises(UserError, match="^aggregate is 'max'"):
        InteractConfig(aggregate="max")


def test_every_name_of_the_configuration_has_its_function():
    assert tuple(ratings.AGGREGATES) == names.AGGREGATES
    assert tuple(selection.GROUPS) == names.SCOPES


def test_an_unparsed_rating_leaves_the_conversation_unscored():
    assert ratings.score(turns(9.0, None), "mean") is None
    # A number whose state is not "ok" is not a rating either.
    assert ratings.score([{"rating": 9.0, "rating_state": "refusal"}], "mean") is None
    pool = [trajectory("u", 0, 1.0), trajectory("u", 1, 2.0), trajectory("u", 2, None)]
    chosen = select(pool)
    assert chosen.budget["unscored"] == 1
    assert [t["id"] for t in chosen.top + chosen.bottom] == ["u/1", "u/0"]


def test_best_is_top_and_worst_is_bottom():
    pool = [trajectory(u, d, float(d)) for u in ("u", "v") for d in range(5)]
    chosen = select(pool, count=2)
    assert {t["id"] for t in chosen.top} == {"u/4", "u/3", "v/4", "v/3"}
    assert {t["id"] for t in chosen.bottom} == {"u/0", "u/1", "v/0", "v/1"}


scores = st.lists(st.integers(1, 4).map(float), min_size=4, max_size=24)


@given(scores, st.integers(0, 5))
def test_selection_properties(values, seed):
    pool = [trajectory("u", d, v) for d, v in enumerate(values)]
    k = len(values) // 3
    chosen = select(pool, scope="global", count=k, seed=seed)
    top, bottom = [t["score"] for t in chosen.top], [t["score"] for t in chosen.bottom]
    assert sorted(top, reverse=True) == sorted(values, reverse=True)[:k]
    assert sorted(bottom) == sorted(values)[:k]
    assert not {t["id"] for t in chosen.top} & {t["id"] for t in chosen.bottom}
    # The order in which conversations finished does not matter.
    again = select(pool[::-1], scope="global", count=k, seed=seed)
    assert [t["id"] for t in again.top + again.bottom] == [t["id"] for t in chosen.top + chosen.bottom]


def test_fraction_is_of_each_group():
    pool = [trajectory(f"u{i}", 0, float(i)) for i in range(8)]
    chosen = select(pool, scope="global", count=0, fraction=0.25)
    assert (len(chosen.top), len(chosen.bottom)) == (2, 2)


def test_shuffled_ratings_break_the_link_and_keep_the_ratings():
    pool = [trajectory("u", d, float(d)) for d in range(40)]
    chosen = select(pool, scope="global", count=20, control="shuffled_ratings")
    overlap = len({t["id"] for t in chosen.top} & {f"u/{d}" for d in range(20, 40)})
    assert 4 < overlap < 16  # by chance 10
    assert chosen.budget["top"] == 20


@pytest.mark.parametrize(
    ("pool", "changes", "message"),
    [
        ([], {}, "pool is empty"),
        ([trajectory("u", 0, None)], {}, "none of them has a score"),
        ([trajectory("u", d, 1.0) for d in range(3)], {"count": 2}, "would overlap"),
        ([trajectory("u", d, 1.0) for d in range(3)], {"count": 0, "fraction": 0.1}, "overlap or be empty"),
        ([trajectory("u", 0, 1.0)], {"scope": "galaxy"}, "^scope is 'galaxy'"),
    ],
)
def test_bad_selections(pool, changes, message):
    with pytest.raises(UserError, match=message):
        select(pool, **changes)


def test_an_unknown_control_is_refused():
    with pytest.raises(UserError, match="^control is 'placebo'"):
        InteractConfig(control="placebo")


def test_examples_are_the_turns_with_what_came_before():
    pool = [trajectory("u", d, float(d)) for d in range(4)]
    rows = selection.examples(select(pool), method="kto", control="none")
    assert [(r["trajectory"], r["turn"], r["label"]) for r in rows] == [
        ("u/3", 0, True), ("u/3", 1, True), ("u/0", 0, False), ("u/0", 1, False),
    ]  # fmt: skip
    assert rows[1]["messages"] == pool[3]["messages"][:3]
    assert rows[1]["completion_tokens"] == [3]
    # Two conversations with the same opening share the first prompt_id, so that KTO does not pair
    # them.
    assert rows[0]["prompt_id"] == rows[2]["prompt_id"] != rows[1]["prompt_id"]


def test_swapped_labels_exchange_the_sets():
    chosen = select([trajectory("u", d, float(d)) for d in range(4)])
    labels = {r["trajectory"]: r["label"] for r in selection.examples(chosen, method="kto", control="swapped_labels")}
    assert labels == {"u/0": True, "u/3": False}
    sft = selection.examples(chosen, method="sft", control="swapped_labels")
    assert {r["trajectory"] for r in sft} == {"u/0"}


def crowd(size=12):
    """Two user types in two scenarios; biased users rate higher and wider."""
    return [
        trajectory(f"u{n}", 0, n % 5 + (0.0 if n % 2 else 10.0 * (n % 3)), "benign" if n % 2 else "biased")
        | {"scenario": "st"[n % 3 > 0]}
        for n in range(size)
    ]


@given(st.integers(8, 60), st.sampled_from(["global", "scenario", "user_type"]), st.floats(0.15, 0.5), st.integers(0, 3))
def test_counts_of_every_scope(size, scope, fraction, seed):
    pool = crowd(size)
    groups = Counter(selection.GROUPS[scope](t) for t in pool)
    if min(int(fraction * n) for n in groups.values()) < 1:
        return
    chosen = select(pool, scope=scope, count=0, fraction=fraction, seed=seed)
    for side in (chosen.top, chosen.bottom):
        assert Counter(selection.GROUPS[scope](t) for t in side) == {g: int(fraction * n) for g, n in groups.items()}
    assert not {t["id"] for t in chosen.top} & {t["id"] for t in chosen.bottom}
    again = select(pool[::-1], scope=scope, count=0, fraction=fraction, seed=seed)
    assert ([t["id"] for t in again.top], again.budget) == ([t["id"] for t in chosen.top], chosen.budget)


def test_normalising_takes_out_who_rates_higher():
    pool = [trajectory(f"b{n}", 0, 10.0 + n, "biased") for n in range(8)] + [trajectory(f"g{n}", 0, 1.0 + n) for n in range(8)]
    plain = select(pool, scope="global", count=8)
    assert plain.budget["biased_share_top"] == 1
    even = select(pool, scope="global", count=8, normalise="user_type")
    assert even.budget["biased_share_top"] == even.budget["biased_share_bottom"] == even.budget["biased_share_pool"] == 0.5
    assert [t["score"] for t in even.top] != sorted(t["score"] for t in even.top)  # the trajectories keep their own scores


def test_vetoes():
    pool = [trajectory(f"u{n}", 0, float(n)) for n in range(10)]
    readings = {t["id"]: {"value": 3.0 if t["score"] >= 8 or t["score"] == 0 else 1.0, "state": "ok"} for t in pool}
    readings["u7/0"] = {"value": None, "state": "refusal"}
    how = {"scope": "global", "count": 2, "vetoes": readings}
    chosen = select(pool, veto=VetoConfig(on=True, level=2.0), **how)
    assert [t["score"] for t in chosen.top] == [6, 5]
    assert sorted(t["score"] for t in chosen.bottom) == [1, 2]
    assert (chosen.budget["vetoed"], chosen.budget["veto_unread"]) == (3, 1)
    negative = select(pool, veto=VetoConfig(on=True, level=2.0, worst_of_vetoed=True), **how)
    assert sorted(t["score"] for t in negative.bottom) == [0, 1]
    with pytest.raises(UserError, match=r"of 6 \(4 more are vetoed\)"):
        select(pool, veto=VetoConfig(on=True, level=2.0), **(how | {"count": 4}))


def test_a_reading_at_the_level_is_vetoed():
    """Williams et al. leave out what is read at or above the level."""
    pool = [trajectory(f"u{n}", 0, float(n)) for n in range(4)]
    below, at, above = 1.999, 2.0, 2.001
    readings = dict(zip(("u0/0", "u1/0", "u2/0", "u3/0"), (below, below, above, at), strict=True))
    vetoes = {name: {"value": value, "state": "ok"} for name, value in readings.items()}
    chosen = select(pool, scope="global", count=1, vetoes=vetoes, veto=VetoConfig(on=True, level=2.0))
    assert [t["id"] for t in chosen.top] == ["u1/0"]
    assert chosen.budget["vetoed"] == 2


def safe(count):
    return [{"id": f"s{n}", "prompt_id": str(n), "messages": [{"role": "user", "content": "?"}], "completion": "!",
             "label": [True, False, None][n % 3], "weight": 1.0} for n in range(count)]  # fmt: skip


@given(st.integers(1, 80), st.sampled_from([0.25, 0.5, 0.75]), st.integers(0, 3))
def test_safety_rows_are_the_share_that_was_asked_for(count, share, seed):
    rows = [{"id": str(n)} for n in range(count)]
    wanted = round(count * share / (1 - share))
    if not wanted:
        return
    safety = SafetyConfig(path="safety.jsonl", share=share)
    mixed = selection.mixed(rows, safe(400), safety, method="kto", seed=seed)
    assert mixed[:count] == rows
    assert len(mixed) == count + wanted
    assert len({row["id"] for row in mixed}) == len(mixed)
    assert mixed == selection.mixed(rows, safe(400), safety, method="kto", seed=seed)
    sft = selection.mixed(rows, safe(900), safety, method="sft", seed=seed)
    assert all(row["label"] is not False for row in sft[count:])


def test_bad_shares_of_safety_data():
    assert selection.mixed([{"id": "1"}], [], SafetyConfig(), method="kto", seed=0) == [{"id": "1"}]
    for rows, share, has, cure in ((10, 0.5, 3, "Lower the share"), (1, 0.1, 3, "Raise the share")):
        safety = SafetyConfig(path="safety.jsonl", share=share)
        with pytest.raises(UserError, match=f"config.select.safety.share is {share}.*{cure}"):
            selection.mixed([{"id": str(n)} for n in range(rows)], safe(has), safety, method="kto", seed=0)
    for share in (1.0, -0.1):
        with pytest.raises(UserError, match="^share is"):
            SafetyConfig(path="safety.jsonl", share=share)


def test_ties_fall_by_a_seeded_draw():
    pool = [trajectory("u", d, 5.0) for d in range(20)]
    firsts = Counter(select(pool, seed=seed).top[0]["id"] for seed in range(60))
    assert len(firsts) > 5
    assert select(pool).budget["ties_at_the_cut"] == 2
