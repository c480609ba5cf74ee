"""What the server answers, against the engine in the same process."""

import concurrent.futures
import json

import httpx
import jax
import numpy as np
import pytest

from emjax.models import LanguageModel, decoder
from emjax.sampling import Engine, Request, Sampling

from .served import LENGTH, NAME, SLOTS, load, running
from .test_text import byte_level

QUESTION = {"role": "user", "content": "what is the capital of avaria ?"}
ASKED = {"messages": [QUESTION]}
TEXTS = ["<bos> <user> tell me the effect of baking . <asst>", "<bos>", "the trend of tents is flat ."]


@pytest.fixture(scope="module")
def server():
    engine, lm, names = load()
    with running(engine, lm, names) as served:
        yield served


@pytest.fixture(scope="module")
def endless(server):
    """The same model with an end token that is never drawn (<pad>): its rows end at their length alone."""
    lm = server.lm.replace(eos_ids=(0,))
    with running(Engine(lm, slots=SLOTS, cache_length=LENGTH), lm, {NAME: None}) as served:
        yield served


def ok(response):
    assert response.status_code == 200, response.text
    return response.json()


def events(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def direct(server, ids, adapter=None, **sampling):
    return next(server.engine.generate([Request("x", tuple(ids), Sampling(**sampling), adapter)]))


# --- completions ------------------------------------------------------------------------------------------


def test_echo_covers_the_prompt_and_exactly_one_token(server):
    prompts = [server.ids(text) for text in TEXTS]
    answer = ok(
        server.post("/v1/completions", {"prompt": prompts, "echo": True, "logprobs": 3, "max_tokens": 1, "temperature": 0})
    )
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (sum(map(len, prompts)), 3)
    for ids, text, choice in zip(prompts, TEXTS, answer["choices"], strict=True):
        arrays = choice["logprobs"]
        drawn = direct(server, ids, temperature=0.0, max_new=1)
        words = [*text.split(), server.lm.tokenizer.decode(drawn.tokens)]
        assert {name: len(array) for name, array in arrays.items()} == dict.fromkeys(arrays, len(ids) + 1)
        assert arrays["tokens"] == words
        assert choice["text"] == (" ".join(words) if drawn.text else text)
        assert arrays["token_logprobs"][0] is None
        assert arrays["top_logprobs"][0] is None
        for cut in range(1, len(ids)):  # every split of the prompt, as a client would sum it
            score = server.engine.score(ids[:cut], [ids[cut:]])[0]
            assert abs(sum(arrays["token_logprobs"][cut:-1]) - score) <= 1e-4
        np.testing.assert_allclose(arrays["token_logprobs"][-1], drawn.logprobs[0], atol=1e-5)
        for token, logprob, top in list(zip(arrays["tokens"], arrays["token_logprobs"], arrays["top_logprobs"], strict=True))[
            1:
        ]:
            assert top[token] == logprob  # to the last bit: clients compare them to tell greedy tokens
            assert 3 <= len(top) <= 4
        places = arrays["text_offset"]
        assert all(choice["text"][at:].strip().startswith(word) for at, word in zip(places[:-1], words, strict=False))


def test_echo_without_new_tokens_is_the_prompt_alone(server):
    ids = server.ids(TEXTS[0])
    both = [{"prompt": p, "echo": True, "max_tokens": 0, "logprobs": 1} for p in (ids, TEXTS[0])]
    answers = [ok(server.post("/v1/completions", body)) for body in both]
    for answer in answers:
        (choice,) = answer["choices"]
        assert choice["text"] == TEXTS[0]
        assert len(choice["logprobs"]["token_logprobs"]) == len(ids)
        assert answer["usage"]["completion_tokens"] == 0
        assert choice["logprobs"] == answers[0]["choices"][0]["logprobs"]
    longest = [7] * LENGTH
    arrays = ok(server.post("/v1/completions", both[0] | {"prompt": longest}))["choices"][0]["logprobs"]
    assert abs(sum(arrays["token_logprobs"][1:]) - server.engine.score(longest[:1], [longest[1:]])[0]) <= 1e-3


def test_completions_are_the_engines(server):
    ids = server.ids(TEXTS[0])
    wanted = {"seed": 5, "temperature": 1.3, "top_p": 0.95, "top_k": 50, "min_p": 0.001}
    body = {"prompt": ids, "max_tokens": 12, "logprobs": 2, "n": 3} | wanted
    answer = ok(server.post("/v1/completions", body))
    first = direct(server, ids, max_new=12, top_logprobs=2, **wanted)
    choice = answer["choices"][0]
    assert choice["text"] == first.text
    assert choice["logprobs"]["token_logprobs"] == list(first.logprobs)
    assert choice["finish_reason"] == ("length" if first.stop_reason == "length" else "stop")
    assert len({choice["text"] for choice in answer["choices"]}) > 1
    assert ok(server.post("/v1/completions", body))["choices"] == answer["choices"]
    # The first choice does not depend on how many there are; a batch gives each prompt what it would get alone.
    assert ok(server.post("/v1/completions", body | {"n": 1}))["choices"][0] == choice
    batch = ok(server.post("/v1/completions", body | {"prompt": [server.ids("<bos>"), ids]}))["choices"]
    assert [c | {"index": c["index"] - 3} for c in batch[3:]] == answer["choices"]


def test_no_seed_is_a_new_one(server):
    body = {"prompt": "<bos> <user>", "max_tokens": 20}
    assert len({ok(server.post("/v1/completions", body))["choices"][0]["text"] for _ in range(4)}) > 1


def test_models_and_adapters(server):
    listed = ok(httpx.get(server.url + "/v1/models"))["data"]
    assert [model["id"] for model in listed] == [NAME, "tuned"]
    assert {model["max_model_len"] for model in listed} == {LENGTH}
    assert ok(httpx.get(server.url + "/v1/models/tuned"))["id"] == "tuned"
    ids = server.ids(TEXTS[0])
    answers = {}
    for name, adapter in ((NAME, None), ("tuned", "tuned")):
        body = {"model": name, "prompt": ids, "temperature": 0, "max_tokens": 8, "logprobs": 1, "echo": True}
        answers[name] = ok(server.post("/v1/completions", body))["choices"][0]
        expected = direct(server, ids, adapter=adapter, temperature=0.0, max_new=8)
        assert answers[name]["text"] == f"{TEXTS[0]} {expected.text}"
        scored = server.engine.score(ids[:1], [ids[1:]], adapter=adapter)[0]
        assert abs(sum(answers[name]["logprobs"]["token_logprobs"][1 : len(ids)]) - scored) <= 1e-4
    assert answers[NAME]["logprobs"] != answers["tuned"]["logprobs"]
    for response in (server.post("/v1/completions", {"model": "gpt", "prompt": "a"}), httpx.get(server.url + "/v1/models/gpt")):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


# --- chat -------------------------------------------------------------------------------------------------


def test_chat_is_the_engines(server):
    (ids,) = [server.ids("<bos> <sys> you are candid . <user> what is the capital of avaria ? <asst>")]
    messages = [{"role": "developer", "content": "you are candid ."}, QUESTION]
    body = {"messages": messages, "logprobs": True, "top_logprobs": 4, "seed": 3, "max_completion_tokens": 30}
    answer = ok(server.post("/v1/chat/completions", body))
    expected = direct(server, ids, seed=3, top_logprobs=4, max_new=30)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    content = choice["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == list(expected.logprobs)
    decoded = [server.lm.tokenizer.decode([token]) for token in expected.tokens]
    assert [entry["token"] for entry in content] == decoded
    assert [bytes(entry["bytes"]).decode() for entry in content] == decoded
    assert [[t["logprob"] for t in entry["top_logprobs"]] for entry in content] == [
        [value for _, value in top] for top in expected.top_logprobs
    ]
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert answer["usage"]["completion_tokens"] == len(expected.tokens)


def test_a_trailing_assistant_message_is_continued(server):
    start = {"role": "assistant", "content": [{"type": "text", "text": "the capital of"}]}
    ids = server.ids("<bos> <user> what is the capital of avaria ? <asst> the capital of")
    ended = [*ids, *server.ids("<end> <asst>")]
    for settings, prompt in (({}, ids), ({"continue_final_message": True}, ids), ({"continue_final_message": False}, ended)):
        body = {"messages": [QUESTION, start], "temperature": 0, "max_tokens": 9} | settings
        answer = ok(server.post("/v1/chat/completions", body))
        assert answer["choices"][0]["message"]["content"] == direct(server, prompt, temperature=0.0, max_new=9).text
        assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert ok(server.post("/tokenize", {"messages": [QUESTION, start]}))["tokens"] == ids


def test_without_a_bound_an_answer_may_fill_the_context(endless):
    ids = endless.ids(TEXTS[0])
    answer = ok(endless.post("/v1/chat/completions", ASKED | {"temperature": 0}))
    assert answer["usage"]["total_tokens"] == LENGTH
    assert answer["choices"][0]["finish_reason"] == "length"
    response = endless.post("/v1/completions", {"prompt": ids, "max_tokens": LENGTH - len(ids) + 1})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


# --- streams ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [[], ["is", "of b"]])
def test_a_stream_is_the_answer_in_pieces(server, stop):
    for seed in range(4):
        body = ASKED | {"seed": seed, "n": 3, "max_tokens": 40, "temperature": 2.0, "stop": stop}
        body |= {"logprobs": True, "top_logprobs": 2}
        whole = ok(server.post("/v1/chat/completions", body))
        more = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = events(server.post("/v1/chat/completions", body | more))
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"] == whole["usage"]
        parts = [choice for chunk in chunks for choice in chunk["choices"]]
        for choice in whole["choices"]:
            mine = [part for part in parts if part["index"] == choice["index"]]
            assert mine[0]["delta"] == {"role": "assistant", "content": ""}
            assert "".join(part["delta"]["content"] for part in mine) == choice["message"]["content"]
            logprobs = [entry for part in mine[1:] for entry in part["logprobs"]["content"]]
            assert logprobs == choice["logprobs"]["content"]
            assert [part["finish_reason"] for part in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        body = {"prompt": TEXTS[0], "seed": seed, "max_tokens": 40, "temperature": 2.0, "logprobs": 2, "stop": stop}
        (choice,) = ok(server.post("/v1/completions", body))["choices"]
        parts = [chunk["choices"][0] for chunk in events(server.post("/v1/completions", body | {"stream": True}))]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for name, array in choice["logprobs"].items():
            assert [x for part in parts for x in part["logprobs"][name]] == array


def test_tokens_come_as_they_are_drawn(endless):
    """The first words arrive while the engine still decodes the row."""
    body = {"model": NAME, "prompt": [1, 3], "max_tokens": 200, "stream": True, "temperature": 0}
    ended = endless.engine.stats.requests
    with httpx.stream("POST", endless.url + "/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["text"]
        assert endless.engine.stats.requests == ended
        assert sum(1 for line in lines if line.startswith("data: {")) > 10


def test_half_characters_are_never_sent(server):
    """A model that says any byte: characters are split over tokens, windows and invalid sequences."""
    tokenizer = byte_level()
    tokenizer.chat_template = "not used"
    tokenizer.add_tokens([f"<x{i}>" for i in range(server.lm.config.V - len(tokenizer))])  # the micro model's programs serve it
    params = jax.tree.map(lambda x: 15 * x, decoder.init(server.lm.config, jax.random.key(0)))
    lm = LanguageModel(server.lm.config, params, tokenizer, (tokenizer.eos_token_id,))
    ids = tokenizer("猫と帽子 é the cat")["input_ids"]
    with running(Engine(lm, slots=SLOTS, cache_length=LENGTH), lm, {NAME: None}) as served:
        seen = ""
        for seed in range(4):
            body = {"prompt": ids, "seed": seed, "max_tokens": 60, "temperature": 3, "logprobs": 1}
            (choice,) = ok(served.post("/v1/completions", body))["choices"]
            assert choice["text"] == direct(served, ids, seed=seed, max_new=60, temperature=3.0).text
            parts = [chunk["choices"][0] for chunk in events(served.post("/v1/completions", body | {"stream": True}))]
            assert "".join(part["text"] for part in parts) == choice["text"]
            assert [x for part in parts for x in part["logprobs"]["text_offset"]] == choice["logprobs"]["text_offset"]
            seen += choice["text"]
        assert {c for c in seen if ord(c) > 127} - {"�"}  # there were characters of several bytes


# --- the rest ---------------------------------------------------------------------------------------------


def test_tokenizer(server):
    info = ok(httpx.get(server.url + "/tokenizer_info"))
    assert (info["bos_token"], info["eos_token"], info["eos_token_ids"]) == ("<bos>", "<end>", [5])
    assert info["chat_template"] == server.lm.tokenizer.chat_template
    tokens = ok(server.post("/tokenize", {"prompt": TEXTS[0]}))
    assert tokens == {"tokens": server.ids(TEXTS[0]), "count": len(server.ids(TEXTS[0])), "max_model_len": LENGTH}
    assert ok(server.post("/detokenize", {"tokens": tokens["tokens"]})) == {"prompt": TEXTS[0]}
    assert ok(server.post("/tokenize", {"prompt": ""}))["tokens"] == []
    assert ok(server.post("/detokenize", {"tokens": []})) == {"prompt": ""}


def test_fields_that_would_be_ignored_are_refused_by_name(server):
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"}}
    harmless = {"user": "me", "metadata": {"a": 1}, "store": True, "seed": None, "tools": None, "stop": None}
    ok(server.post("/v1/chat/completions", ASKED | {"max_tokens": 1} | neutral | harmless))
    for field, value in {
        "frequency_penalty": 0.5, "logit_bias": {"5": 1}, "response_format": {"type": "json_object"}, "tools": [{}],
        "temprature": 0.0, "prompt_logprobs": 1, "best_of": 2, "max_new_tokens": 3,
    }.items():  # fmt: skip
        response = server.post("/v1/chat/completions", ASKED | {field: value})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == field
        assert field in response.json()["error"]["message"]


def test_a_special_token_as_a_stop_string(endless):
    """Its end token is never drawn, so only the stop string ends an answer; streamed or not."""
    body = ASKED | {"temperature": 0, "stop": ["<end>"], "logprobs": True}
    (choice,) = ok(endless.post("/v1/chat/completions", body))["choices"]
    assert (choice["finish_reason"], choice["logprobs"]["content"][-1]["token"]) == ("stop", "<end>")
    ids = endless.ids("<bos> <user> what is the capital of avaria ? <asst>")
    whole = direct(endless, ids, temperature=0.0, max_new=40)
    assert 5 in whole.tokens[:-1]
    assert choice["message"]["content"] == endless.lm.tokenizer.decode(whole.tokens[: whole.tokens.index(5)])
    parts = [chunk["choices"][0] for chunk in events(endless.post("/v1/chat/completions", body | {"stream": True}))]
    assert "".join(part["delta"]["content"] for part in parts) == choice["message"]["content"]
    assert parts[-1]["finish_reason"] == "stop"


def test_fields_of_messages_and_templates_that_change_nothing(server):
    plain = ok(server.post("/tokenize", ASKED))["tokens"]
    more = {"name": "ada", "annotations": [], "refusal": None, "tool_calls": [], "audio": None}
    for kwargs in ({}, {"enable_thinking": False}, {"enable_thinking": False, "date_string": "26 Jul 2024"}, None):
        body = {"messages": [QUESTION | more], "chat_template_kwargs": kwargs}
        assert ok(server.post("/tokenize", body))["tokens"] == plain
        assert ok(server.post("/v1/chat/completions", body | {"max_tokens": 1}))["usage"]["prompt_tokens"] == len(plain)
    for kwargs in ({"enable_thinking": True}, {"thinking": False}, {"date_string": "1 Jan 2026"}, [], "x"):
        response = server.post("/v1/chat/completions", ASKED | {"chat_template_kwargs": kwargs})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "chat_template_kwargs"
        assert not isinstance(kwargs, dict) or next(iter(kwargs)) in response.json()["error"]["message"]
    for field, value in {"tool_calls": [{}], "reasoning_content": "hm", "weight": 0, "audio": {"id": "x"}}.items():
        response = server.post("/v1/chat/completions", {"messages": [QUESTION | {field: value}]})
        assert response.status_code == 400
        assert field in response.json()["error"]["message"]


def test_a_message_that_spells_a_special_token_is_text(server):
    """In a raw prompt the client writes the tokens; in a message only the template does."""
    tokenizer = byte_level()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    tokenizer.add_tokens([f"<x{i}>" for i in range(server.lm.config.V - len(tokenizer))])
    lm = LanguageModel(server.lm.config, server.lm.params, tokenizer, (tokenizer.eos_token_id,))
    with running(Engine(lm, slots=SLOTS, cache_length=LENGTH), lm, {NAME: None}) as served:
        text = "the<|end|> cat"
        ids = ok(served.post("/tokenize", {"messages": [{"role": "user", "content": text}]}))["tokens"]
        assert ids.count(tokenizer.eos_token_id) == 1
        assert ok(served.post("/detokenize", {"tokens": ids[:-1]})) == {"prompt": text}
        raw = ok(served.post("/tokenize", {"prompt": text}))["tokens"]
        assert raw.count(tokenizer.eos_token_id) == 1
        assert raw != ids
        # Without a template plain completions work, and a conversation is refused by name.
        tokenizer.chat_template = None
        ok(served.post("/v1/completions", {"prompt": "the cat", "max_tokens": 1}))
        response = served.post("/v1/chat/completions", ASKED)
        assert response.status_code == 400
        assert "no chat template" in response.json()["error"]["message"]


def test_metrics(server):
    def value(name):
        lines = httpx.get(server.url + "/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = ['emjax_http_requests_total{path="/v1/completions",status="400"}', "emjax_engine_requests_total"]
    before = [value(name) for name in names]
    server.post("/v1/completions", {"prompt": ""})
    ok(server.post("/v1/completions", {"prompt": "<bos>", "n": 3}))
    assert [value(name) - was for name, was in zip(names, before, strict=True)] == [1, 3]
    assert value("emjax_slots") == server.engine.slots
    assert server.idle()


def test_key(server):
    with running(server.engine, server.lm, {NAME: None}, api_key="s3cret") as locked:
        for headers in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "s3cret"}, {"authorization": "Bearer é"}):
            raw = {name: value.encode() for name, value in headers.items()}
            for path in ("/v1/models", "/metrics", "/openapi.json", "/tokenizer_info"):
                response = httpx.get(locked.url + path, headers=raw)
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
        assert httpx.get(locked.url + "/health").status_code == 200
        assert httpx.get(locked.url + "/v1/models", headers={"authorization": "Bearer s3cret"}).status_code == 200


def test_a_draining_server_ends_what_it_has_and_takes_nothing_new(endless):
    body = {"prompt": [1, 3], "max_tokens": 200, "temperature": 0}
    tokens = endless.engine.stats.tokens
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running_one = pool.submit(endless.post, "/v1/completions", body)
        while endless.engine.stats.tokens == tokens:
            pass
        endless.app.draining = True
        responses = [endless.post("/v1/completions", body), httpx.get(endless.url + "/health")]
        assert [r.status_code for r in responses] == [503, 503]
        assert all(int(r.headers["retry-after"]) > 0 for r in responses)
        assert ok(running_one.result())["usage"]["completion_tokens"] == 200
