"""The store: a stage is made once, and never taken for finished when it is not."""

import json
from types import SimpleNamespace

import pytest

from emjax.errors import UserError
from emjax.runtime import journal as journal_module
from emjax.runtime.files import digest, read_lines, write_lines
from emjax.runtime.journal import Journal
from emjax.runtime.store import Store


def test_a_stage_is_made_once(tmp_path):
    made = []

    def make(directory):
        made.append(directory)
        (directory / "out.txt").write_text("x")

    run = Store(tmp_path).run
    first = run("train", {"a": 1}, ["base"], make)
    assert run("train", {"a": 1}, ["base"], make) == first
    assert len(made) == 1
    others = [run("train", {"a": 2}, ["base"], make), run("train", {"a": 1}, ["other"], make)]
    others.append(run("train", {"a": 1}, [first], make))
    assert len({stage.hash for stage in [first, *others]}) == 4


def test_an_interrupted_stage_is_run_again_where_it_was(tmp_path):
    def killed(directory):
        (directory / "half.txt").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).run("collect", {}, [], killed)
    found = []
    Store(tmp_path).run("collect", {}, [], lambda directory: found.append((directory / "half.txt").read_text()))
    assert found == ["x"]


def test_a_finished_stage_that_lost_a_file_is_refused(tmp_path):
    def make(directory):
        (directory / "out.txt").write_text("abc")

    stage = Store(tmp_path).run("train", {}, [], make)
    (stage.directory / "out.txt").write_text("ab")
    with pytest.raises(UserError, match=r"out.txt is missing or was changed"):
        Store(tmp_path).run("train", {}, [], make)


def test_journal_goes_on_after_a_cut_line(tmp_path):
    path = tmp_path / "items.jsonl"
    journal = Journal(path)
    journal.add({"id": "b", "text": "line\u2028separator"})
    journal.add({"id": "a", "text": "é"})
    with (tmp_path / "items.jsonl.journal").open("a") as file:
        file.write('{"id": "c", "te')
    again = Journal(path)
    assert sorted(again.done) == ["a", "b"]
    again.add({"id": "c", "text": "whole"})
    assert [row["id"] for row in again.finish()] == ["a", "b", "c"]
    assert read_lines(path)[1]["text"] == "line\u2028separator"
    assert not (tmp_path / "items.jsonl.journal").exists()
    # Killed after the file was written but before its stage was finished: nothing is done again.
    assert sorted(Journal(path).done) == ["a", "b", "c"]


def test_a_journal_is_closed_now_and_then(tmp_path, monkeypatch):
    """A bucket that is mounted has of a file what was there when it was closed."""
    clock = [100.0]
    monkeypatch.setattr(journal_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    journal = Journal(tmp_path / "items.jsonl")
    closed = []
    for number, clock[0] in enumerate((101, 129, 131, 132, 170, 171)):
        before = journal._file
        journal.add({"id": str(number)})
        closed.append(before.closed)
    assert closed == [False, False, True, False, True, False]
    assert len(journal.finish()) == len(read_lines(tmp_path / "items.jsonl")) == 6


def test_read_lines_names_file_and_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": 1}\n{"id": \n')
    with pytest.raises(UserError, match=r"x.jsonl, line 2: not valid JSON"):
        read_lines(path)
    path.write_text("[1]\n")
    with pytest.raises(UserError, match=r"line 1: a JSON object is needed"):
        read_lines(path)


def test_written_lines_are_whole_or_absent(tmp_path):
    path = tmp_path / "x.jsonl"

    def rows():
        yield {"id": 1}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_lines(path, rows())
    assert not path.exists()
    write_lines(path, [{"id": 1}])
    assert json.loads(path.read_text()) == {"id": 1}


def test_digest_ignores_key_order():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})
