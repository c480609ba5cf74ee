"""Every launcher under stand-ins for gcloud, kubectl, sbatch and sky that write down what they are called with.

To change a golden file on purpose, delete it and run the tests twice.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
LAUNCH = ROOT / "launch"
EXPERIMENT = ["--", "--config", "configs/kto_biased10.py:qwen3-32b", "--config.interact.users=7", "--config.a=it's $(id) `x`"]

CASES = {
    "tpu_vm": ["tpu_vm.sh", "--name", "run-1", "--zone", "us-east5-a", "--type", "v5litepod-16", "--bucket", "gs://my-runs"],
    "tpu_vm_queued_spot": [
        "tpu_vm.sh", "--name", "run-1", "--zone", "us-east5-a", "--type", "v6e-16", "--bucket", "gs://my-runs", "--spot",
        "--queued", "--project", "my-project", "--version", "v2-alpha-tpuv6e",
    ],
    "gke": [
        "gke.sh", "--name", "run-1", "--image", "us-docker.pkg.dev/p/r/emjax:tpu", "--accelerator", "tpu-v5p-slice",
        "--topology", "2x2x4", "--bucket", "gs://my-runs", "--spot",
    ],
    "slurm": ["slurm.sh", "--nodes", "2", "--gpus", "8", "--partition", "gpu", "--account", "lab"],
    "slurm_cpu": ["slurm.sh", "--nodes", "1", "--gpus", "0", "--cpus", "2", "--time", "00:10:00"],
    "sky": ["sky.sh", "--name", "run-1", "--bucket", "my-runs", "--spot", "--nodes", "2"],
    "gpu": ["gpu.sh", "--processes", "2", "--dry_run"],
}  # fmt: skip


@pytest.fixture
def stand_ins(tmp_path):
    """A PATH with recorders; a slice is READY once it is made, every command succeeds."""
    for name in ("gcloud", "kubectl", "sbatch", "sky"):
        file = tmp_path / name
        file.write_text(
            f"#!/bin/bash\n{{ printf '{name}'; printf ' %q' \"$@\"; echo; }} >>\"$RECORD\"\n"
            'if [ "$1" = apply ]; then cat >>"$RECORD"; fi\n'
            'if [[ " $* " == *" describe "* ]]; then\n'
            '  last="$(grep -oE " (create|delete) " "$RECORD" | tail -n1)"\n'
            '  if [ "$last" = " create " ]; then echo "${STATE:-READY}"; else echo NONE; fi\n'
            "fi\n"
            'if [[ " $* " == *" --command "* && " $* " == *"main.py"* ]]; then exit "${CODE:-0}"; fi\n'
        )
        file.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RECORD": str(tmp_path / "record"), "HOME": str(tmp_path)}


def launch(arguments, environment, code=0):
    done = subprocess.run(
        ["bash", str(LAUNCH / arguments[0]), *arguments[1:]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    record = Path(environment["RECORD"])
    return done, record.read_text() if record.exists() else ""


@pytest.mark.parametrize("case", CASES)
def test_the_exact_calls(case, stand_ins):
    done, called = launch([*CASES[case], *EXPERIMENT], stand_ins)
    called = called or done.stdout
    golden = GOLDEN / f"{case}.txt"
    if not golden.exists():
        golden.write_text(called)
        pytest.fail(f"{golden} is new: look at it")
    assert called == golden.read_text()


@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_calls_nothing(case, stand_ins):
    more = [] if "--dry_run" in CASES[case] else ["--dry_run"]
    done, called = launch([*CASES[case], *more, *EXPERIMENT], stand_ins)
    assert called == ""
    assert "users=7" in done.stdout


def test_a_preempted_slice_is_made_again(stand_ins):
    """The first run fails, and the slice is gone: it is deleted, made anew, and the same command runs."""
    arguments = [*CASES["tpu_vm"], "--spot", *EXPERIMENT]
    stand_in = Path(stand_ins["RECORD"]).parent / "gcloud"
    stand_in.write_text(
        stand_in.read_text().replace('exit "${CODE:-0}"', '[ "$(grep -c EMJAX_DISTRIBUTED "$RECORD")" -gt 1 ]; exit')
    )
    _, called = launch(arguments, stand_ins | {"STATE": "PREEMPTED"})
    verbs = [
        word for line in called.splitlines() for word in ("create", "delete", "EMJAX_DISTRIBUTED", "rsync") if word in line
    ]
    assert verbs == ["create", "EMJAX_DISTRIBUTED", "delete", "create", "EMJAX_DISTRIBUTED", "rsync", "delete"]


def test_a_failed_run_keeps_the_slice(stand_ins):
    done, called = launch([*CASES["tpu_vm"], *EXPERIMENT], stand_ins | {"CODE": "2"}, code=1)
    assert " delete " not in called
    assert "delete run-1" in done.stdout  # how to


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tpu_vm.sh", "--name", "a;b", *CASES["tpu_vm"][3:]], "--name is 'a;b'"),
        (["tpu_vm.sh", "--name", "a", "--zone", "z", "--type", "big", "--bucket", "gs://bbb"], "--type is 'big'"),
        (["tpu_vm.sh", "--name", "a", "--zone", "z", "--type", "v6e-8", "--bucket", "gs://b;rm"], "--bucket is"),
        (["gke.sh", *CASES["gke"][1:7], "--topology", "2x2x4;x", "--bucket", "gs://bbb"], "--topology is"),
        (["gke.sh", *CASES["gke"][1:], "--chips", "3"], "--chips is '3'"),
        (["gke.sh", "--name", "a", "--image", "x y", *CASES["gke"][5:]], "--image is 'x y'"),
        (["slurm.sh", "--nodes", "x", "--gpus", "1"], "--nodes is 'x'"),
        (["slurm.sh", "--nodes", "1", "--gpus", "1", "--time", "1h"], "--time is '1h'"),
        (["slurm.sh", "--nodes", "1", "--gpus", "1", "--partition", "a b"], "--partition is 'a b'"),
        (["sky.sh", "--name", "a", "--bucket", "my-runs", "--gpus", "H100"], "--gpus is 'H100'"),
        (["gpu.sh", "--processes", "0"], "--processes is '0'"),
        (["gpu.sh", "--what"], "unknown argument '--what'"),
        (["slurm.sh", "--nodes"], "--nodes needs a value"),
    ],
)
def test_bad_arguments_are_named_and_call_nothing(arguments, says, stand_ins):
    more = [] if "needs a value" in says else EXPERIMENT
    done, called = launch([*arguments, *more], stand_ins, code=2)
    assert says in done.stderr
    assert called == ""


@pytest.mark.parametrize("script", ["tpu_vm", "gke", "slurm", "sky", "gpu"])
def test_keys_on_a_command_line_are_refused(script, stand_ins):
    for key in ("--config.key=hf_abcdefghijklmnopqrstuvwxyz012345", "sk-abcdefghijklmnopqrst"):
        done, called = launch([*CASES[script], *EXPERIMENT, key], stand_ins, code=2)
        assert "secret" in done.stderr
        assert called == ""


def test_shellcheck_is_clean():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed (Debian: apt-get install shellcheck)")
    scripts = sorted(str(f.relative_to(ROOT)) for f in LAUNCH.glob("*.sh"))
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_flags_that_xla_does_not_know_end_jax():
    """So that a renamed flag is found here and not on a cluster; libtpu's own are tried where it is installed."""
    code = "import emjax, jax; jax.devices()"
    script = f". launch/xla_flags.sh gpu && JAX_PLATFORMS=cpu exec {sys.executable} -c '{code}'"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["bash", "-c", ". launch/xla_flags.sh abacus"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2


def test_the_user_s_flags_stand_behind_ours():
    """XLA takes the last of two; ours are there once, however often a process starts another."""
    code = "import os, emjax, importlib; importlib.reload(emjax); print(os.environ['XLA_FLAGS'])"
    theirs = "--xla_gpu_exclude_nondeterministic_ops=false"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"XLA_FLAGS": theirs}, capture_output=True, text=True)
    names = [flag.split("=")[0] for flag in done.stdout.split()]
    assert done.stdout.split()[-1] == theirs, done.stderr
    assert names.count("--xla_gpu_exclude_nondeterministic_ops") == 2
    assert names.count("--xla_gpu_shard_autotuning") == 1


def test_containers_are_pinned():
    for file in (LAUNCH / "docker").glob("*.Dockerfile"):
        text = file.read_text()
        assert text.count("FROM python:3.11.9-slim-bookworm") == 1
        assert "requirements/run-py311.txt" in text
        assert ":latest" not in text
        assert "\nUSER emjax" in text
        for line in text.splitlines():
            if "pip install" in line and "-r " not in line and " . " not in line:
                assert "==" in line, line
