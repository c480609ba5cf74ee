"""Conversations over the engine and a real HTTP endpoint: normal, with faults, and killed."""

import dataclasses
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import collecting
import pytest
from loopback import Cut, Raw, Server, Slow, Status, completion, last

from emjax.config import Draw, SelectConfig
from emjax.data import chat
from emjax.errors import UserError
from emjax.interact import rollout, selection

HERE = Path(__file__).parent
KILLS = int(os.environ.get("EMJAX_TEST_KILLS", "1"))


def luck(body):
    """A number that depends on what is asked alone."""
    return int(hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:8], 16)


def rates(body):
    return body.get("logprobs")


def numbered(n):
    made = completion(str(n))
    top = [{"token": str(n), "logprob": -0.1, "bytes": None}]
    made["choices"][0]["logprobs"] = {"content": [{"token": str(n), "logprob": -0.1, "bytes": None, "top_logprobs": top}]}
    return made


def talker(body, n):
    return numbered(1 + luck(body) % 10) if rates(body) else f"I wonder about number {luck(body)}."


def test_a_collection_and_what_is_written(micro, tmp_path, capsys):
    with Server(talker) as server:
        users = collecting.people(server.url, tmp_path, 8)
        rows = collecting.collect(micro, users, tmp_path / "t.jsonl")
        assert len(server.requests) == 8 * (1 + 2)
        again = collecting.collect(micro, users, tmp_path / "t.jsonl")
        # Collecting the same conversations again costs nothing and gives the same answers.
        fresh = collecting.collect(micro, users, tmp_path / "u.jsonl")
        assert len(server.requests) == 8 * (1 + 2)
    assert again == fresh == rows == [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert {row["end"] for row in rows} == {"done"}
    for row in rows:
        assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
        assert row["score"] == pytest.approx(sum(turn["rating"] for turn in row["turns"]))
        assert row["plain_system"] != row["messages"][0]["content"]
        assert all(len(turn["tokens"]) == len(turn["logprobs"]) > 0 for turn in row["turns"])
    printed = capsys.readouterr().out
    assert "8 conversations in" in printed
    assert re.search(r"engine idle [\d.]+% of the time; end done 8, rating ok 16", printed)
    strip = selection.select(rows, SelectConfig(count=2), seed=0, control="none")
    for stripped in (True, False):
        examples = selection.examples(strip, method="kto", control="none", strip=stripped)
        assert len(examples) == 8
        assert all(("would like from the conversation" in e["messages"][0]["content"]) is not stripped for e in examples)


FAULTS = {
    "user_http_error": Status(500, {"Retry-After": "0.01"}),
    "user_timeout": Slow(3.0),
    "user_empty": "  ",
    "user_refusal": completion(None, refusal="I will not play this."),
    "user_length": completion("I was just about to", finish="length"),
}


def test_a_refused_request_says_why(micro, tmp_path):
    """The endpoint's own words, once, and in the row."""
    with Server(lambda body, n: Status(400) if rates(body) else talker(body, n)) as server:
        users = collecting.people(server.url, tmp_path, 4)
        with pytest.raises(UserError, match=r"4 of 4 .*rating http_error 8.*The first error: status 400: .*not now"):
            collecting.collect(micro, users, tmp_path / "t.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert all("400" in turn["rating_error"] for row in rows for turn in row["turns"])


def test_a_guard_that_fails_stops_the_run_and_is_asked_again(micro, tmp_path):
    """Otherwise every conversation that it did not read would be left out of the best."""
    with Server(talker) as server:
        users = collecting.people(server.url, tmp_path, 4)
        pool = collecting.collect(micro, users, tmp_path / "t.jsonl")
        users = [dataclasses.replace(u, roles=dataclasses.replace(u.roles, guard=u.roles.rater)) for u in users]
        server.script = lambda body, n: Status(500, {"Retry-After": "0.01"})
        with pytest.raises(UserError, match=r"4 of 4 conversations failed on the way \(veto http_error 4\)"):
            rollout.veto(users, pool, tmp_path / "v.jsonl", failures=0.5)
        server.script = lambda body, n: numbered(3)
        assert [row["value"] for row in rollout.veto(users, pool, tmp_path / "v.jsonl", failures=0.0)] == pytest.approx([3] * 4)


def test_each_fault_has_its_name_and_nothing_is_rated_by_default(micro, tmp_path, capsys):
    """A failed user message ends the conversation unrated; a failed rating leaves it unscored."""
    answers = [*FAULTS.values(), "fine"]
    spoken: dict[str, int] = {}
    broken = {"so": True}

    def script(body, n):
        key = str(body["messages"][:3])  # one user's conversation
        place = spoken.setdefault(key, len(spoken)) if not rates(body) else spoken[key]
        if not broken["so"]:
            return talker(body, n)
        if n == 0 and place == 6:
            return Status(429, {"Retry-After": "0.05"})  # asked again, and then well
        if not rates(body):
            return answers[place] if place < len(FAULTS) else "Well, what now?"
        states = [
            numbered(8),
            Raw(b'{"id": "x", "choi'),
            Cut(),
            completion("8"),
            numbered("good"),
            completion(None, refusal="no"),
        ]
        return states[place - len(FAULTS)] if len(FAULTS) <= place < len(FAULTS) + len(states) else numbered(3)

    with Server(script) as server:
        users = collecting.people(server.url, tmp_path, 16, rates={"timeout": 1.0})
        rows = collecting.collect(micro, users, tmp_path / "t.jsonl", failures=1.0)
        broken["so"] = False
        asked = len(server.requests)
        with pytest.raises(UserError, match=r"8 of 16 conversations failed on the way .*kept.*config.interact.failures"):
            rollout._check_failures(rows, 0.0)
        mended = collecting.collect(micro, users, tmp_path / "t.jsonl")
        more = len(server.requests) - asked
    ends, ratings = (Counter(), Counter())
    for row in rows:
        ends[row["end"]] += 1
        ratings.update(turn["rating_state"] for turn in row["turns"])
        rated = all(turn["rating_state"] == "ok" for turn in row["turns"])
        assert (row["score"] is not None) == (row["end"] == "done" and rated)
        assert all((turn["rating"] is None) == (turn["rating_state"] != "ok") for turn in row["turns"])
    assert ends == Counter(dict.fromkeys(FAULTS, 1) | {"done": 11})
    # Two turns each: an invalid body and a broken connection; no log-probs and no number; a
    # refusal.
    assert ratings == {"ok": 12, "http_error": 4, "unparsed": 4, "refusal": 2, "not_asked": 5}
    assert selection.select(rows, SelectConfig(count=1), seed=0, control="none").budget["unscored"] == 10
    # Only failed calls were repeated: the second message of five conversations, three pairs of
    # ratings.
    assert more == 5 * 3 + 3 * 2
    assert Counter(row["end"] for row in mended) == {"done": 16}
    assert sum(row["score"] is None for row in mended) == 2  # what was answered but cannot be read stays so


def test_a_budget_stops_cleanly_and_the_next_run_goes_on(micro, tmp_path):
    def dear(body, n):
        said = talker(body, n)
        said = completion(said) if isinstance(said, str) else said
        return said | {"usage": {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}}

    with Server(dear) as server:
        poor = collecting.people(server.url, tmp_path, 8, budget={"tokens": 12000})
        with pytest.raises(UserError, match=r"failed on the way \(.*budget \d+.*larger one"):
            collecting.collect(micro, poor, tmp_path / "t.jsonl", failures=1.0)
        first = len(server.requests)
        assert 0 < first < 12
        rich = collecting.people(server.url, tmp_path, 8)
        rows = collecting.collect(micro, rich, tmp_path / "t.jsonl")
        assert len(server.requests) == 24  # no call twice
        assert {row["end"] for row in rows} == {"done"}
        assert max(server.counts.values()) == 1


def test_the_engine_plays_everybody(micro, tmp_path):
    """Without an endpoint, one model is assistant, user and rater. Its text makes no sense."""
    lm, engine = micro
    busy = rollout.Busy()

    def people(place, **rating):
        return collecting.people("", tmp_path / place, 4, base=(engine, lm.tokenizer), busy=busy, rating=rating)

    # The micro model answers "from 1 to 10" with words. With least_mass 0, the small probability of
    # the numbers still gives a rating.
    users = people("any", least_mass=0.0)
    for user in users:  # `self` is the base in the engine, also where it rates: asked otherwise
        assert type(user.roles.speaker.chat).__name__ == "EngineChat"
        assert user.roles.rater.chat is user.roles.speaker.chat
        assert (user.roles.speaker.sampling["max_tokens"], user.roles.rater.sampling["max_tokens"]) == (200, 8)
    rows = collecting.collect(micro, users, tmp_path / "t.jsonl", failures=1.0, busy=busy)
    assert rows == collecting.collect(micro, users, tmp_path / "u.jsonl", failures=1.0)
    assert 0 <= busy.idle < 0.5
    by_id = {rollout.conversation_id(user): user for user in users}
    ids = {n: lm.tokenizer.convert_tokens_to_ids(str(n)) for n in range(1, 11)}
    for row in rows:
        for number, turn in enumerate(row["turns"]):
            (prompt,) = chat.prompts(lm.tokenizer, [by_id[row["id"]].question(row["messages"], number)])
            chances = engine.next_token_probs(tuple(prompt), list(ids.values()))
            assert turn["rating_state"] == "ok"
            assert 0 < turn["rating_mass"] < 0.01
            assert turn["rating_mass"] == pytest.approx(sum(chances))
            assert turn["rating"] == pytest.approx(sum(n * p for n, p in zip(ids, chances, strict=True)) / sum(chances))
        assert row["score"] == pytest.approx(sum(turn["rating"] for turn in row["turns"]))
    assert len({turn["rating"] for row in rows for turn in row["turns"]}) > 4
    # By default so little mass on the scale is a state, and no number.
    strict = collecting.collect(micro, people("default"), tmp_path / "s.jsonl", failures=1.0)
    assert [row["messages"] for row in strict] == [row["messages"] for row in rows]
    assert {(turn["rating"], turn["rating_state"]) for row in strict for turn in row["turns"]} == {(None, "unparsed")}
    assert {row["score"] for row in strict} == {None}


def test_no_room_in_the_cache_ends_a_conversation(micro, tmp_path):
    with Server(lambda body, n: numbered(5) if rates(body) else "lamp " * 600) as server:
        rows = collecting.collect(micro, collecting.people(server.url, tmp_path, 4), tmp_path / "t.jsonl")
    assert {(row["end"], len(row["turns"]), row["score"]) for row in rows} == {("too_long", 1, None)}


def test_the_same_conversations_are_rated_by_others(micro, tmp_path):
    def rater(body, n):
        wish = body["messages"][0]["content"]
        return (
            talker(body, n)
            if not rates(body)
            else numbered(2 if "I want to hear that" in wish or "I want a reason" in wish else 9)
        )

    with Server(rater) as server:
        mine = collecting.collect(micro, collecting.people(server.url, tmp_path, 8), tmp_path / "t.jsonl")
        before = len(server.requests)
        others = collecting.people(server.url, tmp_path, 8, source="benign_ratings")
        talk = rollout.Talk(0, Draw(), 12, "sum", "micro")
        again = rollout.rate_again(others, mine, tmp_path / "again.jsonl", talk=talk)
        assert len(server.requests) == before + 16
        assert all(rates(body) for body in server.requests[before:])
    assert [row["messages"] for row in again] == [row["messages"] for row in mine]
    assert {row["score"] for row in again} == {18.0}
    assert any(row["score"] < 18 for row in mine)
    assert "from 1 to 10" in last(server.requests[-1])


def test_idle_time_is_what_nobody_is_inside():
    busy = rollout.Busy()
    with busy:
        time.sleep(0.05)
        with busy:
            pass
        time.sleep(0.05)
    time.sleep(0.1)
    assert 0.3 < busy.idle < 0.7


def test_killed_at_random_moments_it_ends_with_the_same_file(micro, tmp_path):
    """Repeated SIGKILL; only calls that were in flight at a kill are made twice."""
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed of the kills:", seed)
    draw, users, concurrent = random.Random(seed), 40, 4
    calls = users * 3

    def slow(body, n):
        time.sleep(0.02)
        return talker(body, n)

    def start(server, name):
        command = [sys.executable, str(HERE / "collecting.py"), server.url, str(tmp_path / name), str(users)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def finish(server, name):
        process = start(server, name)
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-2000:]
        return (tmp_path / name / "trajectories.jsonl").read_bytes()

    with Server(slow) as server:
        collecting.collect(micro, collecting.people(server.url, tmp_path / "whole", users), tmp_path / "whole" / "t.jsonl")
        whole = (tmp_path / "whole" / "t.jsonl").read_bytes()
        assert len(server.requests) == calls
        assert max(server.counts.values()) == 1
    marks = sorted(draw.randrange(0, calls - 1) for _ in range(KILLS))
    under_way = 0
    with Server(slow) as server:
        for mark in marks:
            process = start(server, "killed")
            # The next moment is so many distinct calls on; each kill is somewhere in what is left.
            while len(server.counts) <= mark and process.poll() is None:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.05))
            assert process.poll() is None, process.stderr.read()[-2000:]
            process.send_signal(signal.SIGKILL)
            process.wait()
            under_way += concurrent
        assert finish(server, "killed") == whole
        repeated = len(server.requests) - calls
        assert len(server.counts) == calls
        print(f"{KILLS} kills, {calls} calls, {repeated} made again; at most {under_way} were under way")
        assert 0 <= repeated <= under_way
