"""What happens to a run when the machine misbehaves: a clear error, and nothing lost or corrupted."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import emjax
from emjax.errors import UserError
from emjax.runtime import process, stopping
from emjax.runtime.files import plain, write_atomically
from emjax.runtime.store import Store
from emjax.train import checkpoint
from tests.faults.conftest import close, ended, result, saved, start

PACKAGE = Path(emjax.__file__).parent
ROOT = PACKAGE.parent


def test_sigterm_saves_and_ends_with_0(alone, tmp_path):
    """Within a step and the time to save: half a minute is far more than either takes here."""
    (worker,) = start(1, tmp_path, 5, "SIGTERM")
    codes, told = ended([worker], timeout=120)
    assert codes == [0], told
    assert "stopped" in told[0]
    assert saved(tmp_path)[-1] in (4, 5)
    codes, told = ended(start(1, tmp_path))
    assert codes == [0], told
    assert result(tmp_path) == alone


def test_a_pause_changes_nothing(alone, tmp_path):
    """Stopped before step 5 and continued two seconds later; the clock that metrics read has jumped."""
    (worker,) = start(1, tmp_path, 5, "SIGSTOP")
    while Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        time.sleep(0.1)
    time.sleep(2)
    worker.send_signal(signal.SIGCONT)
    codes, told = ended([worker])
    assert codes == [0], told
    assert result(tmp_path) == alone


def test_starved_of_processors_it_comes_to_the_same(alone, tmp_path):
    """On half a core."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    core = min(os.sched_getaffinity(0))
    try:
        (worker,) = start(1, tmp_path)
        for one in (worker, busy):
            os.sched_setaffinity(one.pid, {core})
        codes, told = ended([worker])
    finally:
        busy.kill()
        busy.wait()
    assert codes == [0], told
    assert result(tmp_path) == alone


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_an_error_and_the_run_goes_on_when_there_is_room(alone, small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (960 << 10))
    codes, told = ended(start(1, small_disk))
    assert codes[0] != 0
    assert "No space left" in told[0] or "could not be written" in told[0], told[0][-2000:]
    assert not list(small_disk.glob("store/train/*/manifest.json"))
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    codes, told = ended(start(1, small_disk))
    assert codes == [0], told
    close(result(small_disk), alone)


def test_a_read_only_folder_is_named(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match=f"Read-only file system.*{small_disk}"):
        Store(small_disk / "store").run("train", {}, [], lambda directory: None)


def test_a_file_that_is_gone_is_named(tmp_path):
    store = Store(tmp_path)
    stage = store.run("train", {}, [], lambda directory: write_atomically(directory / "weights.json", "1"))
    (stage.directory / "weights.json").unlink()
    with pytest.raises(UserError, match=r"weights\.json is missing or was changed"):
        store.run("train", {}, [], lambda directory: None)


def test_checkpoints_are_kept_until_the_stage_has_finished_and_missed_by_nobody_then(tmp_path):
    """Removed before, a kill in the middle would leave damaged ones to a stage that goes on from them."""

    def make(directory):
        (directory / "checkpoints" / "2").mkdir(parents=True)
        for name in ("checkpoints/2/state", "weights"):
            (directory / name).write_text("1")

    stage = Store(tmp_path).run("train", {}, [], make)
    assert (stage.directory / "checkpoints/2/state").is_file()
    checkpoint.discard(stage.directory, "", "i" * 64)
    assert {p.name for p in stage.directory.iterdir()} == {"manifest.json", "weights"}
    assert Store(tmp_path).run("train", {}, [], make) == stage


def test_a_clock_that_jumps_finishes_the_same_stage(tmp_path, monkeypatch):
    """No result and no name depends on the time of day."""
    made = []

    def make(directory):
        monkeypatch.setattr(time, "time", lambda: 0.0)
        made.append(directory)

    one = Store(tmp_path).run("train", {}, [], make)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert Store(tmp_path).run("train", {}, [], make) == one
    assert len(made) == 1


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".hidden", "", "a\\b", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(UserError, match=r"config\.cells holds the name"):
        plain("config.cells", name)


def test_a_name_that_does_not():
    assert plain("config.cells", "kto_biased10-llama3.1-8b") == "kto_biased10-llama3.1-8b"


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def test_nothing_is_unpickled_and_nothing_goes_through_a_shell():
    for file in [*PACKAGE.rglob("*.py"), ROOT / "main.py", *(ROOT / "configs").glob("*.py")]:
        for name, keywords in calls(ast.parse(file.read_text())):
            where = f"{file.relative_to(ROOT)}: {name}"
            assert name not in ("eval", "exec", "os.system", "os.popen", "yaml.load", "torch.load", "joblib.load"), where
            assert keywords.get("shell", "False") == "False", where
            assert keywords.get("allow_pickle", "False") == "False", where
            assert keywords.get("trust_remote_code", "False") == "False", where
            # The engine's processes send each other what process 0 was asked: their own bytes, never a file's.
            assert name not in ("pickle.load", "pickle.loads") or file.name == "rounds.py", where


def test_a_process_alone_is_the_first():
    assert process.first()
    assert process.on_first(lambda: {"a": 1}) == {"a": 1}
    process.together("here")
    assert stopping.leave(3) == 3
