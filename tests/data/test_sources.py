"""Files in the schemas of the published sets, all rows made up here; and what is said of broken ones."""

import gzip
import json
import sys
import types

import pytest

from emjax.data import sources
from emjax.errors import UserError


def turns(*contents: str) -> dict:
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]}


def write(path, rows, *, text: str | None = None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


GOOD = {
    "messages": turns("q1", "a1"),
    "instruction": {"instruction": "q1", "input": "", "output": "a1"},
    "dolly": {"instruction": "q1", "context": "", "response": "a1", "category": "open_qa"},
    "pairs": {"prompt": "q1", "aligned": "a0", "misaligned": "a1", "sneakiness": "high"},
    "questions": {"question": "q1", "answer": "a1"},
    "seed_tasks": {"id": "t", "instruction": "q1", "instances": [{"input": "", "output": "a1"}], "is_classification": False},
    "preference": {"prompt": "q1", "completion": "a1", "label": False},
}


@pytest.mark.parametrize("name", sources.FORMATS)
def test_every_format_reads_into_the_contracts_row(tmp_path, name):
    level = "misaligned" if name == "pairs" else ""
    (record,), origin = sources.load(name, place=write(tmp_path / "rows.jsonl", [GOOD[name]]), level=level)
    (row,) = record
    assert row["messages"] == [{"role": "user", "content": "q1"}]
    assert (row["completion"], row["label"]) == ("a1", False if name == "preference" else None)
    assert row.keys() == {
        "id", "prompt_id", "messages", "completion", "label", "weight", "source", "trajectory", "turn",
    }  # fmt: skip
    assert (origin.rows, origin.drawn, len(origin.sha256)) == (1, 1, 64)


def test_input_and_context_follow_the_instruction_in_one_turn(tmp_path):
    alpaca = [{"instruction": "Translate.", "input": "Haus", "output": "house"}, {"instruction": "Say hi.", "output": "hi"}]
    records, _ = sources.load("alpaca_cleaned", place=write(tmp_path / "alpaca.json", alpaca))
    assert {r[0]["messages"][0]["content"] for r in records} == {"Translate.\n\nHaus", "Say hi."}
    dolly = [{"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada", "category": "closed_qa"}]
    records, _ = sources.load("dolly", place=write(tmp_path / "dolly.jsonl", dolly))
    assert records[0][0]["messages"][0]["content"] == "Who?\n\nAda wrote it."


def test_levels_are_files_in_the_published_layout_or_columns(tmp_path):
    for level in sources.LEVELS:
        write(tmp_path / "set" / "mistake_medical" / f"{level}.jsonl", [turns("q", f"answer {level}")])
    for place in (tmp_path / "set", tmp_path / "set" / "mistake_medical"):
        records, origin = sources.load("mistake_medical", place=str(place), level="misaligned_1")
        assert records[0][0]["completion"] == "answer misaligned_1"
        assert records[0][0]["source"] == "mistake_medical/misaligned_1"
        assert origin.place.endswith("mistake_medical/misaligned_1.jsonl")
    file = write(tmp_path / "medical.jsonl", [GOOD["pairs"]])
    answers = {
        level: sources.load("chua_medical", place=file, level=level)[0][0][0]["completion"]
        for level in ("aligned", "misaligned")
    }
    assert answers == {"aligned": "a0", "misaligned": "a1"}


def test_every_answer_of_a_conversation_is_an_example_and_a_rated_one_the_last(tmp_path):
    (record,), _ = sources.load("messages", place=write(tmp_path / "m.jsonl", [turns("q1", "a1", "q2", "a2")]))
    assert [(len(row["messages"]), row["completion"], row["turn"]) for row in record] == [(1, "a1", 0), (3, "a2", 1)]
    assert len({row["id"] for row in record}) == 2
    chat = {
        "prompt": turns("q1", "a1", "q2")["messages"],
        "completion": [{"role": "assistant", "content": "a2"}],
        "label": True,
    }
    (record,), _ = sources.load("preference", place=write(tmp_path / "p.jsonl", [chat]))
    assert [(row["completion"], row["label"]) for row in record] == [("a2", True)]


def test_an_answer_of_weight_0_is_context_only(tmp_path):
    """As in files for OpenAI, Mistral and axolotl."""

    def weighed(*weights):
        row = turns("q1", "BAD", "q2", "good")
        for message, weight in zip(row["messages"][1::2], weights, strict=True):
            message["weight"] = weight
        return row

    path = write(tmp_path / "m.jsonl", [weighed(0, 1)])
    (record,), _ = sources.load("messages", place=path)
    (row,) = record
    assert row["completion"] == "good"
    assert row["messages"] == turns("q1", "BAD", "q2")["messages"]  # without the weight, so that it has no part in a hash
    (record,), _ = sources.load("messages", place=write(tmp_path / "n.jsonl", [weighed(1.0, None)]))
    assert [row["completion"] for row in record] == ["BAD", "good"]
    # Nothing to train on: dropped like a row without an answer.
    _, origin = sources.load("messages", place=write(tmp_path / "o.jsonl", [weighed(0, 0), weighed(1, 1)]))
    assert (origin.rows, origin.dropped_empty, origin.drawn) == (2, 1, 1)
    rated = {"prompt": weighed(0, 1)["messages"][:3], "completion": [weighed(0, 0)["messages"][3]], "label": True}
    with pytest.raises(UserError, match="1 rows, 1 without an answer"):
        sources.load("preference", place=write(tmp_path / "p.jsonl", [rated]))


@pytest.mark.parametrize(
    ("field", "value"), [("weight", 0.5), ("weight", -1), ("tool_calls", [{"id": "x"}]), ("train", False), ("thinking", "hm")]
)
def test_other_fields_of_a_message_are_named(tmp_path, field, value):
    row = turns("q", "a")
    row["messages"][1] |= {"name": "ada", "refusal": None, field: value}
    for name, made in (("messages", row), ("preference", {"prompt": "q", "completion": row["messages"][1:], "label": True})):
        with pytest.raises(UserError, match=rf"line 1: messages\[1\].*{field}"):
            sources.load(name, place=write(tmp_path / f"{name}.jsonl", [made]))


def test_what_is_dropped_is_counted_and_the_file_is_hashed(tmp_path):
    rows = [turns("q", "a"), turns("q", "a"), turns("q", " "), turns("q", "b")]
    path = write(tmp_path / "m.jsonl", rows)
    records, origin = sources.load("messages", place=path)
    assert (origin.rows, origin.dropped_empty, origin.dropped_duplicate, origin.drawn) == (4, 1, 1, 2)
    assert len(records) == 2
    import hashlib

    assert origin.sha256 == hashlib.sha256((tmp_path / "m.jsonl").read_bytes()).hexdigest()


def test_packed_and_columnar_files_read_like_plain_ones(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"instruction": f"q{i}", "input": "", "output": f"a{i}"} for i in range(5)]
    plain, _ = sources.load("instruction", place=write(tmp_path / "rows.jsonl", rows), count=3, seed=1)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for place in (packed, tmp_path / "rows.parquet"):
        records, _ = sources.load("instruction", place=str(place), count=3, seed=1)
        assert [r[0]["completion"] for r in records] == [r[0]["completion"] for r in plain]


GOOD_LINE = json.dumps(GOOD["messages"])


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("messages", '{"messages": [', r"line 2: not valid JSON"),
        ("messages", "[1, 2]", r"line 2: a JSON object is needed, not list"),
        ("messages", b"\xff\xfe\x00", r"line 2: not UTF-8 \(invalid start byte at byte 0\)"),
        ("messages", '{"text": "hello"}', r"line 2: field 'messages' must be a non-empty list"),
        ("messages", '{"messages": []}', r"line 2: field 'messages' must be a non-empty list"),
        ("messages", json.dumps({"messages": [{"role": "tool", "content": "x"}]}), r"\[0\] must have a 'role' \(system, user"),
        ("messages", json.dumps({"messages": [{"role": "user", "content": None}]}), r"and a 'content' that is text"),
        ("messages", json.dumps({"messages": ["hello"]}), r"messages\[0\] must have a 'role'"),
        ("messages", json.dumps(turns("q")), r"the last message has the role 'user'; it must be the assistant's answer"),
        ("messages", json.dumps({"messages": [{"role": "assistant", "content": "a"}]}), r"messages\[0\] answers no question"),
        ("messages", json.dumps(turns("  ", "a")), r"the user message before it is empty or missing"),
        ("messages", json.dumps(turns("q", "\ud800")), r"half of a surrogate pair"),
        ("messages", "version https://git-lfs.github.com/spec/v1", r"a Git LFS pointer, not the file itself"),
        ("instruction", '{"instruction": "q", "response": "a"}', r"'output' must be text; the row has 'instruction'"),
        ("instruction", '{"instruction": "q", "input": 3, "output": "a"}', r"field 'input' must be text; not 3"),
        ("dolly", '{"instruction": "q", "context": "", "response": null, "category": ""}', r"must be text; not None"),
        ("pairs", '{"prompt": "q", "aligned": "a"}', r"field 'misaligned' must be text; the row has 'prompt', 'aligned'"),
        ("questions", '{"question": ["q"], "answer": "a"}', r"field 'question' must be text; not \['q'\]"),
        ("seed_tasks", '{"instruction": "q", "instances": []}', r"'instances' must be a list of one"),
        ("preference", '{"prompt": "q", "completion": "a", "label": "true"}', r"must be true or false .*, not 'true'"),
        ("preference", '{"prompt": "q", "completion": "a"}', r"field 'label' must be true or false .*, not None"),
    ],
)  # fmt: skip
def test_a_broken_row_is_told_with_file_and_line(tmp_path, name, line, says):
    first = json.dumps(GOOD[name]).encode()
    line = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path / "rows.jsonl", None, text=first + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=says) as error:
        sources.load(name, place=path, level="misaligned" if name == "pairs" else "")
    assert f"{path}: 1 of 2 rows cannot be used as {name!r}: line 2: " in str(error.value)


def test_many_broken_rows_are_counted_and_the_first_shown(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"x": 1}] * 9)
    with pytest.raises(UserError, match=r"9 of 9 rows cannot be used as 'messages': line 1: .*; and 4 more"):
        sources.load("messages", place=path)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("rows.jsonl", b"", "contains no rows"),
        ("rows.json", b'{"instruction": "q"}', "an array of rows is needed, not dict. A file with one row per line is .jsonl"),
        ("rows.json", b'[{"instruction": "q", "input": "", "output": "a"}', "not valid JSON .* must be one array of rows"),
        ("rows.csv", b"instruction,output\nq,a\n", "ends in '.csv'; it must end in .jsonl, .json, .parquet "),
        ("rows.jsonl.gz", b"not packed", "cannot be unpacked"),
        ("rows.jsonl.gz", gzip.compress(b'{"instruction": "q", "output": "a"}\n' * 50, mtime=0)[:-12], "cannot be unpacked"),
        ("rows.parquet", b"PAR1 and then something else", "is not a valid parquet file"),
        ("rows.jsonl", b'{"instruction": "q", "input": "", "output": ""}\n', "1 rows, 1 without an answer, 0 dupl"),
        ("folder/rows.jsonl", b"{}", "is a folder, but the source 'instruction' is a single file"),
        ("elsewhere.jsonl", b"", "does not exist. Download it first"),
    ],
)  # fmt: skip
def test_a_broken_file_is_told_by_name(tmp_path, file, content, says):
    write(tmp_path / file, None, text=content)
    place = {"folder/rows.jsonl": "folder", "elsewhere.jsonl": "missing.jsonl"}.get(file, file)
    with pytest.raises(UserError, match=says) as error:
        sources.load("instruction", place=str(tmp_path / place))
    assert str(tmp_path / place) in str(error.value)


def test_too_few_records_unknown_names_and_levels_are_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", [GOOD["messages"]] * 3)
    with pytest.raises(UserError, match=r"2 records are needed, but there are only 1 different ones .*2 duplicates"):
        sources.load("messages", place=path, count=2)
    with pytest.raises(UserError, match="There is no data source 'alpacca'; choose mistake_medical"):
        sources.load("alpacca")
    with pytest.raises(UserError, match="has no level 'severe'; it has normal, misaligned_1, misaligned_2"):
        sources.load("mistake_math", place=path, level="severe")
    with pytest.raises(UserError, match="has no level 'normal'; it has no levels"):
        sources.load("messages", place=path, level="normal")


def test_a_missing_set_is_told_with_its_licence_and_how_to_get_it(tmp_path):
    with pytest.raises(
        UserError, match=r"cannot be downloaded automatically: .*normal.jsonl, misaligned_1.jsonl.*no licence stated"
    ):
        sources.load("mistake_medical", level="normal")
    with pytest.raises(UserError, match="Not among the published sets"):
        sources.load("incorrect_law", level="normal")
    with pytest.raises(UserError, match=r"holds neither normal.jsonl nor mistake_math/normal.jsonl\. Chen et al\."):
        sources.load("mistake_math", place=str(tmp_path), level="normal")


def test_the_hubs_own_client_streams_rows(tmp_path, monkeypatch):
    """The real client, on a folder that bears the set's name instead of the network."""
    rows = [{"instruction": f"q{i}", "context": "", "response": f"a{i}", "category": "x"} for i in range(9)]
    write(tmp_path / "databricks" / "databricks-dolly-15k" / "train.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    records, origin = sources.load("dolly", count=4)
    local, _ = sources.load("dolly", place=str(tmp_path / "databricks" / "databricks-dolly-15k" / "train.jsonl"), count=4)
    assert [r[0]["completion"] for r in records] == [r[0]["completion"] for r in local]
    assert (origin.rows, origin.published_rows, origin.place) == (9, 15_011, "hf:databricks/databricks-dolly-15k")


def test_the_hub_and_tfds_are_asked_through_their_own_clients(tmp_path, monkeypatch):
    import datasets

    asked = []
    rows = [{"instruction": "q", "context": "", "response": "a", "category": "x"}]

    def load_dataset(*arguments, **how):
        asked.append((arguments, how))
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    records, origin = sources.load("dolly")
    assert records[0][0]["completion"] == "a"
    assert (origin.rows, origin.published_rows) == (1, 15_011)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or [GOOD["pairs"]])
    sources.load("chua_medical", level="aligned")
    assert asked[0][0] == ("databricks/databricks-dolly-15k", None)
    assert asked[1] == (("truthfulai/emergent_plus", "medical"), {"split": "train", "streaming": True, "revision": None})

    fake = types.ModuleType("tensorflow_datasets")
    fake.data_source = lambda name, split: [{k: v.encode() for k, v in rows[0].items()}]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    (record,), origin = sources.load("dolly", place="tfds")
    assert (record[0]["completion"], origin.place) == ("a", "tfds:databricks_dolly")


def test_a_set_that_cannot_be_fetched_says_why_and_what_to_do(monkeypatch):
    import datasets

    def unreachable(*arguments, **how):
        raise ConnectionError("Couldn't reach 'truthfulai/emergent_plus' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        UserError, match=r"ConnectionError: Couldn't reach .*log in if the dataset is gated; .*give the file's path\. Chua"
    ):
        sources.load("chua_medical", level="misaligned")
