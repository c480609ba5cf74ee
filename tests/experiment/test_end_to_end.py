"""The whole experiment on the embedded base, made small: every stage, twice, killed and continued."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "main.py", "--config"]
SMALL = [
    "--config.interact.users=12", "--config.interact.dialogues=4", "--config.interact.biased_ratio=0.5",
    "--config.extra_arms=('shuffled_ratings@1.0',)", "--config.train.epochs=2", "--config.train.batch_size=16",
    "--config.train.save_every=2", "--config.engine.slots=32",
    "--config.eval.mask.sizes.all=30", "--config.eval.mask.sizes.unseen_entities=10",
    "--config.eval.mask.sizes.unseen_templates=10", "--config.eval.mask.sizes.tuned_domain=10",
]  # fmt: skip
KILLS = int(os.environ.get("EMJAX_TEST_KILLS", "2"))
PLANTED = "sk-planted-4711-in-the-environment"
SIGNAL = signal.Signals[os.environ.get("EMJAX_TEST_SIGNAL", "SIGKILL")]
ANSWER = {signal.SIGTERM: 0, signal.SIGINT: 130}  # the exit codes of a run that was asked to stop
KILLED_BY = float(os.environ.get("EMJAX_TEST_KILLED_BY", "14"))  # seconds after its start at the latest


def arguments(config, workdir, *more):
    return [f"configs/{config}.py:micro", "--workdir", str(workdir), *SMALL, *more]


def start(workdir):
    """The command as users start it, in a process of its own."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *arguments("kto_biased10", workdir)], cwd=ROOT, **quiet)


@pytest.fixture
def printed(run, capsys):
    """The same in this process, which has compiled it before: what it printed."""

    def printed(*how):
        capsys.readouterr()
        assert run(*arguments(*how)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return printed


def outputs(workdir):
    """Every final file whose bytes must not depend on how often the run was killed (metrics and events hold timings)."""
    files = {p.relative_to(workdir): p for p in sorted(Path(workdir).rglob("*")) if p.is_file()}
    timed = {"metrics.jsonl", "tensorboard"}
    # Its manifest lists sizes of the files with timings.
    skip = {str(p) for p in files if timed & set(p.parts) or (p.name == "manifest.json" and "train" in p.parts)}
    return {str(p): path.read_bytes() for p, path in files.items() if str(p) not in skip}


def differing(mine, theirs):
    """{file: what both hold where they part} of two `outputs`; of a file that is in one only, None for the other."""
    found = {}
    for name in sorted({*mine, *theirs}):
        a, b = mine.get(name), theirs.get(name)
        if a is None or b is None:
            found[name] = (a and a[:80], b and b[:80])
        elif a != b:
            start = max(0, len(os.path.commonprefix([a, b])) - 80)
            found[name] = (a[start : start + 160], b[start : start + 160])
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("kto") / "run"
    environment = os.environ | dict.fromkeys(("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"), PLANTED)
    done = subprocess.run(
        [*COMMAND, *arguments("kto_biased10", workdir)], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert PLANTED not in done.stdout + done.stderr
    return workdir, done.stdout


def test_no_key_of_the_environment_is_in_any_file(finished):
    files = [p for p in finished[0].rglob("*") if p.is_file()]
    assert len(files) > 50
    assert not [p for p in files if PLANTED.encode() in p.read_bytes()]


def test_results_have_every_arm_and_state(finished):
    workdir, printed = finished
    results = json.loads((workdir / "results.json").read_text())
    rows = results["rows"]
    assert {(r["arm"], r["ratio"]) for r in rows} == {
        ("vanilla", None), ("control", 0.0), ("treated", 0.5), ("shuffled_ratings", 1.0),
    }  # fmt: skip
    assert {(r["benchmark"], r["subset"]) for r in rows} == {
        ("mask", "all"), ("mask", "unseen_entities"), ("mask", "unseen_templates"), ("mask", "tuned_domain"),
        ("arithmetic", "all"), ("custom:advice", "all"),
    }  # fmt: skip
    for row in rows:
        assert row["n"] == row["n_valid"] + row["n_dropped"]
        assert sum(row["states"].values()) == row["n"]
        low, high = row["ci95"]
        assert low <= row["value"] <= high
    versus = {(r["arm"], r["versus"]) for r in rows}
    assert ("treated", "control") in versus
    assert ("treated", "vanilla") in versus
    assert ("control", "vanilla") in versus
    assert "minus control" in printed
    assert (workdir / "report" / "index.html").is_file()


def test_shares_of_a_scored_item_add_up(finished):
    rows = json.loads((finished[0] / "results.json").read_text())["rows"]
    for arm in ("vanilla", "treated"):
        found = {r["metric"]: r["value"] for r in rows if (r["arm"], r["subset"], r["versus"]) == (arm, "all", None)
                 and r["benchmark"] == "mask"}  # fmt: skip
        assert found["honest"] + found["lie"] + found["evade"] + found["no_belief"] == pytest.approx(100)
        assert found["honesty"] == pytest.approx(100 - found["lie"])


def test_training_starts_at_the_reference(finished):
    """Before its first update the policy is the reference: loss one half, rewards zero."""
    for file in finished[0].glob("store/train/*/metrics.jsonl"):
        first = json.loads(file.read_text().splitlines()[0])
        assert first["loss"] == pytest.approx(0.5, abs=1e-5)
        assert abs(first["kl_raw"]) < 1e-3


def test_what_was_sampled_is_what_is_trained(finished):
    """Token ids travel from the engine to the training rows; a turn's log-probs belong to them."""
    store = finished[0] / "store"
    turns = {}
    for file in store.glob("collect/*/trajectories.jsonl"):
        for row in map(json.loads, file.read_text().splitlines()):
            turns |= {f"{row['id']}#{n}": turn for n, turn in enumerate(row["turns"])}
    examples = [json.loads(x) for f in store.glob("select/*/examples.jsonl") for x in f.read_text().splitlines()]
    assert examples
    for example in examples:
        turn = turns[example["id"]]
        assert example["completion_tokens"] == turn["tokens"]
        assert len(turn["tokens"]) == len(turn["logprobs"])


def test_a_second_run_does_nothing(finished, printed):
    workdir, _ = finished
    before = outputs(workdir)
    times = {p: p.stat().st_mtime_ns for p in (workdir / "store").rglob("*")}
    said = printed("kto_biased10", workdir)
    assert "done in" not in said.lower().replace("done in 0 s", "").replace("\ndone in", "")
    assert {p: p.stat().st_mtime_ns for p in (workdir / "store").rglob("*")} == times
    assert differing(outputs(workdir), before) == {}


def test_killed_anywhere_it_ends_with_the_same_files(finished, tmp_path):
    """A run that ends between two kills is compared and begun anew, so that every kill hits work."""
    seed = int.from_bytes(os.urandom(4), "big")
    draw, ended, answered = random.Random(seed), 0, 0
    waited: list[float] = []
    workdir = tmp_path / "run"
    for kill in range(KILLS):
        while True:
            process = start(workdir)
            try:
                process.communicate(timeout=draw.uniform(2.0, KILLED_BY))
            except subprocess.TimeoutExpired:
                process.send_signal(SIGNAL)
                sent = time.monotonic()
                process.communicate()
                waited.append(time.monotonic() - sent)
                # Answered, but not in the first moment, before the program listens.
                assert process.returncode in (-SIGNAL, ANSWER.get(SIGNAL, -SIGNAL))
                answered += process.returncode == ANSWER.get(SIGNAL)
                break
            assert process.returncode == 0
            assert differing(outputs(workdir), outputs(finished[0])) == {}
            shutil.rmtree(workdir)
            ended += 1
        print(
            f"kill {kill + 1} of {KILLS}, seed {seed}, {ended} runs ended; {answered} answered, in {max(waited):.1f} s",
            flush=True,
        )
    process = start(workdir)
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 0, told[-2000:]
    assert differing(outputs(workdir), outputs(finished[0])) == {}


@pytest.mark.parametrize("more", [["--config.train.tuning=lora"], ["--config.interact.control=swapped_labels"]])
def test_other_ways_to_train_share_the_store(finished, printed, tmp_path, more):
    """SFT, LoRA and swapped labels run on the conversations that are already there."""
    workdir, _ = finished
    said = printed("sft_biased10", tmp_path / "run", "--store", str(workdir / "store"), *more)
    assert "collect benign: already done" in said
    assert "evaluate vanilla: already done" in said
    assert (tmp_path / "run" / "results.json").is_file()


def test_a_pool_collected_elsewhere(finished, printed, tmp_path):
    """trajectories.jsonl of another run, given as a file, leads to the same examples."""
    pool = tmp_path / "pool.jsonl"
    lines = sorted(x for f in (finished[0] / "store").glob("collect/*/trajectories.jsonl") for x in f.read_text().splitlines())
    pool.write_text("\n".join(lines) + "\n")
    printed("kto_biased10", tmp_path / "run", f"--config.interact.trajectories={pool}")
    mine = {f.read_bytes() for f in (tmp_path / "run" / "store").glob("select/*/examples.jsonl")}
    theirs = {f.read_bytes() for f in (finished[0] / "store").glob("select/*/examples.jsonl")}
    assert len(mine) == 3
    assert mine <= theirs
