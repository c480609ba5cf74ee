"""Asking the model: answers are kept by how they were drawn, and version 0.1's keys are unchanged."""

import json

from loopback import Server, Status, last

from emjax.api import ChatClient
from emjax.config import BenchmarkConfig, Draw, Rates
from emjax.eval.asker import EndpointAsker
from emjax.runtime.files import digest, seed_of

RATES = Rates(retries=0)


def user(text):
    return [{"role": "user", "content": text}]


def asker(server, tmp_path, seed=3):
    return EndpointAsker(ChatClient(server.url, "m", rates=RATES), seed, "treated", tmp_path / "answers")


def ask(of, *wanted):
    """wanted: (text, run, config)"""

    async def one(item):
        text, run, config = item
        return await of.ask(user(text), run, config)

    return of.rows(wanted, one)


def test_keys_seeds_and_lines_are_those_of_version_0_1(tmp_path):
    config = BenchmarkConfig(max_new=50)
    with Server(lambda body, n: "dim") as server:
        of = asker(server, tmp_path)
        ask(of, ("lamp?", 1, config))
        of.close()
    key = digest([user("lamp?"), 1])
    (body,) = server.requests
    assert body == {
        "model": "m", "messages": user("lamp?"), "seed": seed_of("evaluate", 3, key), "temperature": 1.0, "max_tokens": 50,
    }  # fmt: skip
    (file,) = (tmp_path / "answers").iterdir()
    line = {"id": key, "messages": user("lamp?"), "run": 1, "text": "dim", "stop_reason": "stop"}
    assert file.read_text() == json.dumps(line, ensure_ascii=False) + "\n"
    assert file.name == digest({"seed": 3, "temperature": 1.0, "max_new": 50})[:16] + ".jsonl"


def test_each_way_of_drawing_has_its_file_and_seeds_are_shared(tmp_path):
    ways = [
        BenchmarkConfig(max_new=50),
        BenchmarkConfig(max_new=60),
        BenchmarkConfig(max_new=50, draw=Draw(temperature=0.0)),
        BenchmarkConfig(max_new=50, draw=Draw(top_p=0.9, top_k=40, min_p=0.05)),
    ]
    with Server(lambda body, n: "dim") as server:
        of = asker(server, tmp_path)
        ask(of, *[("lamp?", 0, config) for config in ways * 2])
        of.close()
        assert len(server.requests) == len(ways)  # two equal questions are one
        assert len({body["seed"] for body in server.requests}) == 1
        (filtered,) = [body for body in server.requests if "top_p" in body]
        assert [filtered[name] for name in ("top_p", "top_k", "min_p")] == [0.9, 40, 0.05]
        assert all(not {"top_k", "min_p"} & set(body) for body in server.requests if "top_p" not in body)

        again = asker(server, tmp_path)
        ask(again, *[("lamp?", 0, config) for config in ways])
        again.close()
        assert len(server.requests) == len(ways)
        ask(asker(server, tmp_path, seed=4), ("lamp?", 0, ways[0]))
        assert len(server.requests) == len(ways) + 1
    assert len(list((tmp_path / "answers").glob("*.jsonl"))) == len(ways)


def test_the_neutral_values_of_new_fields_leave_the_files_name_as_it_was(tmp_path):
    with Server(lambda body, n: "dim") as server:
        of = asker(server, tmp_path)
        ask(of, ("lamp?", 0, BenchmarkConfig(draw=Draw(temperature=0.5, top_p=0.9))))
        of.close()
    (file,) = (tmp_path / "answers").iterdir()
    assert file.name == digest({"seed": 3, "temperature": 0.5, "max_new": 1000, "top_p": 0.9})[:16] + ".jsonl"


def test_a_call_that_failed_is_asked_again_and_a_cut_answer_is_not(tmp_path):
    config = BenchmarkConfig(max_new=50)

    def script(body, n):
        if last(body) == "bad?" and len(server.requests) <= 2:
            return Status(500)
        return {"choices": [{"finish_reason": "length", "index": 0, "message": {"role": "assistant", "content": "di"}}]}

    with Server(script) as server:
        for expected in (["http_error", "length"], ["length", "length"]):
            of = asker(server, tmp_path)
            assert [output["stop_reason"] for output in ask(of, ("bad?", 0, config), ("cut?", 0, config))] == expected
            of.close()
        assert [last(body) for body in server.requests[2:]] == ["bad?"]


def test_what_is_made_once_is_kept_with_the_answers(tmp_path):
    made = []
    for _ in range(2):
        of = EndpointAsker(ChatClient("http://nowhere/v1", "m"), 0, "a", tmp_path)
        assert of.once({"task": "t"}, lambda: made.append(1) or {"rows": [1]}) == {"rows": [1]}
    assert made == [1]
    without = EndpointAsker(ChatClient("http://nowhere/v1", "m"), 0, "a")
    assert without.once({"task": "t"}, lambda: 2) == 2
