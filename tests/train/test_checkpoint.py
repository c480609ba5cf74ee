"""What is saved is what is restored, or it is refused by name."""

import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from emjax.errors import UserError
from emjax.runtime import process
from emjax.train import checkpoint
from emjax.train.checkpoint import Checkpoints

ABOUT = {"base": "b", "config": {"train": {"learning_rate": 0.5}, "seed": 0}, "versions": {"jax": "1"}}


def state(step):
    rng = np.random.default_rng(step)
    tree = {"a": rng.normal(size=(64, 64)).astype(np.float32), "b": np.full(7, step, np.float32)}
    return jax.device_put({"trainable": tree, "opt": jax.tree.map(lambda x: x + 1, tree), "step": np.int32(step)})


def opened(directory, identity="run", about=ABOUT, **how):
    return Checkpoints(directory, identity, about=about, **how)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def saved(tmp_path):
    """Two checkpoints, of steps 3 and 6."""
    checkpoints = opened(tmp_path / "c")
    for step in (1, 3, 6):
        checkpoints.save(state(step), step)
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["3", "6"]  # the last two are kept
    return tmp_path / "c"


def test_it_holds_state_config_base_and_versions(saved):
    same(opened(saved).restore(state(0)), state(6))
    run = json.loads(next((saved / "6" / "run").iterdir()).read_text())
    assert run.items() >= ABOUT.items()
    assert (run["identity"], run["step"]) == ("run", 6)


def flip(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def change(directory, how):
    """The files that hold values."""
    for file in directory.rglob("d/*"):
        file.write_bytes(how(file.read_bytes()))


def forge(directory):
    """Whole, and yet not what was saved: only the checksum can tell."""
    file = next((directory / "run").iterdir())
    file.write_text(json.dumps(json.loads(file.read_text()) | {"state": "0" * 64}))


DAMAGE = {
    "a flipped bit": lambda at: change(at / "state", flip),
    "a cut file": lambda at: change(at / "state", lambda data: data[: len(data) // 2]),
    "no arrays": lambda at: shutil.rmtree(at / "state"),
    "no description": lambda at: shutil.rmtree(at / "run"),
    "other values": forge,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_refused_and_the_one_before_used_when_asked(saved, capsys, how):
    DAMAGE[how](saved / "6")
    with pytest.raises(UserError, match=r"checkpoint of step 6 in .* is damaged.*config\.watch\.restore=sound"):
        opened(saved).restore(state(0))
    checkpoints = opened(saved, restore="sound")
    same(checkpoints.restore(state(0)), state(3))
    assert "step 6" in capsys.readouterr().out
    checkpoints.save(state(6), 6)  # its place is free again
    checkpoints.close()
    same(opened(saved).restore(state(0)), state(6))


@pytest.mark.parametrize("how", ["latest", "sound"])
@pytest.mark.parametrize("error", [ValueError("UNAVAILABLE: 503"), PermissionError(13, "Permission denied"), MemoryError()])
def test_what_proves_no_damage_is_raised_as_it_is(saved, monkeypatch, how, error):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint.ocp.StandardCheckpointHandler, "restore", failing)
    with pytest.raises(type(error)) as raised:
        opened(saved, restore=how).restore(state(0))
    assert raised.value is error
    assert {p.name for p in saved.iterdir()} == {"3", "6"}


def test_where_none_is_sound_nothing_is_deleted_and_nothing_starts_anew(saved):
    DAMAGE["a cut file"](saved / "6")
    DAMAGE["no description"](saved / "3")
    with pytest.raises(UserError, match=r"Every checkpoint in .* is damaged \(step 6: .*; step 3: .*\)\. Delete this folder"):
        opened(saved, restore="sound").restore(state(0))
    assert {p.name for p in saved.iterdir()} == {"3", "6"}


def test_damage_that_another_process_met_is_damage_here(saved, monkeypatch):
    """Each process reads its own part; the second of two cannot read that of step 6."""
    met = iter([[0, 1], [0, 0]])
    monkeypatch.setattr(checkpoint.multihost_utils, "process_allgather", lambda mine: np.array(next(met)) | mine)
    same(opened(saved, restore="sound").restore(state(0)), state(3))
    assert {p.name for p in saved.iterdir()} == {"3"}


def test_one_that_was_never_finished_is_no_checkpoint(saved):
    """Killed while it was written: orbax renames a directory when it is whole."""
    (saved / "6").rename(saved / "6.orbax-checkpoint-tmp")
    same(opened(saved).restore(state(0)), state(3))


@pytest.mark.parametrize(
    ("identity", "about", "says"),
    [
        ("run", {**ABOUT, "base": "another"}, "another base model"),
        ("that", ABOUT, "another run .other configuration"),
        (
            "that",
            {**ABOUT, "config": {"train": {"learning_rate": 0.25}}},
            r"config\.train\.learning_rate was 0\.5 and is 0\.25",
        ),
    ],
)
def test_that_of_another_run_is_refused(saved, identity, about, says):
    with pytest.raises(UserError, match=says):
        opened(saved, identity, about, restore="sound").restore(state(0))
    assert (saved / "6").is_dir()  # it is nobody's damage


def test_places(tmp_path, monkeypatch):
    assert checkpoint.place(tmp_path, "", "i" * 64) == epath.Path(tmp_path) / "checkpoints"
    there = checkpoint.place(tmp_path, str(tmp_path / "elsewhere"), "i" * 64)
    assert there == epath.Path(tmp_path) / "elsewhere" / ("i" * 16)
    checkpoints = opened(there)
    checkpoints.save(state(1), 1)
    checkpoints.close()
    same(opened(there).restore(state(0)), state(1))
    checkpoint.discard(tmp_path, str(tmp_path / "elsewhere"), "i" * 64)
    assert not there.exists()
    monkeypatch.setattr(checkpoint.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://bucket/x.*emjax\[gcs\]"):
        checkpoint.place(tmp_path, "gs://bucket/x", "i" * 64)


def test_a_bucket_is_a_path_like_another(monkeypatch):
    """gs:// paths go to etils unchanged; no bucket is asked."""
    monkeypatch.setattr(checkpoint.importlib.util, "find_spec", lambda name: True)
    there = checkpoint.place(epath.Path("/x"), "gs://bucket/runs", "i" * 64)
    assert str(there) == f"gs://bucket/runs/{'i' * 16}"


def test_an_unwritten_checkpoint_is_an_error(saved, monkeypatch):
    checkpoints = opened(saved)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", full)
    with pytest.raises(UserError, match="could not be written.*No space left"):
        checkpoints.wait()


def test_processes(monkeypatch):
    """What the environment must say."""
    address = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}
    for environment, says in [
        (address, "JAX_NUM_PROCESSES is ''"),
        (address | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID is 'x'"),
        (address | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "numbered from 0"),
        ({"EMJAX_DISTRIBUTED": "yes"}, "EMJAX_DISTRIBUTED is 'yes'"),
    ]:
        with pytest.raises(UserError, match=says):
            process.join(environment)
    process.join({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"})  # alone
    assert (process.index, process.count) == (0, 1)
