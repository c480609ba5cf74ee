"""Clients that are many, slow, gone, confused or hostile: 4xx or 429, nothing hangs, the next request is served."""

import asyncio
import json
import time

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from emjax.sampling import Engine
from emjax.sampling.guard import Limits

from .served import LENGTH, NAME, SLOTS, load, running

LIMITS = Limits(queue=24, body_bytes=100_000, body_seconds=1.0, write_seconds=1.0)
LONG = {"model": NAME, "prompt": [1, 3], "max_tokens": 250, "temperature": 0}


@pytest.fixture(scope="module")
def server():
    engine, lm, names = load()
    with running(engine, lm, names, LIMITS) as served:
        yield served


@pytest.fixture(scope="module")
def endless(server):
    """Rows end at their length alone (<pad> is never drawn)."""
    lm = server.lm.replace(eos_ids=(0,))
    with running(Engine(lm, slots=SLOTS, cache_length=LENGTH), lm, {NAME: None}, LIMITS) as served:
        yield served


def next_is_served(server):
    response = server.post("/v1/completions", {"prompt": "<bos> <user>", "max_tokens": 2})
    assert response.status_code == 200, response.text
    assert server.idle()


def test_two_hundred_clients(endless):
    body = LONG | {"max_tokens": 30}

    async def one(client, i):
        return await client.post(endless.url + "/v1/completions", json=body | {"stream": i % 2 == 0, "seed": i})

    async def all_of_them():
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            return await asyncio.gather(*(one(client, i) for i in range(200)))

    responses = asyncio.run(all_of_them())
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= SLOTS + LIMITS.queue
    refused = [response for response in responses if response.status_code == 429]
    assert all(int(response.headers["retry-after"]) > 0 for response in refused)
    assert all(response.json()["error"]["type"] == "rate_limit_error" for response in refused)
    texts = {r.json()["choices"][0]["text"] for r in responses[1::2] if r.status_code == 200}
    assert len(texts) == 1  # greedy: everyone got the same, whatever the crowd
    next_is_served(endless)


def test_more_than_fits_at_all_is_refused_for_good(server):
    response = server.post("/v1/completions", {"prompt": ["a"] * (SLOTS + LIMITS.queue + 1)})
    assert response.status_code == 400
    assert server.post("/v1/completions", {"prompt": ["a"] * (SLOTS + LIMITS.queue), "max_tokens": 1}).status_code == 200
    next_is_served(server)


def test_answers_that_would_be_huge_are_refused(server):
    response = server.post(
        "/v1/completions", {"prompt": [[7] * 250] * 32, "logprobs": 20, "echo": True, "max_tokens": 1, "n": 1}
    )
    assert response.status_code == 200
    with running(server.engine, server.lm, {NAME: None}, Limits(logprobs=1000)) as strict:
        for path, body in (
            ("/v1/completions", {"prompt": [[7] * 50] * 10, "logprobs": 1, "echo": True, "max_tokens": 1}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "n": 9}),
        ):
            response = strict.post(path, body)
            assert (response.status_code, response.json()["error"]["param"]) == (400, "logprobs")
    next_is_served(server)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_slots(endless, stream):
    full = LONG | {"stream": stream, "n": SLOTS + LIMITS.queue}
    before = endless.engine.stats.tokens
    gone = endless.connect("/v1/completions", json.dumps(full).encode())
    while endless.engine.stats.tokens == before:
        time.sleep(0.005)
    assert endless.post("/v1/completions", LONG).status_code == 429
    gone.close()
    deadline = time.monotonic() + 30
    while (response := endless.post("/v1/completions", LONG | {"max_tokens": 2})).status_code == 429:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert response.status_code == 200
    next_is_served(endless)
    assert endless.engine.stats.tokens - before < 250 * full["n"] / 2  # most of it was never drawn


def test_slow_readers_hold_up_nobody(endless):
    big = {"model": NAME, "prompt": [[1, 3]] * 8, "max_tokens": 250, "temperature": 0, "logprobs": 20, "stream": True}
    sockets = [endless.connect("/v1/completions", json.dumps(big).encode()) for _ in range(3)]  # far more than buffers hold
    assert endless.post("/v1/completions", LONG | {"max_tokens": 2}).status_code == 200
    assert endless.idle()  # the rows end though nobody reads them
    next_is_served(endless)
    deadline = time.monotonic() + 30
    while endless.app.active:  # and the answers are given up after write_seconds
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for sock in sockets:
        sock.close()


def test_slow_senders_are_given_up(server):
    with server.connect("/v1/completions", b'{"model": ', **{"content-length": "100"}) as sock:
        assert sock.recv(100).startswith(b"HTTP/1.1 408")
    with server.connect("/v1/completions", b'{"model": ', **{"content-length": "100"}):
        pass  # gone in the middle of its body
    next_is_served(server)


def test_a_body_that_is_too_large(server):
    for size in (LIMITS.body_bytes + 1, 20 * LIMITS.body_bytes):
        response = httpx.post(server.url + "/v1/completions", content=b" " * size, headers={"content-type": "application/json"})
        assert response.status_code == 413

    def endless_body():
        for _ in range(1000):
            yield b" " * 1000

    response = httpx.post(server.url + "/tokenize", content=endless_body(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    next_is_served(server)


BODIES = {
    "cut": b'{"model": "micro"',
    "not json": b"model=micro",
    "empty": b"",
    "list": b"[]",
    "number": b"7",
    "null": b"null",
    "deep": b"[" * 50_000,
    "deep inside": b'{"model": "micro", "prompt": ' + b"[" * 40_000 + b"]" * 40_000 + b"}",
    "latin-1": b'{"model": "micro", "prompt": "\xe9"}',
    "utf-16": '{"model": "micro", "prompt": "a"}'.encode("utf-16-le") + b"x",
    "half a pair": b'{"model": "micro", "prompt": "\\ud800"}',
    "half a pair as a name": b'{"model": "micro", "prompt": "a", "\\ud800": 1}',
    "half a pair as a model": b'{"model": "\\udfff", "prompt": "a"}',
    "half a pair as a stop": b'{"model": "micro", "prompt": "a", "stop": ["\\ud800"]}',
    "nan": b'{"model": "micro", "prompt": "a", "temperature": NaN}',
    "infinity": b'{"model": "micro", "prompt": "a", "temperature": 1e999}',
    "digits": b'{"model": "micro", "prompt": "a", "seed": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_none(server, name):
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        response = httpx.post(server.url + path, content=BODIES[name], headers={"content-type": "application/json"})
        assert response.status_code == 400, path
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status_code == 200


VALUES = {
    "model": ["", "x" * 5000, 7, ["micro"]],
    "prompt": ["", [], [[]], [1, "a"], [-1], [302], [2**31], [2**70], [1.5], [True], {"a": 1}, 7, [7] * LENGTH, ["a", [1]]],
    "max_tokens": [-1, 0, LENGTH, 2**31, 10**30, 1.5, "5", True],
    "n": [0, -1, 129, 10**9, 1.0],
    "temperature": [-0.1, 1e-4, 101, 1e308, "0", [1]],
    "top_p": [0, -1, 1.01, 1e-300],
    "top_k": [-1, 2**31, 0.5],
    "min_p": [-0.1, 1.1],
    "seed": [-1, 2**63, 10**100, 1.5],
    "logprobs": [-1, 21, 10**9, "1", 1.0],
    "stop": ["", [""], ["a"] * 33, "x" * 257, 7, [7]],
    "stream": ["yes", 1],
    "stream_options": [{"include_usage": True}, 7],
    "echo": ["yes", 1],
    "suffix": ["x"],
}


def test_values_out_of_range(server):
    for field, values in VALUES.items():
        for value in values:
            response = server.post("/v1/completions", {"prompt": "a", "max_tokens": 1, field: value})
            expected = 404 if field == "model" and isinstance(value, str) else 400
            assert response.status_code == expected, (field, str(value)[:50], response.text)
            assert response.json()["error"]["param"] == field or response.json()["error"]["code"] == "context_length_exceeded"
            assert len(response.content) < 3000
    chats = [
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": "a " * LENGTH}]},
        {"messages": [{"role": "user", "content": "<bos>"}]},
        {"messages": [{"role": "assistant", "content": "<end>"}]},
        {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2},
        {"messages": [{"role": "user", "content": "a"}], "continue_final_message": True},
        {"messages": [{"role": "user", "content": "a"}], "max_tokens": 0},
        {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "max_completion_tokens": 3},
    ]
    for body in chats:
        response = server.post("/v1/chat/completions", body)
        assert response.status_code == 400, (body, response.text)
        assert response.json()["error"]["param"] in (*body, "messages")
    next_is_served(server)


def test_wrong_places(server):
    for method, path, status in (
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/embeddings", 404),
        ("GET", "/docs", 404),
        ("GET", "/%ff%00", 404),
    ):
        response = httpx.request(method, server.url + path)
        assert (response.status_code, "error" in response.json()) == (status, True)
    # What a page in a browser may send to this machine without asking.
    response = httpx.post(server.url + "/v1/completions", content=json.dumps(LONG), headers={"content-type": "text/plain"})
    assert response.status_code == 400
    with server.connect("/", b"") as sock:
        sock.recv(1000)
    with server.connect("/v1/completions", b"\x00\x01", **{"transfer-encoding": "chunked"}) as sock:
        assert sock.recv(1000).startswith(b"HTTP/1.1 4")
    next_is_served(server)


# --- by the server's own schema ---------------------------------------------------------------------------


def statuses(operation):
    """What the server answers to cases drawn from its own description of an operation."""
    seen = set()

    @given(operation.as_strategy(), st.integers(0, 30))
    @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def holds(case, few):
        seen.add(case.call_and_validate(checks=[not_a_server_error], timeout=60).status_code)
        if not isinstance(case.body, dict):
            return
        # Past the first check, with a model that is known: all that the case holds, then nothing but what is needed.
        known = {"model": NAME} | ({"max_tokens": few} if "max_tokens" in case.body else {})
        needed = {name: case.body[name] for name in ("prompt", "messages", "tokens") if name in case.body}
        for body in (case.body | known, known | dict(list(needed.items())[:1])):
            case.body = body
            seen.add(case.call_and_validate(checks=[not_a_server_error], timeout=60).status_code)

    holds()
    return seen


def test_no_case_of_the_schema_breaks_the_server(server):
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    seen = {operation.ok().path: statuses(operation.ok()) for operation in schema.get_all_operations()}
    assert len(seen) == 9
    assert {path for path, answers in seen.items() if 200 not in answers} == {"/v1/models/{name}"}
    next_is_served(server)
