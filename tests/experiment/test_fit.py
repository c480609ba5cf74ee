"""Training as the experiment calls it: which tree the reference is, what is held out, what is counted."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from emjax.config import KtoConfig, LoraConfig, TrainConfig
from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.experiment.fit import Recipe, fit
from emjax.models import lora, sharding

LORA = LoraConfig(2, 4.0, targets=("q", "down"))
# A rate that float32 weights do not notice.
TRAIN = TrainConfig(
    learning_rate=1e-30, schedule="constant", warmup=0.0, final=1.0, b2=0.99, weight_decay=0.0, remat="none", buckets=(16,),
    save_every=0, epochs=1, batch_size=8,
)  # fmt: skip


def examples(labels=(True, False)):
    rng = np.random.default_rng(0)
    made = []
    for i in range(16):
        start, length = int(rng.integers(2, 6)), int(rng.integers(8, 12))
        weights = (0.0,) * start + (1.0,) * (length - start)
        ids = tuple(rng.integers(4, 101, length).tolist())
        made.append(Example(f"e{i}", ids, weights, start, f"p{i // 2}", labels[i % len(labels)]))
    return made


def trained(lm, directory, *, tuned=LORA, data=None, kto=None, against=None, identity="x", method="kto", **train):
    how = dataclasses.replace(TRAIN, method=method, tuning="lora" if tuned else "full", lora=tuned or LORA, **train)
    directory.mkdir(exist_ok=True)  # as the store does
    recipe = Recipe(how, sharding.make_mesh(1, 1, 1), 0, kto or KtoConfig(0.3))
    out = fit(lm, data or examples(), recipe, directory=directory, identity=identity, title="test", against=against)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return out, lines, json.loads((directory / "training.json").read_text())


@pytest.fixture(scope="module")
def snapshot(tiny):
    """The adapter of a round before."""
    weights = jax.tree.map(lambda x: x + 0.05, lora.init(LORA, tiny.config, jax.random.key(7)).weights)
    return tiny.replace(adapter=lora.Adapter(LORA, weights))


def worst(lines):
    """The largest log-ratio sums and z of a run that trains nothing."""
    return max(abs(line[name]) for line in lines for name in ("kl_raw", "reward_desirable_sum", "reward_undesirable_sum"))


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("start", ["base", "snapshot", "full"])
def test_at_step_0_the_reference_is_the_model_that_is_trained(tiny, snapshot, tmp_path, start, microbatches):
    lm, tuned = snapshot if start == "snapshot" else tiny, None if start == "full" else LORA
    _, lines, counts = trained(lm, tmp_path, tuned=tuned, microbatches=microbatches)
    assert worst(lines) == 0  # exactly, also in slices
    assert abs(lines[0]["loss"] - 0.5) < 1e-6
    assert counts == {
        "examples": 16, "held_out": 0, "undesirable_weight": 1.0, "kl_pairs": 16, "kl_self_pairs": 0,
        "kl_same_prompt_pairs": 0, "steps": 2,
    }  # fmt: skip


def test_another_reference(tiny, snapshot, tmp_path):
    """An adapter goes on from where it is; its reference may be the base, and then it is away from it at once."""
    out, lines, _ = trained(snapshot, tmp_path, against=tiny)
    assert worst(lines) > 0.1
    jax.tree.map(np.testing.assert_array_equal, out.adapter.weights, snapshot.adapter.weights)  # such a rate moves nothing
    with pytest.raises(UserError, match=r"reference\.npz holds .* another model"):  # the same identity, other weights
        trained(snapshot, tmp_path)
    again, found, _ = trained(snapshot, tmp_path, against=tiny)
    assert [line["loss"] for line in found] == [line["loss"] for line in lines]
    for lora_config in (None, LoraConfig(3, 4.0, targets=LORA.targets)):
        with pytest.raises(UserError, match="has an adapter"):
            trained(snapshot, tmp_path / "other", tuned=lora_config)


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_held_out_loss(tiny, tmp_path, method):
    """Of prompts that are never trained on; the mean over all of them, however they are batched."""
    found = []
    for size in (8, 4):
        directory = tmp_path / str(size)
        _, lines, counts = trained(tiny, directory, method=method, held_out=0.5, batch_size=size)
        assert (counts["examples"], counts["held_out"]) == (8, 8)
        assert "held_out_loss" in lines[-1]
        found.append(lines[-1]["held_out_loss"])
    assert abs(found[0] - found[1]) < 2e-6  # nothing was moved; KTO's z is 0 then
    if method == "kto":
        assert abs(found[0] - 0.5) < 1e-6


@pytest.mark.parametrize("label", [True, False])
def test_one_label_alone(tiny, tmp_path, label):
    """Trains, and the other label's rewards are a sum of no rows."""
    _, lines, _ = trained(tiny, tmp_path, data=examples((label,)), learning_rate=1e-2, epochs=2)
    mine, other = ("desirable", "undesirable") if label else ("undesirable", "desirable")
    for line in lines:
        assert (line[f"{mine}_count"], line[f"{other}_count"], line[f"reward_{other}_sum"]) == (8, 0, 0)
    rewards = [line[f"reward_{mine}_sum"] for line in lines]
    assert rewards[-1] > 0.01 if label else rewards[-1] < -0.01


@pytest.mark.parametrize("microbatches", [1, 2])
def test_rates(tiny, tmp_path, microbatches):
    _, lines, _ = trained(tiny, tmp_path, microbatches=microbatches)
    layers, head = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48), 101 * 32
    tokens = sum(len(e.ids) for e in examples())
    answers = sum(len(e.ids) - e.start for e in examples())
    wanted = 4 * (layers * tokens + head * answers)
    # Mismatched pairs, forward only: their answers; in several slices z takes a pass over the whole rows as well.
    wanted += 2 * (layers * (answers + (tokens if microbatches > 1 else 0)) + head * answers)
    for line in lines:
        assert line["padding"] > 0
        assert line["tokens_s"] * line["seconds"] < 8 * 16
    done = sum(line["tflops"] * line["seconds"] * 1e12 for line in lines)
    assert abs(done / wanted - 1) < 0.02  # the seconds are rounded


def test_dropout(tiny, tmp_path):
    """Rows keep their masks whatever the slices; the reference has none; nothing is hidden where the adapter is nothing."""
    found = []
    for microbatches in (1, 2):
        dropping = dataclasses.replace(LORA, dropout=0.3)
        out, lines, _ = trained(
            tiny, tmp_path / str(microbatches), tuned=dropping, learning_rate=1e-2, microbatches=microbatches, epochs=2
        )
        found.append([line["loss"] for line in lines])
        assert lines[0]["loss"] == 0.5
        assert out.adapter.config.dropout == 0.3
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    _, lines, _ = trained(tiny, tmp_path / "none", learning_rate=1e-2, epochs=2)
    assert abs(lines[-1]["loss"] - found[0][-1]) > 1e-4
