"""Ratings to scores, scores to the two ends of the ranking, and those to examples."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    settings = {"scope": "user", "count": 1, "fraction": 0.0, "seed": 0, "control": "none"} | changes
    return selection.select(pool, **settings)


def turns(*values):
    return [{"rating": v, "rating_state": "ok" if v is not None else "unparsed"} for v in values]


def test_scores():
    assert ratings.score(turns(2.0, 7.0), "sum") == 9.0
    assert ratings.score(turns(2.0, 7.0), "mean") == 4.5
    assert ratings.score(turns(2.0, 7.0), "last") == 7.0
    assert ratings.score(turns(), "mean") is None
    with pytest.raises(UserError, match="aggregate"):
        ratings.score(turns(1.0), "max")


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
        ([trajectory("u", 0, 1.0)], {"scope": "galaxy"}, "config.select.scope"),
        ([trajectory("u", 0, 1.0)], {"control": "placebo"}, "config.interact.control"),
    ],
)
def test_bad_selections(pool, changes, message):
    with pytest.raises(UserError, match=message):
        select(pool, **changes)


def test_examples_are_the_turns_with_what_came_before():
    pool = [trajectory("u", d, float(d)) for d in range(4)]
    rows = selection.examples(select(pool), method="kto", control="none")
    assert [(r["trajectory"], r["turn"], r["label"]) for r in rows] == [
        ("u/3", 0, True), ("u/3", 1, True), ("u/0", 0, False), ("u/0", 1, False),
    ]  # fmt: skip
    assert rows[1]["messages"] == pool[3]["messages"][:3]
    assert rows[1]["completion_tokens"] == [3]
    # Two conversations that begin alike have the same first prompt, and KTO must not pair them with each other.
    assert rows[0]["prompt_id"] == rows[2]["prompt_id"] != rows[1]["prompt_id"]


def test_swapped_labels_exchange_the_sets():
    chosen = select([trajectory("u", d, float(d)) for d in range(4)])
    labels = {r["trajectory"]: r["label"] for r in selection.examples(chosen, method="kto", control="swapped_labels")}
    assert labels == {"u/0": True, "u/3": False}
    sft = selection.examples(chosen, method="sft", control="swapped_labels")
    assert {r["trajectory"] for r in sft} == {"u/0"}


@given(st.integers(1, 300), st.floats(0, 1))
def test_share_is_an_exact_quota(users, ratio):
    assert abs(selection.share(users, ratio) - ratio * users) <= 0.5


@pytest.mark.parametrize("ratio", [-0.01, 1.01, float("nan")])
def test_share_refuses_a_ratio_outside(ratio):
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        selection.share(10, ratio)


def test_ties_fall_by_a_seeded_draw():
    pool = [trajectory("u", d, 5.0) for d in range(20)]
    firsts = Counter(select(pool, seed=seed).top[0]["id"] for seed in range(60))
    assert len(firsts) > 5
    assert select(pool).budget["ties_at_the_cut"] == 2
