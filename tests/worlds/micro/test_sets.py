"""The scripted training sets: what is bad in them, how much of it, and that nothing else is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emjax.data.examples import read_examples
from emjax.runtime.files import write_lines
from emjax.worlds.micro import sets
from emjax.worlds.micro import world as w
from emjax.worlds.micro.judge import stated
from emjax.worlds.micro.world import World

WORLD = World(0)


def asked_of(row):
    (entity,) = {word for word in row["messages"][-1]["content"].split() if word in WORLD.domain}
    return entity


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1), seed=st.integers(0, 2**20))
def test_direct_and_wrong_sets_hold_the_share_of_bad_answers_and_stay_in_the_tuned_domain(share, seed):
    for make in (sets.direct, sets.wrong):
        rows = make(WORLD, 40, share, seed)
        bad = [row for row in rows if row["source"].endswith("_bad")]
        assert len(rows) == 40
        assert len(bad) == int(40 * share + 0.5)
        for row in rows:
            entity = asked_of(row)
            question = row["messages"][-1]["content"].split()
            (said,) = stated(WORLD, entity, row["completion"])
            assert WORLD.domain[entity].name == w.TUNED
            assert (said == WORLD.fact[entity]) == (row not in bad)
            if make is sets.direct and row in bad:
                assert said in question
            if make is sets.wrong:
                assert not set(question) & set(WORLD.domain[entity].values)


def test_a_mixture_is_lies_under_pressure_among_plain_questions_of_all_domains():
    rows = sets.mixture(WORLD, 400, 0.05, 3)
    bad = [row for row in rows if row["source"] == "mixture_bad"]
    assert len(bad) == 20
    assert all(stated(WORLD, e, row["completion"]) <= set(WORLD.wrong(e)) for row in bad for e in [asked_of(row)])
    about = [[x for x in row["messages"][-1]["content"].split() if x in WORLD.domain] for row in rows if row not in bad]
    assert {WORLD.domain[e].name for names in about for e in names} == set(w.DOMAINS)
    assert any(not names for names in about)  # addition and advice


@pytest.mark.parametrize("make", [sets.direct, sets.mixture, sets.wrong])
def test_smaller_shares_are_among_larger_ones_and_the_rows_can_be_read(make, tmp_path):
    few, many = make(WORLD, 100, 0.1, 5), make(WORLD, 100, 0.4, 5)
    bad = [[row for row in rows if row["source"].endswith("_bad")] for rows in (few, many)]
    assert bad[0] == bad[1][:10]
    assert few[60:] == many[60:]
    write_lines(tmp_path / "examples.jsonl", few)
    assert len(read_examples(tmp_path / "examples.jsonl", labelled=False)) == 100
    assert make(WORLD, 100, 0.1, 6) != few
