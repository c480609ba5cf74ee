"""The loop: resume, metrics, checkpoints, and what stops a run."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import struct
import sys
import types

import jax
import numpy as np
import pytest

from emjax.config import LoraConfig, Watch
from emjax.data import batches
from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.models import lora
from emjax.runtime import files, hardware, stopping
from emjax.train import loop, metrics, optimizer, sft, state
from emjax.train.metrics import MetricsFile, read_lines
from emjax.train.state import Tuning

OPT = optimizer.make(0.9, 0.999, 1e-8, 0.01, 1.0)
LORA = LoraConfig(2, 4.0, targets=("q", "down"))
RATES = np.linspace(1e-2, 1e-3, 6, dtype=np.float32)


def examples():
    rng = np.random.default_rng(0)
    return [Example(f"e{i}", tuple(rng.integers(0, 101, 8).tolist()), (1.0,) * 8) for i in range(12)]


class Killed(Exception):
    pass


def fresh(tiny, rank=2):
    adapter = lora.init(LoraConfig(rank, 4.0, targets=LORA.targets), tiny.config, jax.random.key(1))
    return state.create(adapter.weights, OPT, Tuning(tiny.config, adapter.config))


def run(tiny, directory, *, identity="this run", killed_at=None, step_fn=None, start=None, **more):
    """Trains six steps; `killed_at`: dies before that step (0-based)."""
    data = examples()
    steps = batches.plan([8] * 12, 4, 2, 0, group=False)
    build = batches.sft(data, steps, 4, (8,))

    def serve(first):
        for step in range(first, 6):
            if step == killed_at:
                raise Killed
            yield build(step)

    tuning = Tuning(tiny.config, LORA)
    step_fn = step_fn or functools.partial(sft.step, tuning=tuning, optimizer=OPT)
    return loop.run(
        lambda s, batch, rate: step_fn(s, tiny.params, batch, rate),
        start or fresh(tiny), serve, RATES, directory=directory, identity=identity, put=jax.device_put,
        examples=lambda step: [data[i].id for i in steps[step]], save_every=3, title="test",
        work=lambda step, batch: {"examples": 4, "tokens": 32, "flops": 10**9, "padding": 0.0}, **more,
    )  # fmt: skip


def lines(directory):
    """metrics.jsonl without what a clock says."""
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    timed = {"seconds", "examples_s", "tokens_s", "tflops", "peak_gb"}
    assert all(line.keys() > timed for line in found)
    return [{k: v for k, v in line.items() if k not in timed} for line in found]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return run(tiny, directory), directory


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("killed_at", [2, 3, 5])  # before a checkpoint, just after it, and two steps later
def test_a_killed_run_ends_like_a_whole_one(tiny, whole, tmp_path, killed_at):
    with pytest.raises(Killed):
        run(tiny, tmp_path, killed_at=killed_at)
    same(run(tiny, tmp_path), whole[0])
    assert lines(tmp_path) == lines(whole[1])
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_only_the_adapter_is_trained_and_old_states_are_given_away(tiny, tmp_path):
    base, adapter, start = jax.tree.map(np.asarray, tiny.params), fresh(tiny)["trainable"], fresh(tiny)
    seen = []

    def step_fn(old, *rest):
        new = sft.step(old, *rest, tuning=Tuning(tiny.config, LORA), optimizer=OPT)
        # The loop reads the counter of the state it starts from, which on a CPU keeps that one number.
        seen.append(all(leaf.is_deleted() for leaf in jax.tree.leaves((old["trainable"], old["opt"]))))
        return new

    with pytest.raises(Killed):  # just after a checkpoint: on a CPU one that is being written shares the state's memory
        run(tiny, tmp_path, step_fn=step_fn, start=start, killed_at=3)
    trained = run(tiny, tmp_path, step_fn=step_fn)["trainable"]
    assert seen == [True] * 6  # the first step after a resume too
    same(tiny.params, base)
    for name, pair in trained.items():
        assert np.all(np.asarray(pair["B"]) != 0)
        assert not np.array_equal(pair["A"], adapter[name]["A"])


@pytest.fixture
def terminated(monkeypatch):
    """A call that sends this process SIGTERM, which is forgotten when the next run begins."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stopping.listen()

    def send():
        os.kill(os.getpid(), signal.SIGTERM)

    yield send
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])
    stopping._asked = False


@pytest.mark.parametrize("before", [False, True])  # in the visit, and during its step
@pytest.mark.parametrize("at", [2, 3, 6])  # between two checkpoints, at one, after the last step
def test_sigterm_ends_a_visit_at_once_and_the_next_run_makes_it(tiny, whole, tmp_path, terminated, at, before):
    seen = []

    def step_fn(old, *rest):
        new = sft.step(old, *rest, tuning=Tuning(tiny.config, LORA), optimizer=OPT)
        if before and new[0]["step"] == at:
            terminated()
        return new

    def visit(step, now):
        seen.append((step, jax.device_get(now["trainable"])))
        terminated()
        pytest.fail("the visit went on")

    with pytest.raises(stopping.Stopped):
        run(tiny, tmp_path, step_fn=step_fn, visits=(1, at), visit=lambda step, now: visit(step, now) if step == at else None)
    assert len(seen) == (not before)
    stopping._asked = False
    same(run(tiny, tmp_path, visits=(1, at), visit=lambda step, now: seen.append((step, jax.device_get(now["trainable"])))),
         whole[0])  # fmt: skip
    assert [step for step, _ in seen] == [at] * len(seen)
    assert len(seen) == 1 + (not before)
    same(seen[0][1], seen[-1][1])
    assert lines(tmp_path) == lines(whole[1])


@pytest.mark.parametrize("rank", [2, 3])
def test_checkpoints_of_another_run_are_refused(tiny, tmp_path, rank):
    with pytest.raises(Killed):
        run(tiny, tmp_path, killed_at=4)
    with pytest.raises(UserError, match="another run"):
        run(tiny, tmp_path, identity="that run", start=fresh(tiny, rank))


def test_a_damaged_checkpoint_is_named(tiny, tmp_path):
    with pytest.raises(Killed):
        run(tiny, tmp_path, killed_at=4)
    damaged = [f for f in (tmp_path / "checkpoints" / "3" / "state").rglob("*") if f.is_file()]
    for file in damaged:
        file.write_bytes(b"")
    with pytest.raises(UserError, match="step 3.*cannot be restored"):
        run(tiny, tmp_path)


@pytest.mark.parametrize("bad_step", [2, 3])  # step 3 is one whose state would be saved
def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path, bad_step):
    steps = batches.plan([8] * 12, 4, 2, 0, group=False)
    named = ", ".join(f"e{i}" for i in steps[bad_step - 1])

    def step_fn(old, *rest):
        new, made = sft.step(old, *rest, tuning=Tuning(tiny.config, LORA), optimizer=OPT)
        return new, made | {"loss": made["loss"] * (np.nan if new["step"] == bad_step else 1.0)}

    for _ in range(2):  # and again when it is run again: no broken state was kept
        with pytest.raises(UserError, match=f"nan at step {bad_step}, on the examples {named}"):
            run(tiny, tmp_path, step_fn=step_fn)
        assert [line["step"] for line in lines(tmp_path)] == list(range(1, bad_step))


def test_metrics_are_cut_at_the_resumed_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    file = MetricsFile(path, 2)
    file.write({"step": 3, "loss": 0.5})
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5}]  # at once, not when it is closed
    file.close()


def test_metrics_that_do_not_reach_the_checkpoint_are_told_as_lost(whole, tiny, tmp_path, capsys):
    """Checkpoints may lie elsewhere, and outlive the stage's own files."""
    elsewhere = Watch(checkpoints=str(tmp_path / "elsewhere"))
    with pytest.raises(Killed):
        run(tiny, tmp_path / "a", killed_at=4, watch=elsewhere)
    for _ in range(2):  # resumed from the same step again, it is told once
        with pytest.raises(Killed):
            run(tiny, tmp_path / "b", killed_at=4, watch=elsewhere)
    path = tmp_path / "b" / "metrics.jsonl"
    told = f"{path}: the metrics of steps 1 to 3 are lost; training resumes from step 3.\n"
    assert capsys.readouterr().out.count(told) == 1
    run(tiny, tmp_path / "b", watch=elsewhere)
    lost, *rest = read_lines(path)
    assert lost == {"step": 3, "lost": [1, 3]}
    assert [line["step"] for line in rest] == [4, 5, 6]


def test_no_state_is_saved_before_its_metrics_are_kept(tiny, tmp_path, monkeypatch):
    """A bucket that is mounted has of a file what was there when it was closed."""
    kept, saved = [], []
    monkeypatch.setattr(MetricsFile, "keep", lambda file: kept.append(read_lines(tmp_path / "metrics.jsonl")[-1]["step"]))
    monkeypatch.setattr(loop.Checkpoints, "save", lambda self, state, step: saved.append((step, kept[-1])))
    run(tiny, tmp_path)
    assert saved == [(3, 3)]


def test_metrics_that_are_kept_are_closed(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.write({"step": 1})
    before = file._file
    file.keep()
    assert before.closed
    file.write({"step": 2})
    file.close()
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


def test_a_kill_while_metrics_are_cut_loses_no_line(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    written = iter([json.dumps, json.dumps])

    def killed(line, **how):
        with contextlib.suppress(StopIteration):
            return next(written)(line, **how)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "json", types.SimpleNamespace(dumps=killed, loads=json.loads))
        with pytest.raises(KeyboardInterrupt):
            MetricsFile(path, 3)
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_rates_count_what_is_done(monkeypatch):
    params = {"layers": {"q": np.zeros((2, 3, 4)), "attn_norm": np.zeros((2, 3))}, "embed": np.zeros((5, 3))}
    weights = metrics.matmul_weights(params)
    assert weights == (24, 15)  # the head's once, though it may be the embedding; no norm
    # LoRA 4 and full tuning 6 a weight and token; the head where it works; mismatched rows forward only.
    assert metrics.flops(weights, full=False, tokens=10, scored=4) == 4 * (240 + 60)
    assert metrics.flops(weights, full=True, tokens=10, scored=4, kl_tokens=8, kl_scored=2) == 6 * 300 + 2 * (192 + 30)
    work = {"examples": 4, "tokens": 100, "flops": 8e12, "padding": 0.25}
    line = metrics.rates(work, 2.0, "bfloat16")
    assert (line["examples_s"], line["tokens_s"], line["tflops"], line["padding"]) == (2.0, 50.0, 4.0, 0.25)
    assert line["peak_gb"] > 0.01
    assert "mfu" not in line  # no peak is known for this device
    kinds = (jax.devices()[0].device_kind,)
    here = dataclasses.replace(hardware.DEVICES["cpu"], tflops=16.0, kinds=kinds)
    monkeypatch.setitem(hardware.DEVICES, "here", here)
    assert metrics.rates(work, 2.0, "bfloat16")["mfu"] == 0.25 / jax.device_count()
    assert "mfu" not in metrics.rates(work, 2.0, "float32")


def events(directory):
    """(tag, step) -> value of all TensorBoard files; a record is its length, a checksum, an event, a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for file in sorted(directory.glob("tensorboard/*tfevents*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            data = data[16 + length :]
    return found


def test_tensorboard_holds_what_the_lines_do(whole):
    _, directory = whole
    wanted = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    found = events(directory)
    for line in wanted:
        for name in line.keys() - {"step"}:
            assert found.pop((name, line["step"])) == np.float32(line[name])
    assert not found


def test_weights_and_biases_when_asked(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"config\.watch\.wandb is 'proj'.*not installed"):
        run(tiny, tmp_path / "a", watch=Watch(wandb="proj"))
    logged, calls = [], []
    client = types.SimpleNamespace(
        log=lambda line, step: logged.append((step, line["loss"])), finish=lambda: calls.append("end")
    )
    fake = types.SimpleNamespace(init=lambda **how: calls.append(how) or client)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run(tiny, tmp_path / "b", watch=Watch(wandb="proj"))
    assert logged == [(line["step"], line["loss"]) for line in lines(tmp_path / "b")]
    assert (calls[0]["project"], calls[0]["name"], calls[0]["resume"], calls[1]) == ("proj", "test", "allow", "end")


def test_held_out_loss_and_profile(tiny, whole, tmp_path):
    """Neither changes what is trained."""
    seen = []

    def evaluate(now):
        seen.append(int(now["step"]))
        return {"held_out_loss": jax.numpy.float32(0.5)}

    trained = run(tiny, tmp_path, evaluate=evaluate, watch=Watch(eval_every=4, profile=(2, 3)))
    same(trained, whole[0])
    assert seen == [4, 6]
    assert [line["step"] for line in lines(tmp_path) if "held_out_loss" in line] == [4, 6]
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))


@pytest.mark.parametrize("bad", [{"profile": (3,)}, {"profile": (0, 2)}, {"profile": (4, 2)}, {"eval_every": 0}])
def test_bad_watch(bad):
    with pytest.raises(UserError, match=rf"^{next(iter(bad))} is"):
        Watch(**bad)
