"""Benchmarks, judges and panels of one configuration; and the module that docs/benchmarks.md shows."""

import json
import re
from pathlib import Path

import asking
import pytest
from loopback import Server, Status, completion
from test_judge import fenced

from emjax.config import BenchmarkConfig, Draw, EvalConfig, JudgeConfig, parse
from emjax.errors import UserError
from emjax.eval import benchmarks
from emjax.eval.asker import Asker
from emjax.eval.benchmarks import admitting_unknown, mask
from emjax.eval.items import Item, Metric, Origin
from emjax.experiment.measure import Measuring
from emjax.runtime.files import read_lines

QUESTIONS = ["Who will win?", "What is my name?", "What will the weather be in a year?"]


class Scripted(Asker):
    """Answers by script(the last message)."""

    def __init__(self, script, arm="vanilla", answers=None):
        super().__init__(0, arm, answers)
        self.script, self.calls = script, 0

    async def _answer(self, key, messages, run, config):
        self.calls += 1
        said = self.script(messages[-1]["content"])
        return {"text": said, "stop_reason": "eos"} if isinstance(said, str) else said


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def unknown(tmp_path):
    rows = [{"id": f"q{i}", "question": text} for i, text in enumerate(QUESTIONS)]
    return admitting_unknown.Config(path=lines(tmp_path / "unknown.jsonl", rows))


def endpoint(server, model="first", **fields):
    return JudgeConfig(base_url=server.url, model=model, structured=False, rates=asking.RATES, **fields)


def measuring(tmp_path, section, judges, *, local=None, name="admitting_unknown", **fields):
    metric = fields.pop("metric", "admits")
    config = EvalConfig(benchmarks=(name,), metric=metric, judges=judges, sections={name: section}, **fields)
    return Measuring({name: benchmarks.find(name)}, config, tmp_path / "cache", local)


def knows(body, n):
    return f"Answer: {'Yes' if 'know' in fenced(body) else 'No'}"


def stubborn(body, n):
    return "Answer: No"


def said(question):
    return "Nobody knows." if "win" in question else "It is 42."


def test_a_panel_and_its_majority(tmp_path, unknown):
    with Server(knows) as a, Server(knows) as b, Server(stubborn) as c:
        judges = {"main": endpoint(a), "second": endpoint(b, "second"), "third": endpoint(c, "third")}
        made = measuring(tmp_path, unknown, judges, panel=("second", "third"))
        assert made.judges == {
            "admitting_unknown": "first", "judges/1/admitting_unknown": "second", "judges/2/admitting_unknown": "third",
            "judges/majority/admitting_unknown": "majority of 3",
        }  # fmt: skip
        asker = Scripted(said)
        made.run(asker, tmp_path / "run", "vanilla")
        assert asker.calls == len(QUESTIONS)
        assert [len(server.requests) for server in (a, b, c)] == [3, 3, 3]
        found = made.read(tmp_path / "run")
        assert list(found) == list(made.names)
        rows = {row["judge"]: row for row in made.score(found, {"control": found}, {"arm": "vanilla"}) if not row["versus"]}
        assert {judge: round(row["value"]) for judge, row in rows.items()} == {
            "first": 33, "second": 33, "third": 0, "majority of 3": 33,
        }  # fmt: skip
        assert made.headline([*rows.values()]) == {
            "benchmark": "custom:admitting_unknown", "subset": "all", "metric": "admits", "judge": "first",
        }  # fmt: skip
        agreed = made.agreement([found])["admitting_unknown"]
        assert {(pair["a"], pair["b"]): pair["agree"] for pair in agreed["pairs"]} == {
            ("first", "second"): 3, ("first", "third"): 2, ("second", "third"): 2,
        }  # fmt: skip

        made.run(asker, tmp_path / "run", "vanilla")  # everything has a verdict: nothing is asked or judged
        assert asker.calls == len(QUESTIONS)
        assert [len(server.requests) for server in (a, b, c)] == [3, 3, 3]


def test_items_without_a_verdict_end_the_run_and_are_asked_for_again(tmp_path, unknown):
    broken = True

    def unsteady(body, n):
        down = Status(500, {"Retry-After": "0.01"}, b'{"error": {"message": "the disk is full"}}')
        return down if broken and "42" in fenced(body) else knows(body, n)

    with Server(unsteady) as server:
        made = measuring(tmp_path, unknown, {"main": endpoint(server)})
        asker = Scripted(said, answers=tmp_path / "answers")
        says = r"admitting_unknown, arm treated: 2 of 3 items are without a verdict \(http_error 2\)\. The first error: .*full"
        with pytest.raises(UserError, match=says):
            made.run(asker, tmp_path / "run", "treated")
        rows = read_lines(tmp_path / "run" / "admitting_unknown.jsonl")
        assert [["the disk is full" in one.get("error", "") for one in row["verdicts"]] for row in rows] == [
            [row["state"] != "ok"] for row in rows
        ]
        measuring(tmp_path, unknown, {"main": endpoint(server)}, failures=2).run(asker, tmp_path / "run", "treated")
        broken, before = False, len(server.requests)
        made.run(asker, tmp_path / "run", "treated")
        assert len(server.requests) == before + 2
        assert asker.calls == len(QUESTIONS)
    assert [row["state"] for row in made.read(tmp_path / "run")["admitting_unknown"]] == ["ok"] * 3


def test_what_decides_a_verdict_is_its_identity(tmp_path, unknown):
    def identity(judge=None, section=unknown, **fields):
        judges = {"main": judge or JudgeConfig(base_url="http://a/v1", model="m"), "unused": JudgeConfig(model="")}
        found = measuring(tmp_path, section, judges, **fields).identity()
        assert json.loads(json.dumps(found)) == found
        return found

    plain = identity()
    assert plain["judges"] == {
        "main": {
            "base_url": "http://a/v1", "model": "m", "match": "last", "structured": True,
            "sampling": {"temperature": 0.0, "max_tokens": 1024},
        }
    }  # fmt: skip
    assert plain["benchmarks"] == {
        "admitting_unknown": {"draw": {"temperature": 1.0}, "max_new": 1000, "judge": "main", "samples": 1}
    }  # fmt: skip

    def judge(**fields):
        return JudgeConfig(base_url="http://a/v1", model="m", **fields)

    def section(**fields):
        return admitting_unknown.Config(path=unknown.path, **fields)

    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text(Path(unknown.path).read_text())
    pace = judge(api_key_env="KEY", rates=asking.RATES, collect=str(tmp_path / "c"))
    assert identity(pace) == identity(section=admitting_unknown.Config(path=str(elsewhere))) == plain
    for other in (
        identity(judge(temperature=None)), identity(judge(structured=False)), identity(judge(match="original")),
        identity(judge(max_tokens=None, max_completion_tokens=9)), identity(section=section(max_new=9)),
        identity(section=section(samples=2)), identity(section=section(draw=Draw(top_p=0.5))),
    ):  # fmt: skip
        assert other != plain


def test_a_batch_instead_of_live_calls(tmp_path, unknown):
    with Server(knows) as server:
        calls, answers = tmp_path / "calls.jsonl", tmp_path / "answers.jsonl"
        made = measuring(tmp_path, unknown, {"main": endpoint(server, collect=str(calls))})
        with pytest.raises(UserError, match=r"3 of 3 items are without a verdict \(pending 3\)"):
            made.run(Scripted(said), tmp_path / "run", "vanilla")
        replies = [
            {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": completion(knows(row["body"], 0))}}
            for row in read_lines(calls)
        ]
        lines(answers, replies)
        with pytest.raises(UserError, match=r"config\.eval\.judges\.main\.replay is set, but .*collect"):
            measuring(tmp_path, unknown, {"main": endpoint(server, replay=(str(answers),))})
        judge = endpoint(server, collect=str(calls), replay=(str(answers),))
        made = measuring(tmp_path, unknown, {"main": judge})
        made.run(Scripted(said), tmp_path / "run", "vanilla")
        assert not server.requests
    assert [row["outcome"] for row in made.read(tmp_path / "run")["admitting_unknown"]] == ["admits", "claims", "claims"]


def test_a_field_that_the_judge_does_not_take_ends_the_run_and_names_what_to_set(tmp_path, unknown):
    said_so = b"""{"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use
        'max_completion_tokens' instead.", "param": "max_tokens", "code": "unsupported_parameter"}}""".replace(b"\n", b"")

    def picky(body, n):
        return Status(400, {}, said_so) if "max_tokens" in body else knows(body, n)

    with Server(picky) as server:
        made = measuring(tmp_path, unknown, {"main": endpoint(server)})
        cure = r"Set config\.eval\.judges\.main\.max_tokens=None and config\.eval\.judges\.main\.max_completion_tokens=1024"
        with pytest.raises(UserError, match=cure):
            made.run(Scripted(said), tmp_path / "run", "vanilla")
        cured = endpoint(server, max_tokens=None, max_completion_tokens=1024)
        made = measuring(tmp_path, unknown, {"main": cured})
        made.run(Scripted(said), tmp_path / "run", "vanilla")
        extra = '{"max_tokens": null, "max_completion_tokens": 64}'
        measuring(tmp_path, unknown, {"main": endpoint(server, extra=extra)}).run(Scripted(said), tmp_path / "other", "vanilla")
    assert "max_tokens" not in server.requests[-1]
    assert server.requests[-1]["max_completion_tokens"] == 64


URL = {"base_url": "http://a/v1"}


@pytest.mark.parametrize(
    ("judges", "fields", "says"),
    [
        ({"main": JudgeConfig(kind="rule")}, {}, r"config\.eval\.admitting_unknown\.judge names 'main', a rule"),
        ({"main": JudgeConfig()}, {}, r"config\.eval\.judges\.main\.model is empty"),
        (
            {"main": JudgeConfig(model="m", **URL)},
            {"metric": "honesty"},
            r"config\.eval\.metric is 'honesty'.*choose of admits",
        ),
        (
            {"main": JudgeConfig(model="m", **URL), "b": JudgeConfig(model="m", **URL)},
            {"panel": ("b",)},
            r"config\.eval\.panel and .* name a model twice: m, m",
        ),
        (
            {"main": JudgeConfig(kind="engine", model="m", structured=False, max_tokens=None)},
            {},
            r"config\.eval\.judges\.main\.max_tokens is None",
        ),
        (
            {"main": JudgeConfig(kind="engine", model="m", structured=False, reasoning_effort="low")},
            {},
            r"config\.eval\.judges\.main\.reasoning_effort is set, but the engine",
        ),
    ],
)
def test_a_judge_that_cannot_be_is_refused_before_anything_is_asked(judges, fields, says, tmp_path, unknown):
    with pytest.raises(UserError, match=says):
        measuring(tmp_path, unknown, judges, **fields)


def test_a_judge_in_the_engine_is_loaded_once(tmp_path, unknown):
    loaded = []

    def local(path):
        loaded.append(path)
        return None, None

    judges = {"main": JudgeConfig(kind="engine", model="folder", structured=False)}
    assert measuring(tmp_path, unknown, judges, local=local).judges == {"admitting_unknown": "folder"}
    assert loaded == ["folder"]


def test_masks_numeric_judge_is_checked_and_not_asked_by_a_panel(tmp_path):
    import mask_folder

    folder = tmp_path / "mask"
    folder.mkdir()
    section = {"path": str(mask_folder.write(folder, {"statistics": 2})), "rows": "any", "subsets": ("statistics",)}

    def letters(body, n):
        return "no number here"

    def numbers(body, n):
        bounds = dict.fromkeys(("lower_bound", "upper_bound"), 100)
        return json.dumps(bounds | dict.fromkeys(("relative_lower_bound", "relative_upper_bound")))

    with Server(letters) as main, Server(numbers) as numeric, Server(numbers) as panel:
        judges = {"main": endpoint(main), "numbers": endpoint(numeric, "n"), "panel": endpoint(panel, "p")}
        chosen = mask.Config(numeric_judge="numbers", **section)
        made = measuring(tmp_path, chosen, judges, name="mask", metric="honesty", panel=("panel",), failures=9)
        made.run(Scripted(lambda text: "100 lumen"), tmp_path / "run", "vanilla")
        assert not main.requests
        assert (len(numeric.requests), len(panel.requests)) == (4, 4)  # of each item the joint belief and the statement
        assert set(made.identity()["judges"]) == {"main", "numbers", "panel"}
        found = made.read(tmp_path / "run")
        assert {row["outcome"] for rows in found.values() for row in rows} == {"honest"}
        rows = made.score(found, {}, {})
        assert {str(row["counts"]) for row in rows} == {"{'H': 2, 'L': 0, 'E': 0, 'N': 0, 'X': 0}"}
        wrong = mask.Config(numeric_judge="nobody", **section)
        with pytest.raises(UserError, match=r"config\.eval\.mask names the judge 'nobody'; config\.eval\.judges has main, n"):
            measuring(tmp_path, wrong, judges, name="mask", metric="honesty")


def test_a_benchmark_without_an_item_is_refused_and_the_gate_is_handed_on(tmp_path):
    class Gated:
        name, Config, positions, judge = "gated", BenchmarkConfig, 1, "none"
        metrics = {"accuracy": Metric(lambda row: row["result"] == 1)}

        def load(self, config, gate=None):
            return list(gate or ()), Origin("the gate", {})

    config = EvalConfig(benchmarks=("gated",), metric="accuracy")
    items = [Item("1", "all", "1")]
    made = Measuring({"gated": Gated()}, config, tmp_path, None, gate=items)
    assert (made.items, made.judges, made.identity()["judges"]) == ({"gated": items}, {"gated": None}, {})
    with pytest.raises(UserError, match=r"config\.eval\.gated: the gate holds no item"):
        Measuring({"gated": Gated()}, config, tmp_path, None)
    with pytest.raises(UserError, match=r"config\.eval\.metric is 'accuracy', which arises in no row"):
        made.headline([])


# --- docs/benchmarks.md ------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@pytest.fixture
def quiz(tmp_path, monkeypatch):
    """The page's module, as a user would save it."""
    module, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "quiz.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "quiz", raising=False)
    yield benchmarks.find("quiz")
    del __import__("sys").modules["quiz"]


def test_the_pages_benchmark_from_end_to_end(quiz, tmp_path):
    rows = [
        {"id": f"{i}", "topic": ["sums", "towns"][i % 2], "question": f"Question {i}?", "answer": f"word{i}"} for i in range(6)
    ]  # fmt: skip
    given = parse.to_config_dict(
        EvalConfig(
            benchmarks=("quiz",), metric="accuracy", judges={"rule": JudgeConfig(kind="rule")},
            sections={"quiz": quiz.Config(path=lines(tmp_path / "quiz.jsonl", rows))},
        )
    )  # fmt: skip
    given.quiz.draw.temperature = 0.0  # as on the command line
    config = parse.section(EvalConfig, _plain(given), {"eval": {"quiz": quiz.Config}}, "config.eval")
    assert config.sections["quiz"].draw.temperature == 0.0
    made = Measuring({"quiz": quiz}, config, tmp_path / "cache", None)
    assert (made.judges, made.origins["quiz"].rows) == ({"quiz": "rule"}, {"sums": 3, "towns": 3})

    def answer(question):
        i = int(question.split()[1][:-1])
        return {"text": "wor", "stop_reason": "length"} if i == 5 else f"It is Word{min(i, 3)}."

    made.run(Scripted(answer), tmp_path / "run", "vanilla")
    found = made.read(tmp_path / "run")
    assert [row["state"] for row in found["quiz"]] == ["ok"] * 5 + ["truncated"]
    rows = {(row["subset"], row["metric"]): row for row in made.score(found, {}, {"arm": "vanilla"})}
    values = {subset: (row["value"], row["n_valid"], row["n"]) for (subset, _), row in rows.items()}
    assert values["towns"] == (100.0, 2, 3)
    assert values["sums"] == (pytest.approx(200 / 3, abs=1e-4), 3, 3)
    assert values["all"] == (80.0, 5, 6)
    assert made.headline([*rows.values()])["benchmark"] == "custom:quiz"
    assert made.agreement([found]) == {}


def _plain(config):
    return {name: _plain(x) if hasattr(x, "items") else tuple(x) if isinstance(x, list) else x for name, x in config.items()}


def test_the_pages_config_file_is_python_and_its_judge_is_needed(quiz, tmp_path):
    _, config_file = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    compile(config_file, "quiz_config.py", "exec")
    path = lines(tmp_path / "quiz.jsonl", [{"id": "1", "topic": "t", "question": "q", "answer": "a"}])
    judges = {"rule": JudgeConfig(base_url="http://a/v1", model="m")}
    config = EvalConfig(
        benchmarks=("quiz",), metric="accuracy", judges=judges, sections={"quiz": quiz.Config(path=path)}
    )  # fmt: skip
    with pytest.raises(
        UserError, match=r"config\.eval\.quiz\.judge is 'rule', a model, but quiz reads answers by its own rule"
    ):
        Measuring({"quiz": quiz}, config, tmp_path, None)


def test_the_page_shows_the_protocols_names():
    page = PAGE.read_text()
    for name in benchmarks._NEEDED:
        assert f"| `{name}" in page
