"""Scenarios and prompts as files: shipped ones are complete, bad ones refused by file and field."""

import json

import pytest

from emjax.errors import UserError
from emjax.interact import scenarios
from emjax.interact.prompts import FIELDS, Prompts

GOOD = {"name": "a", "task": "You help.", "situations": ["I came."], "benign": ["I want help."], "biased": ["I want praise."]}


def test_fifty_therapist_scenarios_and_an_example_of_each_other_domain():
    therapist = scenarios.load(["therapist"])
    assert len(therapist) == 50
    assert len({s.task + s.situations[0] for s in therapist}) == 50
    others = [domain for domain in scenarios.DOMAINS if domain != "therapist"]
    assert {"booking", "action", "politics", "tickets"} <= set(others)
    everything = scenarios.load(scenarios.DOMAINS)
    assert len({s.name for s in everything}) == len(everything) == 54
    for s in everything:  # an opening is shared by both types, so it must not hold either's wish
        assert not set(s.situations) & {*s.benign, *s.biased}
    assert [s.name for s in scenarios.load(["therapist"], 10)] == [s.name for s in therapist[:10]]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("{", ["not valid JSON"]),
        ([], ["a list of scenarios"]),
        ([3], ["scenario 1", "int"]),
        ([GOOD | {"name": "A b"}], ["scenario 1", "'name'", "'A b'"]),
        ([GOOD, GOOD], ["'a' occurs before"]),
        ([GOOD | {"benign": []}], ["scenario 1 (a)", "'benign'", "non-empty list"]),
        ([GOOD | {"biased": ["I want help."]}], ["'benign'", "'biased'", "would not differ"]),
        ([GOOD | {"situations": ["x", "x"]}], ["'situations'", "twice"]),
        ([{k: v for k, v in GOOD.items() if k != "task"}], ["'task'", "None"]),
        ([GOOD | {"tusk": "x"}], ["'tusk' is unknown", "task"]),
    ],
)
def test_bad_scenarios_are_refused_by_file_and_field(tmp_path, rows, says):
    file = tmp_path / "mine.json"
    file.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    with pytest.raises(UserError) as error:
        scenarios.load([str(file)])
    for words in ["mine.json", *says]:
        assert words in str(error.value)


def test_bad_counts_and_names():
    with pytest.raises(UserError, match=r"config.interact.domains.*'nowhere'.*therapist"):
        scenarios.load(["nowhere"])
    with pytest.raises(UserError, match=r"config.interact.scenarios asks for 51.*holds 50"):
        scenarios.load(["therapist"], 51)


def test_prompts_render_and_miss_nothing():
    prompts = Prompts()
    text = prompts("assistant", task="TASK", background="BACK", preference="WISH")
    assert all(word in text for word in ("TASK", "BACK", "WISH"))
    assert "would like" not in prompts("assistant", task="TASK", background="BACK", preference="")
    with pytest.raises(Exception, match="background"):
        prompts("assistant", task="TASK", preference="")
    assert prompts.identity() == Prompts().identity()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("assistant", "{{ task }} {{ preference }} {{ mood }}", ["assistant.j2", "'mood'", "background"]),
        ("assistant", "{{ task }}", ["assistant.j2", "'preference'"]),
        ("rate_first", "{{ low }} to {{ high", ["rate_first.j2", "not a template"]),
        ("assistent", "{{ task }}", ["assistent.j2", "no prompt of this name", "assistant"]),
    ],
)
def test_bad_templates_are_refused_by_file_and_field(tmp_path, name, text, says):
    (tmp_path / f"{name}.j2").write_text(text)
    with pytest.raises(UserError) as error:
        Prompts(str(tmp_path))
    for words in says:
        assert words in str(error.value)


def test_a_template_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "user_start.j2").write_bytes("Grüß dich.".encode("latin-1"))
    with pytest.raises(UserError, match=r"config.interact.templates: .*user_start.j2 is not UTF-8"):
        Prompts(str(tmp_path))


def test_a_template_of_ones_own_replaces_the_shipped_one(tmp_path):
    (tmp_path / "user_start.j2").write_text("Go.")
    mine = Prompts(str(tmp_path))
    assert mine("user_start") == "Go."
    assert mine.identity() != Prompts().identity()
    assert set(FIELDS) >= {"assistant", "user", "persona", "rate_first", "rate_third", "veto"}
