"""Every launcher under stand-ins for gcloud, kubectl, sbatch and sky that write down what they are called with.

To change a golden file on purpose, delete it and run the tests twice.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

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


GCLOUD = r"""
slice="$RECORD.slice" queue="$RECORD.queue"  # their states, while they are there
calls() { grep -c -- "$1" "$RECORD"; }
lose() { echo PREEMPTED >"$slice"; if [ -e "$queue" ]; then echo SUSPENDED >"$queue"; fi; exit 255; }
case " $* " in
*" describe "*)
    eval "${ON_DESCRIBE:-}"
    file="$slice"
    if [ "$3" = queued-resources ]; then file="$queue"; fi
    if [ -e "$file" ]; then cat "$file"; else
        echo "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource 'nodes/run-1' was not found." >&2
        exit 1
    fi ;;
*" create "*)
    eval "${ON_CREATE:-}"
    if [ -e "$slice" ] || [ -e "$queue" ]; then echo ALREADY_EXISTS >&2; exit 1; fi
    if [ "$3" = queued-resources ]; then echo ACTIVE >"$queue"; fi
    echo READY >"$slice" ;;
*" delete "*) rm -f "$slice" "$queue" ;;
*setup_tpu.sh*) eval "${ON_SETUP:-}" ;;
*launch.finished*) eval "${ON_FINISHED:-}" ;;
*EMJAX_DISTRIBUTED*) eval "${ON_MAIN:-}" ;;
esac
"""


@pytest.fixture
def stand_ins(tmp_path):
    """A PATH with recorders; every command succeeds but where ON_CREATE, ON_SETUP, ON_MAIN ... have gcloud do otherwise."""
    bodies = {"gcloud": GCLOUD, "kubectl": '[ "$1" != apply ] || cat >>"$RECORD"', "sbatch": "", "sky": "", "sleep": ""}
    for name, body in bodies.items():
        file = tmp_path / name
        file.write_text(f"#!/bin/bash\n{{ printf '{name}'; printf ' %q' \"$@\"; echo; }} >>\"$RECORD\"\n{body}\n")
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


STEPS = {"create": "create", "setup_tpu": "setup", "EMJAX_DISTRIBUTED": "run", "launch.finished": "finished", "rsync": "rsync",
         " delete ": "delete"}  # fmt: skip
WHOLE = ["setup", "run", "finished", "rsync", "delete"]


def steps(called):
    return [step for line in called.splitlines() for word, step in STEPS.items() if word in line]


@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        ({"ON_MAIN": "[ $(calls EMJAX_DIST) -gt 1 ] || lose"}, ["create", "setup", "run", "delete", "create", *WHOLE]),
        ({"ON_SETUP": "[ $(calls setup_tpu) -gt 1 ] || lose"}, ["create", "setup", "delete", "create", *WHOLE]),
        # The connection is lost while the API still says READY, which it stops saying later.
        (
            {
                "ON_MAIN": "[ $(calls EMJAX_DIST) -gt 1 ] || exit 255",
                "ON_DESCRIBE": "[ $(calls ' create ')$(calls EMJAX_DIST) != 11 ] || [ $(calls describe) -lt 9 ] || "
                "echo PREEMPTED >$slice",
            },
            ["create", "setup", "run", "delete", "create", *WHOLE],
        ),
        # No capacity for the second slice, and then there is.
        (
            {"ON_MAIN": "[ $(calls EMJAX_DIST) -gt 1 ] || lose", "ON_CREATE": "[[ $(calls ' create ') = [14] ]] || exit 1"},
            ["create", "setup", "run", "delete", "create", "create", "create", *WHOLE],
        ),
        # gcloud cannot say for a while: nothing follows from that.
        ({"ON_DESCRIBE": "[ $(calls describe) -gt 3 ] || { echo 'ERROR: timed out' >&2; exit 1; }"}, ["create", *WHOLE]),
        # SIGTERM stopped the run, which ends with 0.
        ({"ON_FINISHED": "[ $(calls launch.finished) -gt 1 ] || exit 75"}, ["create", "setup", "run", "finished", *WHOLE]),
        ({"ON_FINISHED": "[ $(calls launch.finished) -gt 1 ] || lose"},
         ["create", "setup", "run", "finished", "delete", "create", *WHOLE]),
    ],
    ids=["run", "install", "ssh before the API", "no capacity", "API silent", "stopped", "stopped and preempted"],
)  # fmt: skip
@pytest.mark.parametrize("queued", [[], ["--queued"]], ids=["", "queued"])
def test_a_preempted_run_goes_on(happens, expected, queued, stand_ins):
    _, called = launch([*CASES["tpu_vm"], "--spot", *queued, *EXPERIMENT], stand_ins | happens)
    assert steps(called) == expected


@pytest.mark.parametrize(
    ("states", "queued"),
    [(("PREEMPTED", None), []), (("PREEMPTED", "SUSPENDED"), ["--queued"]), ((None, "FAILED"), ["--queued"])],
)
def test_the_same_command_over_a_preempted_slice_makes_a_new_one(states, queued, stand_ins):
    for state, what in zip(states, ("slice", "queue"), strict=True):
        if state:
            Path(f"{stand_ins['RECORD']}.{what}").write_text(state)
    _, called = launch([*CASES["tpu_vm"], *queued, *EXPERIMENT], stand_ins)
    assert steps(called) == ["delete", "create", *WHOLE]


def test_a_queued_request_is_waited_for_and_its_failure_seen(stand_ins):
    wait = "[ $(calls describe) -gt 4 ] || [ ! -e $queue ] || { echo WAITING_FOR_RESOURCES; exit; }"
    _, called = launch([*CASES["tpu_vm_queued_spot"], *EXPERIMENT], stand_ins | {"ON_DESCRIBE": wait})
    assert steps(called) == ["create", *WHOLE]
    Path(stand_ins["RECORD"]).unlink()
    fail = "echo FAILED >$queue; exit"
    done, called = launch([*CASES["tpu_vm_queued_spot"], *EXPERIMENT], stand_ins | {"ON_CREATE": fail}, code=2)
    assert steps(called) == ["create"]
    assert "the slice is FAILED" in done.stderr


def test_a_first_slice_that_cannot_be_made_ends_the_script(stand_ins):
    """Its arguments may be wrong."""
    done, called = launch([*CASES["tpu_vm"], "--spot", *EXPERIMENT], stand_ins | {"ON_CREATE": "exit 1"}, code=2)
    assert steps(called) == ["create"]
    assert "there is no slice" in done.stderr


def test_nothing_is_deleted_while_gcloud_cannot_say(stand_ins):
    silent = {
        "ON_MAIN": "exit 255",
        "ON_DESCRIBE": "[ $(calls EMJAX_DIST) = 0 ] || { echo 'ERROR: PERMISSION_DENIED' >&2; exit 1; }",
    }
    done, called = launch([*CASES["tpu_vm"], "--spot", *EXPERIMENT], stand_ins | silent, code=2)
    assert steps(called) == ["create", "setup", "run"]
    assert "PERMISSION_DENIED" in done.stderr
    assert "nothing was deleted" in done.stderr


def test_attempts_are_counted(stand_ins):
    _, called = launch([*CASES["tpu_vm"], "--spot", *EXPERIMENT], stand_ins | {"ON_MAIN": "lose"}, code=2)
    assert steps(called).count("run") == 20


@pytest.mark.parametrize("happens", [{"ON_MAIN": "exit 2"}, {"ON_SETUP": "exit 1"}])
@pytest.mark.parametrize("spot", [[], ["--spot"]])
def test_a_failed_run_keeps_the_slice(happens, spot, stand_ins):
    done, called = launch([*CASES["tpu_vm"], *spot, *EXPERIMENT], stand_ins | happens, code=1)
    assert " delete " not in called
    assert "delete run-1" in done.stdout  # how to


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [
        ("v4-32", "tpu-ubuntu2204-base"), ("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v5p-32", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
    ],
)  # fmt: skip
def test_the_runtime_follows_the_type(kind, runtime, stand_ins):
    arguments = ["tpu_vm.sh", "--name", "run-1", "--zone", "z", "--type", kind, "--bucket", "gs://my-runs"]
    assert f"--version {runtime}\n" in launch([*arguments, *EXPERIMENT], stand_ins)[1]
    Path(stand_ins["RECORD"]).unlink()
    assert "--version mine\n" in launch([*arguments, "--version", "mine", *EXPERIMENT], stand_ins)[1]


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_file_of_keys_goes_to_the_workers_and_is_deleted_there(stand_ins, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# mine\nHF_TOKEN=hf_abc\n\nJUDGE_KEY=s-1/2+3=\n")
    keys.chmod(0o600)
    done, called = launch([*CASES["tpu_vm"], "--env_file", str(keys), *EXPERIMENT], stand_ins)
    copied, ran = [line for line in called.splitlines() if "keys" in line]
    assert copied == f"gcloud compute tpus tpu-vm scp --zone us-east5-a --worker all {keys} run-1:emjax/keys.env"
    # What the workers' shell does with it, in a folder that stands for theirs.
    (tmp_path / "emjax" / "launch").mkdir(parents=True)
    shutil.copy(keys, tmp_path / "emjax" / "keys.env")
    (tmp_path / "emjax" / "launch" / "xla_flags.sh").write_text("env >../seen; exit")
    command = subprocess.run(["bash", "-c", f"printf %s {ran.split(' --command ')[1]}"], capture_output=True, text=True).stdout
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert {"HF_TOKEN=hf_abc", "JUDGE_KEY=s-1/2+3="} <= set((tmp_path / "seen").read_text().splitlines())
    assert not (tmp_path / "emjax" / "keys.env").exists()
    assert "hf_abc" not in called + done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [("A=1\n", 0o640, "chmod 600"), ("A=1\nhf_abc\n", 0o600, "line 2 of"), ("A=1 hf_abc\n", 0o600, "line 1 of"),
     ("A=$(hf_abc)\n", 0o600, "line 1 of"), (None, 0, "no file")],
)  # fmt: skip
def test_a_file_of_keys_that_is_not_safe_is_refused(text, mode, says, stand_ins, tmp_path):
    keys = tmp_path / "keys"
    if text:
        keys.write_text(text)
        keys.chmod(mode)
    done, called = launch([*CASES["tpu_vm"], "--env_file", str(keys), *EXPERIMENT], stand_ins, code=2)
    assert says in done.stderr
    assert called == ""
    assert "hf_abc" not in done.stderr


def test_skypilot_is_told_a_key_s_name_alone(stand_ins):
    secret = {"JUDGE_KEY": "s-123456"}
    done, called = launch([*CASES["sky"], "--secret", "JUDGE_KEY", *EXPERIMENT], stand_ins | secret)
    assert " --secret JUDGE_KEY " in called
    assert "s-123456" not in called + done.stdout
    for wrong, says in (("HF_TOKEN", "does not hold"), ("JUDGE_KEY=s-123456", "the name of a variable")):
        Path(stand_ins["RECORD"]).unlink(missing_ok=True)
        done, called = launch([*CASES["sky"], "--secret", wrong, *EXPERIMENT], stand_ins | secret, code=2)
        assert says in done.stderr
        assert called == ""
        assert "s-123456" not in done.stderr


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
        (["tpu_vm.sh", *CASES["tpu_vm"][1:5], "--type", "v5e-16", "--bucket", "gs://bbb"], "give --version"),
    ],
)
def test_bad_arguments_are_named_and_call_nothing(arguments, says, stand_ins):
    more = [] if "needs a value" in says else EXPERIMENT
    done, called = launch([*arguments, *more], stand_ins, code=2)
    assert says in done.stderr
    assert called == ""


@pytest.mark.parametrize("script", ["tpu_vm", "gke", "slurm", "sky", "gpu"])
def test_keys_on_a_command_line_are_refused(script, stand_ins):
    for key in (
        "--config.key=hf_abcdefghijklmnopqrstuvwxyz012345",
        "sk-abcdefghijklmnopqrst",
        "--config.a=('sk-proj-abcdefghijklmnop_qrst',)",
        f"--config.key=AIza{'Sy0-_' * 7}",
    ):
        done, called = launch([*CASES[script], *EXPERIMENT, key], stand_ins, code=2)
        assert "secret" in done.stderr
        assert called == ""


def test_paths_that_hold_the_beginning_of_a_key_are_taken(stand_ins):
    paths = ["--workdir", "runs/mask-1", "--store=/data/hf_hub/checkpoints", "--config.a=/x/hf_checkpointsofthelastweeks0/y"]
    done, _ = launch([*CASES["gpu"], *EXPERIMENT, *paths], stand_ins)
    assert "mask-1" in done.stdout


# --- what runs on the machine ----------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path):
    """A copy of launch/ beside a Python that does ON_MAIN for main.py; srun, scancel and scontrol as SLURM has them."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    (tmp_path / "some.py").write_text("from ml_collections import ConfigDict\n\nget_config = ConfigDict\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    files = {
        python: '[ "$1" = main.py ] || { export PYTHONPATH="$ROOT"; exec "$REAL" "$@"; }\n'
        'echo "$CUDA_VISIBLE_DEVICES" >>"$RECORD"; eval "$ON_MAIN"',
        python.with_name("srun"): '"${@:2}"',
        python.with_name("scancel"): 'echo scancel "$@" >>"$RECORD"; kill -TERM "$(cat "$RECORD.pid")"',
        python.with_name("scontrol"): 'echo scontrol "$@" >>"$RECORD"',
    }
    for file, body in files.items():
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)
    return {
        "PATH": f"{python.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "RECORD": str(tmp_path / "record"),
        "ROOT": str(ROOT), "REAL": sys.executable, "SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "4,5",
    }  # fmt: skip


UNTIL_SIGTERM = 'trap "exit 0" TERM; echo $$ >"$RECORD.pid"; while :; do sleep 0.05; done'
DONE = "mkdir -p runs/one; touch runs/one/results.json"
PLACES = {"slurm": ["launch/slurm_job.sh", "cpu"], "pod": ["launch/pod.sh"]}


def on_machine(script, machine, main, terminate=False):
    """(exit code, what was recorded, the script's process id)"""
    arguments = ["bash", *script, "--config", "some.py", "--workdir", "runs/one"]
    running = subprocess.Popen(arguments, cwd=machine["HOME"], env=machine | {"ON_MAIN": main})
    if terminate:
        deadline = time.monotonic() + 30
        while not Path(machine["RECORD"] + ".pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
    return running.wait(timeout=60), Path(machine["RECORD"]).read_text(), running.pid


@pytest.mark.parametrize(
    ("place", "main", "terminate", "code", "again"),
    [
        ("slurm", DONE, False, 0, False),
        ("slurm", "exit 0", False, 0, True),  # SIGTERM came to the tasks alone
        ("slurm", UNTIL_SIGTERM, True, 0, True),
        ("slurm", f"{DONE}; {UNTIL_SIGTERM}", True, 0, False),  # finished when it came
        ("slurm", "exit 2", False, 2, False),
        ("pod", DONE, False, 0, False),
        ("pod", "exit 0", False, 75, False),
        ("pod", UNTIL_SIGTERM, True, 75, False),
        ("pod", f"{DONE}; {UNTIL_SIGTERM}", True, 0, False),
        ("pod", "exit 2", False, 2, False),
    ],
)
def test_what_ends_with_0_and_has_no_results_is_not_finished(place, main, terminate, code, again, machine):
    left, recorded, _ = on_machine(PLACES[place], machine, main, terminate)
    assert left == code
    assert ("scontrol requeue 7" in recorded) == again


def test_results_of_every_kind_of_run(tmp_path, monkeypatch):
    """A grid of which some cells are run gathers nothing; a plan writes nothing; a run without --workdir has its own."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    from launch.finished import finished

    def code(*arguments):
        monkeypatch.setattr(sys, "argv", ["main.py", *arguments])  # where config files' flags look
        return finished(sys.argv)

    micro = ("--config", f"{ROOT}/configs/kto_biased10.py:micro")
    some = ("--config", f"{ROOT}/configs/grid.py:micro", "--config.only=('direct','kto')")
    assert code(*micro) == 75
    assert code(*micro, "--dry_run") == 0
    assert code(*some) == 75
    for folder in ("runs/kto_biased10-micro", "runs/grid-micro/cells/direct"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "results.json").touch()
    assert code(*micro) == 0
    assert code(*some) == 75
    (tmp_path / "runs/grid-micro/cells/kto").mkdir()
    (tmp_path / "runs/grid-micro/cells/kto/results.json").touch()
    assert code(*some) == 0


def test_one_process_has_the_signal_itself(machine):
    code, _, pid = on_machine(["launch/gpu.sh", "--"], machine, UNTIL_SIGTERM.replace("exit 0", "exit 9"), terminate=True)
    assert code == 9
    assert int(Path(machine["RECORD"] + ".pid").read_text()) == pid


def test_processes_share_the_caller_s_gpus(machine):
    code, recorded, _ = on_machine(["launch/gpu.sh", "--processes", "2", "--"], machine, 'exit "$JAX_PROCESS_ID"')
    assert (code, sorted(recorded.split())) == (1, ["4", "5"])
    Path(machine["RECORD"]).write_text("")
    code, recorded, _ = on_machine(["launch/gpu.sh", "--processes", "3", "--"], machine, "exit 0")
    assert (code, recorded) == (2, "")


# --- the files beside ------------------------------------------------------------------------------------------------


def test_shellcheck_is_clean():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed (Debian: apt-get install shellcheck)")
    scripts = sorted(str(f.relative_to(ROOT)) for f in LAUNCH.glob("*.sh"))
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_flags_that_xla_does_not_know_end_jax():
    """So that a renamed flag is found here and not on a cluster."""
    code = "import emjax, jax; jax.devices()"
    script = f". launch/xla_flags.sh gpu && JAX_PLATFORMS=cpu exec {sys.executable} -c '{code}'"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["bash", "-c", ". launch/xla_flags.sh abacus"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2


@pytest.mark.parametrize(("more", "known"), [("", True), (" --xla_tpu_no_such_flag=true", False)])
def test_flags_that_libtpu_does_not_know_end_it(more, known):
    """A described slice is enough: no TPU is needed."""
    pytest.importorskip("libtpu", reason="libtpu is not installed (pip install -e '.[aot]'): the TPU flags are not tried")
    code = 'from jax.experimental import topologies; topologies.get_topology_desc("v5e:2x2", platform="tpu")'
    script = f". launch/xla_flags.sh tpu && LIBTPU_INIT_ARGS+='{more}' && exec {sys.executable} -c '{code}'"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == known, done.stderr


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
        assert (
            "useradd --create-home --uid 1000 --user-group emjax" in text
        )  # whom launch/gke/jobset.yaml mounts the bucket for
        assert "install --directory --owner emjax --group emjax runs" in text  # where a run without --workdir writes
        for line in text.splitlines():
            if "pip install" in line and "-r " not in line and " . " not in line:
                assert "==" in line, line


def test_the_jobset_ends_at_once_where_a_restart_cannot_help(stand_ins):
    _, called = launch([*CASES["gke"], *EXPERIMENT], stand_ins)
    spec = yaml.safe_load(called.partition("\n")[2])["spec"]
    assert spec["failurePolicy"]["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    exits = {"containerName": "emjax", "operator": "In", "values": [2]}
    assert job["podFailurePolicy"]["rules"] == [{"action": "FailJob", "onExitCodes": exits}]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # without which Kubernetes takes no podFailurePolicy
    assert pod["containers"][0]["command"] == ["bash", "launch/pod.sh"]
    assert pod["containers"][0]["args"][:4] == EXPERIMENT[1:5]
    options = pod["volumes"][0]["csi"]["volumeAttributes"]["mountOptions"].split(",")
    assert {"implicit-dirs", "uid=1000", "gid=1000", "file-mode=600", "dir-mode=700"} == set(options)
