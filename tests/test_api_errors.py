"""What endpoints say when something is wrong ends the run or is a state, and their own words are never lost."""

import json

import pytest
from loopback import Server, Status, completion, last
from recorded_errors import RECORDED
from test_api import QUICK, SOON, ask, client_of

from emjax.api import FAILED_ON_THE_WAY, FINISHED, ChatClient
from emjax.config import Budget, JudgeConfig
from emjax.errors import UserError

AT = "config.eval.judges.main"


@pytest.mark.parametrize("one", RECORDED, ids=lambda one: one.endpoint)
def test_a_recorded_error(one):
    with Server(lambda body, n: Status(one.status, SOON, one.raw)) as server:
        client = client_of(server, at=AT, nullable=JudgeConfig().nullable)
        if one.becomes == "ends":
            with pytest.raises(UserError) as error:
                ask(client, "?", **one.sent)
            said = str(error.value)
            assert said.startswith(f"{AT}: ")
        else:
            (reply,) = ask(client, "?", **one.sent)
            assert reply.state == one.becomes
            said = reply.error
        assert len(server.requests) == (1 + QUICK.retries if one.retried else 1)
    for words in one.says:
        assert words.replace("AT", AT) in said


def test_every_kind_of_endpoint_has_a_recorded_error():
    kinds = {one.endpoint.partition(",")[0] for one in RECORDED}
    assert kinds >= {"OpenAI", "Azure", "vLLM", "Ollama", "llama.cpp", "Gemini", "Anthropic", "Mistral", "OpenRouter", "TGI"}
    assert all(one.source.startswith("github.com/") for one in RECORDED)


def test_a_refused_connection_is_told_with_its_cause():
    with Server(lambda body, n: "never") as server:
        url = server.url
    (reply,) = ask(ChatClient(url, "m", rates=QUICK), "?")
    assert reply.state == "http_error"
    assert "Connection refused" in reply.error


def test_an_ordinary_rate_limit_is_outlived():
    with Server(lambda body, n: Status(429, SOON) if n < 2 else last(body)) as server:
        assert [r.text for r in ask(client_of(server), "a", "b")] == ["a", "b"]


def test_a_text_about_money_or_parameters_ends_no_run():
    """What an endpoint repeats of the request is not its own word."""
    echo = {"detail": [{"msg": "Input should be a valid string", "loc": ["body", "messages"],
                        "input": "my insufficient balance; unsupported temperature"}]}  # fmt: skip
    with Server(lambda body, n: Status(422, SOON, json.dumps(echo).encode())) as server:
        (reply,) = ask(client_of(server), "?", temperature=0)
    assert reply.state == "http_error"


def test_a_flagged_text_is_a_refusal_and_a_refused_key_is_not():
    flagged = {
        "error": {"code": 403, "message": "Input was flagged", "metadata": {"reasons": ["violence"], "flagged_input": "x"}}
    }
    answers = {"flagged": flagged, "key": {"error": {"message": "no access"}}}
    with Server(lambda body, n: Status(403, SOON, json.dumps(answers[last(body)]).encode())) as server:
        assert ask(client_of(server), "flagged")[0].state == "refusal"
        with pytest.raises(UserError, match="no access"):
            ask(client_of(server), "key")


# --- finish_reason --------------------------------------------------------------------------------

WHOLE = ("stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", "COMPLETE")
CUT = ("length", "max_tokens", "MAX_TOKENS", "model_length", "max_output_tokens", "model_context_window_exceeded")
REFUSED = ("content_filter", "SAFETY", "RECITATION", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "refusal")
UNKNOWN = (
    "error", "abort", "tool_calls", "function_call", "OTHER", "MALFORMED_FUNCTION_CALL", "network_error", "load", "", None, 7,
    {"type": "stop"}, ["stop"], "insufficient_system_resource",
)  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        *((reason, "ok") for reason in WHOLE),
        *((reason, "length") for reason in CUT),
        *((reason, "refusal") for reason in (*REFUSED, "content_filter: SAFETY")),
        *((reason, "http_error") for reason in UNKNOWN),
    ],
)
def test_only_a_known_reason_makes_an_answer_whole(reason, state, tmp_path):
    with Server(lambda body, n: completion("Answer: A", reason)) as server:
        for times in (1, 2):
            (reply,) = ask(client_of(server, cache_dir=tmp_path), "?")
            assert (reply.state, reply.text) == (state, "Answer: A")
            assert len(server.requests) == (1 if state == "ok" else times)  # never cached
    if state == "http_error":
        assert repr(reason)[:20] in reply.error


def test_the_table_of_reasons_knows_states_alone():
    assert set(FINISHED.values()) == {"ok", "length", "refusal"}
    assert all(reason == reason.lower() for reason in FINISHED)
    assert set(FINISHED.values()) - {"ok"} <= set(FAILED_ON_THE_WAY)


def test_an_answer_that_an_older_version_cached_as_whole_and_is_not_is_asked_for_again(tmp_path):
    with Server(lambda body, n: f"answer {len(server.requests)}") as server:
        ask(client_of(server, cache_dir=tmp_path), "?")
        (file,) = tmp_path.rglob("*.json")
        entry = json.loads(file.read_text())
        for reason, asked in (("stop", 1), (None, 1), ("max_tokens", 2)):  # version 0.1 kept those without a reason
            file.write_text(json.dumps({**entry, "reply": {**entry["reply"], "finish_reason": reason}}))
            ask(client_of(server, cache_dir=tmp_path), "?")
            assert len(server.requests) == asked


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("usage", [(-(10**9), 5), (5, -1), (1.5, 2), (True, 2), ("11", 7), (10**30, 1), (float("nan"), 1)])
def test_implausible_usage_counts_at_its_worst(usage):
    with Server(
        lambda body, n: completion("ok", usage=None) | {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}
    ) as server:
        client = client_of(server, budget=Budget(tokens=400))
        states = [r.state for r in ask(client, *map(str, range(20)), max_tokens=10)]
    assert client.spent["completion_tokens"] == 10 * len(server.requests)
    assert 1 <= len(server.requests) <= 4
    assert set(states) == {"ok", "budget"}


def with_logprobs(token):
    return json.dumps(completion("7")).replace('"logprobs": null', f'"logprobs": {{"content": [{token}]}}')


@pytest.mark.parametrize("logprob", ["NaN", "Infinity", "0.5", "null"])
def test_logprobs_that_are_none_are_no_answer(logprob):
    answer = with_logprobs(f'{{"token": "7", "logprob": {logprob}, "bytes": null, "top_logprobs": []}}')
    with Server(lambda body, n: Status(200, {}, answer.encode())) as server:
        (reply,) = ask(client_of(server), "?", logprobs=True)
    assert reply.state == "http_error"
    assert "log-prob" in reply.error


def test_an_impossible_alternative_is_left_out():
    top = '[{"token": "7", "logprob": -0.1, "bytes": null}, {"token": "8", "logprob": -Infinity, "bytes": null}]'
    answer = with_logprobs(f'{{"token": "7", "logprob": -0.1, "bytes": null, "top_logprobs": {top}}}')
    with Server(lambda body, n: Status(200, {}, answer.encode())) as server:
        (reply,) = ask(client_of(server), "?", logprobs=True)
    assert [one["token"] for one in reply.logprobs[0]["top_logprobs"]] == ["7"]


@pytest.mark.parametrize("bound", ["NaN", "Infinity", "1e999"])
def test_a_schema_takes_no_number_that_json_has_not(bound):
    schema = {"type": "object", "properties": {"low": {"type": "number"}}}
    with Server(lambda body, n: f'{{"low": {bound}}}') as server:
        (reply,) = ask(client_of(server), "?", schema=schema)
    assert reply.state == "schema_error"


# --- batch ----------------------------------------------------------------------------------------


def test_a_call_that_failed_in_a_batch_keeps_its_cause(tmp_path):
    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    client = ChatClient("http://127.0.0.1:9/v1", "m", cache_dir=tmp_path / "cache", collect=requests, at=AT)
    ask(client, "cut", "broken", "lost", "fine")
    ids = {
        row["body"]["messages"][0]["content"]: row["custom_id"] for row in map(json.loads, requests.read_text().splitlines())
    }
    rows = [
        {"custom_id": ids["cut"], "response": {"status_code": 200, "body": completion("A", "MAX_TOKENS")}},
        {
            "custom_id": ids["broken"],
            "response": {"status_code": 500, "body": {"error": {"message": "the server had an error"}}},
        },
        {"custom_id": ids["lost"], "response": None, "error": {"code": "batch_expired", "message": "could not be executed"}},
        {"custom_id": ids["fine"], "response": {"status_code": 200, "body": completion("A")}},
    ]
    answers.write_bytes(b"\xef\xbb\xbf" + "\n".join(json.dumps(row) for row in rows).encode() + b"\n\n")
    assert client.replay(answers) == {"length": 1, "http_error": 2, "ok": 1}
    cut, broken, lost, fine = ask(client, "cut", "broken", "lost", "fine")
    assert (cut.state, broken.state, lost.state, fine.state) == ("length", "http_error", "http_error", "ok")
    assert "the server had an error" in broken.error
    assert "could not be executed" in lost.error
    rows[1]["response"] = {"status_code": 429, "body": {"error": {"message": "no more", "code": "insufficient_quota"}}}
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=f"{AT}.*no credit or quota left.*no more"):
        client.replay(answers)


def test_a_key_is_not_told_and_a_keyless_server_may_say_none(monkeypatch):
    monkeypatch.setenv("EMJAX_TEST_KEY", "sk-1")
    with Server(lambda body, n: Status(400, SOON, b'{"error": {"message": "sk-1 is none of mine"}}')) as server:
        (hidden,) = ask(client_of(server, api_key_env="EMJAX_TEST_KEY"), "?")
        (shown,) = ask(client_of(server), "?")
    assert "*** is none of mine" in hidden.error
    assert "sk-1 is none of mine" in shown.error
