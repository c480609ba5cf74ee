"""Personas: made from templates, or written by models in turn, checked, repeated ones replaced."""

import csv
import functools
import json
import re
from collections import Counter

import pytest
from loopback import Server, Status, completion, last

from emjax.api import ChatClient, Reply
from emjax.config import InteractionConfig, Rates
from emjax.errors import UserError
from emjax.interact import personas, scenarios
from emjax.interact.prompts import Prompts

TWO = scenarios.load(["therapist"], 2)
COUNTS = {TWO[0].name: 4, TWO[1].name: 3}


def test_embedded_personas_are_distinct_and_a_function_of_the_seed():
    everyone = scenarios.load(["therapist"])
    made = personas.embedded(everyone, {s.name: 400 for s in everyone}, 0)
    assert len(made) == 20_000
    assert len({(p.scenario, p.opening) for p in made}) == 20_000
    assert {p.model for p in made} == {personas.TEMPLATES}
    assert not any(re.search(r"[{}]", p.background + p.opening) for p in made)
    assert personas.embedded(TWO, COUNTS, 1) == personas.embedded(TWO, COUNTS, 1)
    assert personas.embedded(TWO, COUNTS, 1) != personas.embedded(TWO, COUNTS, 2)
    with pytest.raises(UserError, match=r"9999 users.*config.interact.models.persona1.model") as error:
        personas.embedded(TWO, {TWO[0].name: 9999}, 0)
    field = re.search(r"\(config\.([\w.]+)\)", str(error.value))[1]
    assert functools.reduce(getattr, field.split("."), InteractionConfig()) == ""


def person(number, word="word"):
    return json.dumps(
        {
            "background": f"Number {number} is a baker from the north.",
            "opening": " ".join(f"{word}{number}x{n}" for n in range(9)),
        }
    )


def write(path, script, *, tries=4, by_type=False, structured=False, counts=COUNTS):
    with Server(script) as server:
        rates = Rates(retries=0, timeout=2)
        cache = path.parent / "cache"
        writers = [
            personas.Writer(name, ChatClient(server.url, name, cache_dir=cache, rates=rates), {"max_tokens": 99}, structured)
            for name in ("one", "two")
        ]
        return personas.generate(TWO, counts, writers, Prompts(), path, by_type=by_type, tries=tries), server.requests


def number_of(body):
    return int(re.search(r"person number (\d+)", last(body))[1])


def test_models_take_turns_and_both_thoughts_are_shown(tmp_path):
    made, requests = write(tmp_path / "p.jsonl", lambda body, n: person(number_of(body), last(body)[:60]))
    assert len(made) == len(requests) == 7
    assert Counter(p.model for p in made) == {"one": 4, "two": 3}
    for body in requests:
        scenario = next(s for s in TWO if s.task in last(body))
        assert any(t in last(body) for t in scenario.benign)
        assert any(t in last(body) for t in scenario.biased)
    again = personas.cast([json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()])
    assert again == made
    assert made[0].of("benign") == made[0].of("biased")


def test_one_persona_a_type_where_asked_for(tmp_path):
    def script(body, n):
        kind = "good" if any(t in last(body) for s in TWO for t in s.benign) else "ill"
        return person(number_of(body), f"{kind}{len(last(body))}")

    made, requests = write(tmp_path / "p.jsonl", script, by_type=True)
    assert (len(made), len(requests)) == (7, 14)
    assert made[0].of("benign").opening.startswith("good")
    assert made[0].of("biased").opening.startswith("ill")


def test_bad_answers_are_counted_by_name_and_asked_for_again(tmp_path, capsys):
    bad = {
        1: '{"background": "A baker from the north.", "opening": "too short"}', 2: "I cannot do that.",
        3: completion(None, refusal="no"), 4: Status(500),
    }  # fmt: skip
    seen = Counter()

    def script(body, n):
        number = number_of(body)
        seen[number, last(body)] += 1
        if seen[number, last(body)] == 1 and TWO[0].task in last(body):
            return bad[number]
        return f"```json\n{person(number, last(body)[:50])}\n```"

    made, _ = write(tmp_path / "p.jsonl", script)
    assert len(made) == 7
    assert "personas: http_error 1, ok 7, refusal 1, repeated 0, schema_error 2" in capsys.readouterr().out


def test_repetitions_are_asked_for_again_and_the_first_one_stays(tmp_path, capsys):
    seen = Counter()

    def script(body, n):
        seen[number_of(body), TWO[0].task in last(body)] += 1
        fresh = seen[number_of(body), TWO[0].task in last(body)] > 1
        return person(number_of(body) if fresh else 0, "again" if fresh else "same")

    made, _ = write(tmp_path / "p.jsonl", script)
    assert len({(p.scenario, p.opening) for p in made}) == 7
    assert [p.opening.startswith("same") for p in made] == [True, False, False, False, True, False, False]
    assert "repeated 5" in capsys.readouterr().out


def test_what_is_missing_in_the_end_is_an_error_and_what_came_is_kept(tmp_path):
    answers = {"ok": False}

    def script(body, n):
        if not answers["ok"] and number_of(body) == 2:
            return "no"
        return person(number_of(body), last(body)[:40])

    with pytest.raises(UserError, match=r"2 of 7 personas are missing after 2 tries each \(.*schema_error 4"):
        write(tmp_path / "p.jsonl", script, tries=2)
    answers["ok"] = True
    with pytest.raises(UserError, match="larger config.interact.personas.tries"):  # what came and was no good is not paid again
        write(tmp_path / "p.jsonl", script, tries=2)
    made, asked = write(tmp_path / "p.jsonl", script, tries=3)
    assert len(made) == 7
    assert len(asked) == 2


def test_near_repetitions():
    def row(n, text, kind="both"):
        return {"id": str(n), "scenario": "s", "user_type": kind, "opening": text}

    rows = [row(0, "I drank a glass of wine today"), row(1, "Today I drank a glass of WINE!"), row(2, "I lost all of my money"),
            row(3, "I drank a glass of wine today", "biased")]  # fmt: skip
    assert personas.repeated(rows) == personas.repeated(rows[::-1]) == {"1"}


def test_the_sample_for_people_covers_every_scenario(tmp_path):
    rows = personas.rows_of(personas.embedded(TWO, COUNTS, 0))
    personas.to_check(rows, 4, 0, tmp_path / "check.csv")
    with (tmp_path / "check.csv").open() as file:
        found = list(csv.DictReader(file))
    assert Counter(row["scenario"] for row in found) == {TWO[0].name: 2, TWO[1].name: 2}
    assert found[0]["believable"] == found[0]["gives_the_type_away"] == ""


def test_reading_text_around_the_json():
    good = person(1)
    assert personas.read(Reply(f"Sure!\n```json\n{good}\n```", "ok"))[1] == "ok"
    assert personas.read(Reply(good[:-5], "ok"))[1] == "schema_error"
    assert personas.read(Reply("", "timeout")) == (None, "timeout")
