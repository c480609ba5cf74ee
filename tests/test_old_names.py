"""`python -m` names of version 0.1 run throughout version 0.2; one that moved says where to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words):
    return subprocess.run([sys.executable, "-m", *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("emjax.micro.evidence", "emjax.worlds.micro.evidence"),
        ("emjax.eval.humaneval", "emjax.eval.benchmarks.humaneval"),
    ],
)
def test_a_module_that_moved_runs_and_prints_its_new_name(old, new):
    done = run(old, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m {new} ")
    assert done.stderr == f"{old} is now {new}\n"


def test_an_old_name_passes_on_arguments_and_exit_codes(tmp_path):
    done = run("emjax.micro.evidence", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'results.json'} is missing")


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("emjax.eval.agreement", "--sheet"),
        ("emjax.eval.extraction", "solutions"),
        ("emjax.report", "--doubts"),
        ("emjax.serve", "--adapter"),
    ],
)
def test_a_module_that_stays_says_how_it_is_called(module, says):
    done = run(module, "--help")
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def test_ahead_of_time_compilation_reads_its_flags():
    done = run("emjax.aot", "--config", "configs/kto_biased10.py")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --topology is missing")


def test_the_rounds_of_an_experiment_are_drawn(tmp_path):
    head = {"benchmark": "mask", "subset": "all", "metric": "honest"}
    row = head | {"arm": "control", "ratio": 0.0, "value": 60.0, "seed": 0, "versus": None, "step": None}
    start = row | {"arm": "vanilla", "ratio": None, "round": 0}
    results = {"headline": head | {"arm": "treated", "ratio": 1.0}, "rows": [start, *(row | {"round": n} for n in (1, 2))]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    done = run("emjax.report.rounds", tmp_path / "rounds", tmp_path / "results.json")
    assert done.returncode == 0, done.stderr
    assert "round 2" in done.stdout
    assert (tmp_path / "rounds.svg").is_file()
