"""The same command started twice, and two runs that share a store: one works, the other is told so or waits."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from emjax.config import ArmConfig, ArmsConfig, EvaluationConfig
from emjax.errors import UserError
from emjax.experiment import common
from emjax.runtime import files, locks
from emjax.runtime.files import write_atomically
from emjax.runtime.store import Store
from tests.faults.conftest import ROOT, ended

CLAIM = """
import sys, time
from pathlib import Path
from emjax.config import ArmConfig, ArmsConfig, EvaluationConfig
from emjax.experiment import common
common.claim(EvaluationConfig(arms=ArmsConfig(vanilla=ArmConfig(path="a/b"))), Path(sys.argv[1]))
print("claimed", flush=True)
time.sleep(600)
"""
STAGE = """
import sys, time
from pathlib import Path
from emjax.runtime.store import Store
def make(directory):
    print("at work", flush=True)
    while not Path(sys.argv[1], "go").exists():
        time.sleep(0.05)
    with (directory / "out.txt").open("a") as file:
        file.write("made\\n")
print(Store(Path(sys.argv[1])).run("collect", {}, [], make).directory, flush=True)
"""
CONFIG = EvaluationConfig(arms=ArmsConfig(vanilla=ArmConfig(path="a/b")))


@pytest.fixture
def begin():
    started = []

    def begin(script, directory):
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", script, str(directory)], cwd=ROOT, **quiet))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def free():
    """Tests claim in this process; a run lets go at its end."""
    yield
    for path in list(locks._locks):
        locks.unlock(path)


def test_a_workdir_has_one_run_and_a_killed_one_leaves_it_free(begin, tmp_path, free):
    other = begin(CLAIM, tmp_path / "run")
    assert other.stdout.readline() == "claimed\n"
    with pytest.raises(UserError, match=rf"A run is at work in {tmp_path}/run: process {other.pid} on .+, since 20.+--workdir"):
        common.claim(CONFIG, tmp_path / "run")
    other.kill()
    other.wait()
    common.claim(CONFIG, tmp_path / "run")
    assert f"process {os.getpid()} on" in (tmp_path / "run" / "lock").read_text()
    common.claim(CONFIG, tmp_path / "run")  # its own


def test_two_runs_that_share_a_store_make_a_stage_once(begin, tmp_path):
    first = begin(STAGE, tmp_path)
    assert first.stdout.readline() == "at work\n"
    second = begin(STAGE, tmp_path)
    assert second.stdout.readline().startswith(f"stage collect: waiting for process {first.pid} on ")
    (tmp_path / "go").touch()
    codes, told = ended([first, second], timeout=60)
    assert codes == [0, 0], told
    assert told[0] == told[1]
    (made,) = tmp_path.glob("collect/*/out.txt")
    assert made.read_text() == "made\n"
    assert [file.read_text() for file in (tmp_path / "locks").iterdir()] == [""]


def test_of_a_killed_run_the_other_takes_the_stage_over(begin, tmp_path):
    first = begin(STAGE, tmp_path)
    assert first.stdout.readline() == "at work\n"
    second = begin(STAGE, tmp_path)
    assert "waiting for" in second.stdout.readline()
    first.kill()
    first.wait()
    (tmp_path / "go").touch()
    codes, told = ended([second], timeout=60)
    assert codes == [0], told
    assert told[0].startswith("at work\n")


def test_answers_that_two_judges_share_have_one_run(tmp_path):
    """Two evaluations of one model are two stages with one file of answers."""
    with common.answers(Store(tmp_path), {"weights": ["a"]}) as folder:
        (held,) = (tmp_path / "locks").iterdir()
        assert held.name == f"answers-{folder.name}"
        assert folder.is_dir()
        with held.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_where_there_are_no_locks_the_run_says_so_once_and_goes_on(tmp_path, monkeypatch, capsys, free):
    def flock(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    made = [Store(tmp_path).run("train", {"a": a}, [], lambda directory: None) for a in range(2)]
    assert len({stage.directory for stage in made}) == 2
    assert capsys.readouterr().out == (
        f"{tmp_path}/locks does not support locks (Function not implemented): "
        "make sure that no other run writes there at the same time.\n"
    )


def test_two_runs_may_keep_one_reply_at_once(tmp_path, monkeypatch):
    """The other writes while this one waits for the disk."""
    path, fsync = tmp_path / "reply.json", os.fsync

    def other(number):
        monkeypatch.setattr(files.os, "fsync", fsync)
        write_atomically(path, json.dumps({"text": "a"}), shared=True)
        fsync(number)

    monkeypatch.setattr(files.os, "fsync", other)
    write_atomically(path, json.dumps({"text": "a"}), shared=True)
    assert [p.name for p in tmp_path.iterdir()] == ["reply.json"]
    assert json.loads(path.read_text()) == {"text": "a"}
