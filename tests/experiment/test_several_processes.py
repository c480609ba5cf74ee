"""The whole experiment in several processes: what one process finds, and the same bits each time."""

import os
import subprocess

import numpy as np
import pytest
import safetensors.numpy

from emjax.runtime.files import read_lines
from tests.faults.conftest import launch

PROCESSES = int(os.environ.get("EMJAX_TEST_PROCESSES", "2"))
REPEATS = int(os.environ.get("EMJAX_TEST_REPEATS", "1"))
SMALL = [
    "--config.interact.users=8", "--config.interact.dialogues=4", "--config.interact.biased_ratio=0.5",
    "--config.extra_arms=()", "--config.train.epochs=1", "--config.train.batch_size=8", "--config.engine.slots=8",
    "--config.eval.mask.sizes.all=8", "--config.eval.mask.sizes.unseen_entities=0",
    "--config.eval.mask.sizes.unseen_templates=0", "--config.eval.mask.sizes.tuned_domain=0",
]  # fmt: skip


def run(count, workdir):
    command = ["main.py", "--config", "configs/kto_biased10.py:micro", "--workdir", workdir, *SMALL]
    started = launch(count, command, output=subprocess.DEVNULL, XLA_FLAGS="")
    told = [p.communicate(timeout=1500)[1] for p in started]
    assert [p.returncode for p in started] == [0] * count, "\n".join(t[-2000:] for t in told)
    return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    return run(1, root / "one"), [run(PROCESSES, root / f"several-{i}") for i in range(REPEATS)]


def lines(workdir, pattern, without=()):
    """{file's name and its stage: its rows}, less the fields that hold rounded numbers."""
    found = {}
    for file in sorted(workdir.glob(f"store/{pattern}")):
        found[str(file.relative_to(workdir))] = [strip(row, without) for row in read_lines(file)]
    assert found, pattern
    return found


def strip(value, without):
    if isinstance(value, dict):
        return {k: strip(v, without) for k, v in value.items() if k not in without}
    return [strip(v, without) for v in value] if isinstance(value, list) else value


def logprobs(workdir):
    rows = [row for found in lines(workdir, "collect/*/trajectories.jsonl").values() for row in found]
    return [x for row in rows for turn in row["turns"] for x in turn["logprobs"]]


def weights(workdir):
    return {
        str(file.relative_to(workdir)): safetensors.numpy.load_file(file)
        for file in sorted(workdir.glob("store/train/*/model/*.safetensors"))
    }


def losses(workdir):
    return [row["loss"] for rows in lines(workdir, "train/*/metrics.jsonl").values() for row in rows]


def test_conversations_examples_and_verdicts_are_those_of_one_process(runs):
    """To the letter: rounding differs, but no sampled token, choice or verdict does at this size."""
    one, several = runs
    for other in several:
        for pattern in ("collect/*/trajectories.jsonl", "select/*/examples.jsonl", "evaluate/*/mask.jsonl"):
            assert lines(one, pattern, ("logprobs", "logprob")) == lines(other, pattern, ("logprobs", "logprob"))
        assert (one / "results.json").read_bytes() == (other / "results.json").read_bytes()


def test_numbers_agree_within_float32(runs):
    """Sums over devices are ordered otherwise: 1e-5 for sums of 128 float32 products of order 1; Adam's first steps
    divide by the gradient's size, so weights may differ by a part of the learning rate (1e-3)."""
    one, several = runs
    for other in several:
        assert weights(one).keys() == weights(other).keys()
        apart = {
            "log-probs": np.abs(np.subtract(logprobs(one), logprobs(other))).max(),
            "losses": np.abs(np.subtract(losses(one), losses(other))).max(),
            "weights": max(
                np.abs(array - weights(other)[n][k]).max() for n, w in weights(one).items() for k, array in w.items()
            ),
        }
        print(PROCESSES, "processes, at most apart:", apart)
        assert apart["log-probs"] < 1e-5
        assert apart["losses"] < 1e-6
        assert apart["weights"] < 1e-4


def test_a_repeat_has_the_same_bits(runs):
    _, several = runs
    if len(several) < 2:
        pytest.skip("EMJAX_TEST_REPEATS=2 runs it twice")
    first, *rest = several
    for other in rest:
        for pattern in ("collect/*/trajectories.jsonl", "evaluate/*/mask.jsonl"):
            assert lines(first, pattern) == lines(other, pattern)
        for name, arrays in weights(first).items():
            assert all(array.tobytes() == weights(other)[name][key].tobytes() for key, array in arrays.items())
