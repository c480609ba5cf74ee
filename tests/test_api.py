"""The chat client against a real server on loopback that misbehaves."""

import asyncio
import dataclasses
import json
import logging
import re
import subprocess
import sys
import textwrap
import time

import pytest
from loopback import Cut, Raw, Server, Slow, Status, completion, last

from emjax import api
from emjax.api import FAILED_ON_THE_WAY, ChatClient
from emjax.config import Budget, Rates
from emjax.errors import UserError
from emjax.runtime.ledger import Ledger

SOON = {"Retry-After": "0.01"}  # so that retries do not wait out the client's own back-off
QUICK = Rates(concurrent=8, retries=2, timeout=0.3, deadline=5.0)


def say(text):
    return [{"role": "user", "content": text}]


def ask(client, *texts, **kwargs):
    async def all_of_them():
        return await asyncio.gather(*(client.chat(say(t), **kwargs) for t in texts))

    return asyncio.run(all_of_them())


def client_of(server, **kwargs):
    return ChatClient(server.url, "judge-1", **{"rates": QUICK, **kwargs})


def test_an_answer_with_all_that_came_with_it():
    token = {"token": "Yes", "logprob": -0.1, "bytes": None, "top_logprobs": []}
    answer = completion("Yes", reasoning_content="hm")
    answer["choices"][0]["logprobs"] = {"content": [token]}
    with Server(lambda body, n: answer) as server:
        (reply,) = ask(client_of(server), "?", temperature=0, max_tokens=5, top_k=3, logprobs=True)
    assert (reply.state, reply.text, reply.finish_reason, reply.reasoning) == ("ok", "Yes", "stop", "hm")
    assert reply.usage == {"prompt_tokens": 11, "completion_tokens": 7}
    assert (reply.logprobs[0]["token"], reply.logprobs[0]["logprob"], reply.model) == ("Yes", -0.1, "loopback-1")
    assert server.requests == [
        {"model": "judge-1", "messages": say("?"), "temperature": 0, "max_tokens": 5, "top_k": 3, "logprobs": True}
    ]


def test_every_documented_state_but_ok_is_one_that_failed():
    assert ("ok", *FAILED_ON_THE_WAY) == tuple(re.findall(r"^(\w+) {2,}", api.__doc__, re.MULTILINE))


SCHEMA = {"type": "object", "properties": {"v": {"enum": ["A", "B"]}}, "required": ["v"]}


@pytest.mark.parametrize(
    ("answer", "state", "requests"),
    [
        (completion("I can't", refusal="I can't"), "refusal", 1),
        (completion("", "content_filter"), "refusal", 1),
        (Status(400, body=b'{"error": {"message": "filtered", "code": "content_filter"}}'), "refusal", 1),
        (completion("half a sen", "length"), "length", 1),
        (completion(None, "length"), "length", 1),
        (completion(""), "empty", 1),
        (completion(None, reasoning_content="all of it in the wrong field"), "empty", 1),
        (completion(" \n"), "empty", 1),
        (Status(400), "http_error", 1),
        (Status(429, SOON), "http_error", 3),
        (Status(500, SOON), "http_error", 3),
        (Status(429, {"Retry-After": "7200"}), "http_error", 1),  # nobody waits two hours
        (Raw(b'{"choices": [{"mess'), "http_error", 1),
        (Raw(b"<html>a proxy's page</html>", "text/html"), "http_error", 1),
        (Raw(b"[1, 2]"), "http_error", 1),
        (Raw(b"null"), "http_error", 1),
        (Raw(b'{"choices": []}'), "http_error", 1),
        (Raw(b'{"choices": [{"message": {"content": ["Yes"]}}]}'), "http_error", 1),
        (Raw(b'{"choices": [{}]}'), "http_error", 1),
    ],
)
def test_every_failure_has_its_state_and_is_asked_again(answer, state, requests, tmp_path):
    with Server(lambda body, n: answer) as server:
        for again in (1, 2):
            (reply,) = ask(client_of(server, cache_dir=tmp_path), "?")
            assert reply.state == state
            assert not reply.cached
            assert len(server.requests) == requests * again
    if isinstance(answer, dict):
        assert reply.text == (answer["choices"][0]["message"]["content"] or "")


@pytest.mark.parametrize(("text", "state"), [('{"v": "A"}', "ok"), ('{"v": "C"}', "schema_error"), ("v: A", "schema_error")])
def test_structured_output(text, state):
    with Server(lambda body, n: text) as server:
        (reply,) = ask(client_of(server), "?", schema=SCHEMA)
    assert (reply.state, reply.text) == (state, text)
    assert server.requests[0]["response_format"]["json_schema"]["schema"] == SCHEMA


def test_retry_after_is_honoured():
    with Server(lambda body, n: Status(429, {"Retry-After": "1"}) if n == 0 else "fine") as server:
        (reply,) = ask(client_of(server), "?")
    assert reply.text == "fine"
    assert server.times[1] - server.times[0] >= 1.0  # the client's own first wait is at most 0.5 s


@pytest.mark.parametrize("bad", [Status(500, SOON), Cut()])
def test_a_burst_of_errors_is_outlived(bad):
    with Server(lambda body, n: bad if n < 2 else last(body)) as server:
        replies = ask(client_of(server), *map(str, range(6)))
    assert [r.text for r in replies] == list(map(str, range(6)))
    assert len(server.requests) == 18


def test_a_cut_connection_is_an_http_error_after_the_retries():
    with Server(lambda body, n: Cut()) as server:
        (reply,) = ask(client_of(server, rates=dataclasses.replace(QUICK, retries=1)), "?")
        assert reply.state == "http_error"
        assert len(server.requests) == 2


@pytest.mark.parametrize(("rates", "requests"), [({"retries": 1}, 2), ({"retries": 9, "timeout": 9.0, "deadline": 0.2}, 1)])
def test_slow_is_a_timeout(rates, requests):
    with Server(lambda body, n: Slow(1.0)) as server:
        (reply,) = ask(client_of(server, rates=dataclasses.replace(QUICK, **rates)), "?")
        assert reply.state == "timeout"
        assert len(server.requests) == requests


def test_concurrency_is_bounded():
    with Server(lambda body, n: Slow(0.02, last(body))) as server:
        replies = ask(client_of(server, rates=dataclasses.replace(QUICK, concurrent=3)), *map(str, range(12)))
    assert [r.text for r in replies] == list(map(str, range(12)))
    assert server.most_active <= 3


def test_the_rate_limit_counts_retries():
    with Server(lambda body, n: Status(500, SOON) if n == 0 else "fine") as server:
        start = time.monotonic()
        ask(client_of(server, rates=dataclasses.replace(QUICK, per_minute=1200)), "a", "b")
    assert len(server.times) == 4
    assert max(server.times) - start >= 3 * 0.05  # 20 a second: the fourth call cannot come before


def test_the_cache_knows_all_that_was_asked_and_spares_the_second_call(tmp_path):
    with Server(lambda body, n: f"{last(body)} {len(server.requests)}") as server:
        first = client_of(server, cache_dir=tmp_path)
        base = ask(first, "a", temperature=1)[0]
        assert ask(first, "a", temperature=1)[0] == dataclasses.replace(base, cached=True)
        again = client_of(server, cache_dir=tmp_path)
        assert ask(again, "a", temperature=1)[0].text == base.text
        assert len(server.requests) == 1
        assert again.spent == {"calls": 0, "cached": 1, "prompt_tokens": 0, "completion_tokens": 0}
        others = [{"temperature": 0}, {"temperature": 1, "run": 1}, {"temperature": 1, "max_tokens": 9}]
        for i, other in enumerate(others):
            assert not ask(again, "a", **other)[0].cached
            assert len(server.requests) == 2 + i
        assert "run" not in server.requests[2]
        assert not ask(ChatClient(server.url, "judge-2", cache_dir=tmp_path), "a", temperature=1)[0].cached


def test_equal_calls_under_way_are_one_call():
    with Server(lambda body, n: Slow(0.1, "once")) as server:
        assert [r.text for r in ask(client_of(server), "a", "a", "a")] == ["once"] * 3
        assert len(server.requests) == 1


def test_a_client_serves_one_event_loop_after_the_other():
    with Server(lambda body, n: last(body)) as server:
        client = client_of(server, rates=dataclasses.replace(QUICK, concurrent=1))
        assert [ask(client, t, t + "2")[0].text for t in "abc"] == list("abc")


# --- budget ---------------------------------------------------------------------------------------


def test_the_token_budget_is_never_passed_and_stops_cleanly():
    with Server(lambda body, n: completion("ok", usage=(40, 10))) as server:
        client = client_of(server, budget=Budget(tokens=500))
        replies = ask(client, *map(str, range(40)), max_tokens=10)
    states = [r.state for r in replies]
    assert set(states) == {"ok", "budget"}
    # 50 a call; the last calls are withheld when prompt bytes + max_tokens might not fit.
    assert 7 <= states.count("ok") <= 10
    assert client.spent["prompt_tokens"] + client.spent["completion_tokens"] == 50 * states.count("ok") <= 500
    assert len(server.requests) == states.count("ok")


def test_the_money_budget():
    prices = {"price_in": 1.0, "price_out": 10.0}
    with Server(lambda body, n: completion("ok", usage=(50, 10))) as server:
        client = client_of(server, budget=Budget(usd=0.001, **prices))
        replies = ask(client, *map(str, range(20)), max_tokens=10)  # 150e-6 USD a call
    assert 5 <= sum(r.state == "ok" for r in replies) <= 6
    assert client.cost == pytest.approx(150e-6 * len(server.requests))
    assert client.cost <= 0.001


def test_what_was_answered_is_free_when_the_budget_is_spent(tmp_path):
    with Server(lambda body, n: completion("ok", usage=None)) as server:
        ask(client_of(server, cache_dir=tmp_path), "a", max_tokens=10)
        client = client_of(server, cache_dir=tmp_path, budget=Budget(tokens=1))
        assert [r.state for r in ask(client, "a", "b", max_tokens=10)] == ["ok", "budget"]


def test_an_answer_without_usage_counts_at_its_worst():
    with Server(lambda body, n: completion("ok", usage=None)) as server:
        client = client_of(server)
        ask(client, "a", max_tokens=10)
    assert client.spent["completion_tokens"] == 10
    assert client.spent["prompt_tokens"] >= len(json.dumps(say("a")))


def test_no_call_at_a_time_is_refused():
    """A client that waited for none of none would wait for ever."""
    with pytest.raises(UserError, match=r"^concurrent is 0; it must be at least 1"):
        Rates(concurrent=0)


def test_a_budget_without_a_bound_is_refused():
    with pytest.raises(UserError, match=r"^usd is 5, .*prices"):
        Budget(usd=5)
    with Server(lambda body, n: "ok") as server, pytest.raises(UserError, match="max_tokens"):
        ask(client_of(server, budget=Budget(tokens=500)), "a")


def test_the_runs_cap_is_for_all_clients_and_restarts(tmp_path):
    priced = Budget(price_in=1.0, price_out=10.0)

    def clients(server):
        """Two roles of a run, as a start of it makes them."""
        ledger = Ledger(tmp_path / "spent.jsonl", 0.001)
        return ledger, [client_of(server, budget=priced, ledger=ledger) for _ in range(2)]

    with Server(lambda body, n: completion("ok", usage=(50, 10))) as server:  # 150e-6 USD a call
        ledger, (user, rater) = clients(server)
        assert [r.state for r in ask(user, "a", "b", max_tokens=10)] == ["ok", "ok"]
        assert [r.state for r in ask(rater, "c", "d", max_tokens=10)] == ["ok", "ok"]
        assert ledger.spent == pytest.approx(4 * 150e-6)
        ledger, (user, rater) = clients(server)  # a restart
        states = [r.state for client in (user, rater) for r in ask(client, *"efghijkl", max_tokens=10)]
        assert 1 <= states.count("ok") <= 2
        assert set(states) == {"ok", "budget"}
        assert ledger.spent == pytest.approx(150e-6 * len(server.requests))
        assert ledger.spent <= 0.001
        with pytest.raises(UserError, match="max_tokens"):
            ask(user, "z")


# --- the key --------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_stays_there(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("EMJAX_TEST_KEY", "sk-secret-123")
    caplog.set_level(logging.DEBUG)
    echo = Status(400, body=b'{"error": {"message": "bad request with key sk-secret-123"}}')
    with Server(lambda body, n: echo if last(body) == "bad" else "fine") as server:
        client = client_of(server, api_key_env="EMJAX_TEST_KEY", cache_dir=tmp_path)
        good, bad = ask(client, "good", "bad")
    assert server.headers[0]["Authorization"] == "Bearer sk-secret-123"
    assert (good.state, bad.state) == ("ok", "http_error")
    stored = "".join(p.read_text() for p in tmp_path.rglob("*.json"))
    assert "good" in stored
    assert "sk-secret" not in stored + repr(vars(client)) + repr(good) + repr(bad) + caplog.text


def test_a_missing_key_is_named(monkeypatch):
    monkeypatch.delenv("EMJAX_TEST_KEY", raising=False)
    with pytest.raises(UserError, match="EMJAX_TEST_KEY"):
        ask(ChatClient("http://127.0.0.1:9/v1", "m", api_key_env="EMJAX_TEST_KEY"), "?")


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_refused_key_or_model_ends_the_run(code):
    with Server(lambda body, n: Status(code)) as server, pytest.raises(UserError, match=f"judge-1.*{code}"):
        ask(client_of(server), "?")


# --- batch ----------------------------------------------------------------------------------------


def test_collect_and_replay(tmp_path):
    requests, answers, cache = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl", tmp_path / "cache"
    with Server(lambda body, n: "live") as server:
        for _ in range(2):  # a second collecting run adds nothing
            client = client_of(server, cache_dir=cache, collect=requests)
            assert {r.state for r in ask(client, "a", "b", "c", "d", schema=SCHEMA)} == {"pending"}
        lines = [json.loads(line) for line in requests.read_text().splitlines()]
        assert [(x["method"], x["url"], last(x["body"])) for x in lines] == [
            ("POST", "/v1/chat/completions", t) for t in "abcd"
        ]
        ids = {last(x["body"]): x["custom_id"] for x in lines}
        rows = [  # unordered, as the Batch API gives them back
            {"custom_id": ids["c"], "response": {"status_code": 500, "body": {}}, "error": None},
            {"custom_id": ids["b"], "response": {"status_code": 200, "body": completion("not JSON")}, "error": None},
            {"custom_id": ids["a"], "response": {"status_code": 200, "body": completion('{"v": "A"}')}, "error": None},
        ]
        answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert client.replay(answers) == {"ok": 1, "schema_error": 1, "http_error": 1, "missing": 1}
        live = client_of(server, cache_dir=cache)
        replies = ask(live, "a", "b", "c", "d", schema=SCHEMA)
        assert [(r.text, r.cached) for r in replies] == [('{"v": "A"}', True)] + [("live", False)] * 3
        assert len(server.requests) == 3
        answers.write_text(json.dumps({"custom_id": "other", "response": None}) + "\n")
        with pytest.raises(UserError, match=r"answers.jsonl, line 1.*'other'"):
            client.replay(answers)


# --- kill and continue ----------------------------------------------------------------------------


def test_a_killed_run_pays_for_nothing_twice(tmp_path):
    """A process that asks forty questions is killed; the next asks only the unanswered ones."""
    code = textwrap.dedent("""
        import asyncio, sys
        from pathlib import Path
        from emjax.api import ChatClient
        from emjax.config import Rates

        async def main():
            client = ChatClient(sys.argv[1], "m", cache_dir=Path(sys.argv[2]), rates=Rates(concurrent=2))
            ask = lambda i: client.chat([{"role": "user", "content": str(i)}])
            replies = await asyncio.gather(*map(ask, range(40)))
            assert [r.text for r in replies] == [str(i) for i in range(40)]
            print(client.spent["cached"])

        asyncio.run(main())
    """)
    command = [sys.executable, "-c", code]
    with Server(lambda body, n: Slow(0.02, last(body))) as server:
        first = subprocess.Popen([*command, server.url, tmp_path])
        while len(server.requests) < 12:
            time.sleep(0.005)
        first.kill()
        first.wait()
        kept = len(list(tmp_path.rglob("*.json")))
        asked = len(server.requests)
        assert 8 <= kept < 40
        assert asked - kept <= 2  # those under way
        second = subprocess.run([*command, server.url, tmp_path], capture_output=True, text=True)
        assert second.returncode == 0, second.stderr
        assert int(second.stdout) == kept
        assert len(server.requests) - asked == 40 - kept
