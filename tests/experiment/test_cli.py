"""Bad input through the real command: one paragraph naming field or file, exit code 2, nothing overwritten."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emjax import commands
from emjax.config import ArmConfig, ArmsConfig, EvaluationConfig, as_dict
from emjax.experiment import common
from emjax.runtime.locks import unlock
from emjax.runtime.store import STORE_FORMAT

ROOT = Path(__file__).parents[2]
MICRO = "configs/kto_biased10.py:micro"
CHECKPOINT = ROOT / "emjax" / "worlds" / "micro" / "checkpoint"


@pytest.fixture
def refused(monkeypatch, capsys):
    """The message of a run that must be refused with one paragraph."""

    def check(*arguments, says):
        argv = ["main.py", *map(str, arguments)]
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", argv)
        code = commands.run(argv[1:])
        message = capsys.readouterr().err
        assert code == 2, message
        paragraph = message[message.index("error: ") :]
        assert paragraph.count("\n") == 1, message
        for words in says:
            assert words in paragraph, message
        return paragraph

    return check


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["--config is missing"]),
        (["--config", MICRO, "--config.interact.userz=3"], ["userz", 'Did you mean "users"']),
        (["--config", MICRO, "--config.interact.users=many"], ["config.interact.users", "many"]),
        (["--config", MICRO, "--config.interact.users=2.5"], ["config.interact.users", "2.5"]),
        (["--config", MICRO, "--wokdir=x"], ["wokdir", "workdir"]),
        (["--config", "configs/nothing.py"], ["nothing.py", "No such file"]),
        (["--config", "configs/kto_biased10.py:giant"], ["giant", "micro"]),
        (["--config", MICRO, "surplus"], ["surplus"]),
        (
            ["--config", MICRO, "--dry_run", "--config.interact.biased_ratio=1.5"],
            ["config.interact.biased_ratio", "1.5", "at least 0 and at most 1"],
        ),
        (["--config", MICRO, "--dry_run", "--config.extra_arms=('none',)"], ["config.extra_arms", "'none'"]),
        (["--config", MICRO, "--dry_run", "--config.extra_arms=('none@2',)"], ["config.extra_arms", "'none@2'", "[0, 1]"]),
    ],
)
def test_flags_and_fields(refused, arguments, says):
    refused(*arguments, says=says)


def test_the_command_itself_ends_with_one_paragraph():
    """As a user meets it: a process of its own, exit code 2, no traceback."""
    command = [sys.executable, "main.py", "--config", MICRO, "--config.interact.userz=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_dry_run_prints_the_plan_of_every_variant(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for variant in ("llama3.1-8b", "qwen2.5-7b", "qwen3-32b", "micro"):
        argv = ["main.py", "--config", f"configs/kto_biased10.py:{variant}", "--dry_run"]
        monkeypatch.setattr(sys, "argv", argv)
        assert commands.run(argv[1:]) == 0
        printed = capsys.readouterr().out
        assert "vanilla, control, treated 0.1" in printed
        # The paper's numbers: 20,000 conversations, median split, two answers each, batches of 16, 5 epochs.
        assert ("about 12500 steps of 16" in printed) == (variant != "micro")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("--config.train.method=dpo", ["config.train.method", "'dpo'"]),
        ("--config.train.tuning=half", ["config.train.tuning", "'half'"]),
        ("--config.interact.control=placebo", ["config.interact.control", "'placebo'"]),
        ("--config.select.count=5", ["config.select", "overlap"]),
        ("--config.interact.turns=11", ["config.interact.turns is 11", "1 to 10"]),
        ("--config.train.schedule=zigzag", ["config.train.schedule", "'zigzag'"]),
        ("--config.interact.aggregate=max", ["config.interact.aggregate", "'max'"]),
        ("--config.mesh.tensor=3", ["config.mesh", "devices"]),
        ("--config.model.path=/nowhere/at/all", ["config.model.path", "there is no folder /nowhere/at/all"]),
        ("--config.interact.trajectories=/nowhere.jsonl", ["config.interact.trajectories", "/nowhere.jsonl"]),
    ],
)
def test_values(refused, change, says, tmp_path):
    small = ["--config.interact.users=2", "--config.interact.dialogues=2", "--config.interact.max_new=2"]
    refused("--config", MICRO, "--workdir", tmp_path / "w", *small, change, says=says)
    # A mistyped value must not claim the place of the run that mends it.
    assert not (tmp_path / "w").exists()


def test_checkpoints(refused, tmp_path):
    def variant(name, change):
        directory = tmp_path / name
        shutil.copytree(CHECKPOINT, directory)
        change(directory)
        return ["--config", MICRO, "--workdir", tmp_path / f"w-{name}", f"--config.model.path={directory}"]

    refused(*variant("empty", lambda d: (d / "config.json").unlink()), says=["contains no config.json"])
    refused(*variant("foreign", lambda d: (d / "micro_world.json").unlink()), says=["not a base of the micro-world"])
    refused(*variant("mute", lambda d: (d / "chat_template.jinja").unlink()), says=["no chat template"])


def test_malformed_trajectories(refused, tmp_path):
    file = tmp_path / "t.jsonl"
    arguments = ["--config", MICRO, f"--config.interact.trajectories={file}"]
    file.write_text('{"id": "a"\n')
    refused(*arguments, "--workdir", tmp_path / "a", says=["t.jsonl, line 1", "not valid JSON"])
    file.write_text(json.dumps({"id": "a", "user_id": "u", "scenario": "s", "turns": [], "messages": [{"role": "robot"}]}))
    refused(*arguments, "--workdir", tmp_path / "b", says=["t.jsonl, line 1", "messages[0]", "role"])
    file.write_text("")
    refused(*arguments, "--workdir", tmp_path / "c", says=["needs 200 benign users", "has 0"])


def test_a_workdir_is_never_overwritten(refused, tmp_path):
    theirs = tmp_path / "config.json"
    text = json.dumps({"store_format": STORE_FORMAT, "experiment": "interaction", "seed": 7})
    theirs.write_text(text)
    refused("--config", MICRO, "--workdir", tmp_path, says=["belongs to another experiment", "--workdir"])
    assert theirs.read_text() == text
    theirs.unlink()
    (tmp_path / "thesis.tex").write_text("precious")
    refused("--config", MICRO, "--workdir", tmp_path, says=["not empty"])
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_workdir_of_version_0_1_is_refused_in_one_sentence(refused, tmp_path):
    """Its config.json has no store_format; its stages lie beside it and stay as they are."""
    text = json.dumps({"experiment": "interaction", "kind": "micro", "seed": 0, "sampling": {"slots": 128}})
    (tmp_path / "config.json").write_text(text)
    stage = tmp_path / "store" / "collect" / "0123456789abcdef" / "manifest.json"
    stage.parent.mkdir(parents=True)
    stage.write_text('{"stage": "collect", "files": {"trajectories.jsonl": 7}}')
    told = refused("--config", MICRO, "--workdir", tmp_path, says=[str(tmp_path), "another version of emjax", "--workdir"])
    assert re.fullmatch(r"error: [^.]*(\.\d[^.]*)*\.\n", told.replace(str(tmp_path), "DIR")), told  # one sentence
    assert (tmp_path / "config.json").read_text() == text
    assert [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()] == [
        Path("config.json"),
        stage.relative_to(tmp_path),
    ]


def test_a_claim_that_was_cut_short_is_made_again(tmp_path):
    """A kill between writing the config and giving it its name; and the store is no stranger."""
    (tmp_path / "config.json.partial").write_text('{"experiment": "inter')
    (tmp_path / "store").mkdir()
    config = EvaluationConfig(arms=ArmsConfig(vanilla=ArmConfig(path="m")), seed=7)
    common.claim(config, tmp_path)
    unlock(tmp_path / common.LOCK)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "lock", "store"}
    assert json.loads((tmp_path / "config.json").read_text()) == {"store_format": STORE_FORMAT, **as_dict(config)} | {"seed": 7}


def test_no_space_left(refused, tmp_path, monkeypatch):
    """A full disk as the program meets it: writing fails with ENOSPC."""

    def full(path, text):
        with open("/dev/full", "w") as file:
            file.write(text)

    monkeypatch.setattr(common, "write_atomically", full)
    refused("--config", MICRO, "--workdir", tmp_path / "w", says=["cannot be written (No space left on device)", "--workdir"])
