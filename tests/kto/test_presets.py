"""Whose pairing, reference point and means: hand-written float64 replays of each preset on made-up log-probs."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emjax.config import KtoConfig, LoraConfig, names
from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.kto import pairing, reference
from emjax.kto import step as kto_step
from emjax.models import lora
from emjax.train import optimizer, state
from emjax.train.state import Tuning

CHUNK = 3  # stands for LLaMA-Factory's 1,000


def planned(count, preset, *, size=8, microbatches=2, epochs=2, order="given", seed=5, labels=None, **more):
    labels = labels or [True] * count
    return pairing.plan(
        labels, [f"p{i}" for i in range(count)], preset=preset, order=order, batch_size=size, microbatches=microbatches,
        epochs=epochs, seed=seed, **more,
    )  # fmt: skip


def steps(plan):
    return [(plan.blocks[b].tolist(), plan.partners[b].tolist()) for b in plan.order]


def test_trl_pairs_within_microbatches_in_order():
    once = [
        ([0, 1, 2, 3, 4, 5, 6, 7], [3, 0, 1, 2, 7, 4, 5, 6]),
        ([8, 9, 10, 11, 12], [11, 8, 9, 10, 12]),  # the last row is alone, and its own partner
    ]
    plan = planned(13, "trl")
    assert steps(plan) == once * 2
    assert pairing.facts(plan, range(13)) == {"kl_pairs": 13, "kl_self_pairs": 1, "kl_same_prompt_pairs": 1}


@given(st.integers(8, 40), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(0, 9))
@settings(deadline=None)
def test_halos_pairs_within_microbatches_and_drops_what_does_not_fill_them(count, microbatches, epochs, seed):
    plan = planned(count, "halos", microbatches=microbatches, epochs=epochs, seed=seed)
    width = 8 // microbatches
    found = [(row, partner) for block, other in steps(plan) for row, partner in zip(block, other, strict=True)]
    each = count // width * width
    assert len(found) == each * epochs // 8 * 8
    for start in range(0, len(found), width):
        rows, partners = zip(*found[start : start + width], strict=True)
        assert partners == (*rows[1:], rows[0])
    for epoch in range(len(found) // each):
        assert len({row for row, _ in found[epoch * each : (epoch + 1) * each]}) == each  # no row twice in an epoch


def test_llama_factory_pairs_before_it_shuffles(monkeypatch):
    monkeypatch.setattr(pairing, "LLAMA_FACTORY_MAP", CHUNK)
    wanted = {0: 2, 1: 0, 2: 1, 3: 5, 4: 3, 5: 4, 6: 7, 7: 6}
    plan = planned(8, "llama_factory", size=4, microbatches=4)
    found = steps(plan)
    assert [len(block) for block, _ in found] == [4] * 4
    for epoch in (found[:2], found[2:]):
        assert {row: p for block, other in epoch for row, p in zip(block, other, strict=True)} == wanted
    assert found[:2] != found[2:]


def test_orders():
    labels = [True] * 30 + [False] * 10
    assert pairing.arranged(labels, "given", 0).tolist() == list(range(40))
    for order in ("shuffled", "stratified"):
        rows = pairing.arranged(labels, order, 0)
        assert sorted(rows) == list(range(40))
        assert rows.tolist() != pairing.arranged(labels, order, 1).tolist()
    counts = [sum(labels[i] for i in block) for block in pairing.blocks(rows, 8)]
    assert counts == [6] * 5
    assert rows[:30].tolist() != sorted(rows[:30])


def test_misuse():
    with pytest.raises(UserError, match=r"preset='halos'.*do not fill a step"):
        planned(7, "halos", epochs=1)
    with pytest.raises(UserError, match=r"leaves 1 a microbatch"):
        planned(16, "trl", microbatches=8)
    assert len(steps(planned(16, "llama_factory", microbatches=8))) == 4  # its own example has one row a microbatch
    alone = planned(1, "emjax", microbatches=1, paired=False)  # no reference point, so no partner is needed
    assert alone.partners is None
    assert alone.order == [0, 0]


@pytest.mark.parametrize(("balance", "weight"), [("none", 1.5), ("equal", 1.5 * 6 / 2), ("williams", 1.5 * 6 / 2.1)])
def test_weights_from_counts(balance, weight):
    kto = KtoConfig(undesirable_weight=1.5, balance=balance)
    made = kto_step.balanced(kto, [True] * 6 + [False] * 2)
    assert made.undesirable_weight == pytest.approx(weight, rel=1e-15)
    assert made.desirable_weight == 1.0
    if balance != "none":
        for labels in ([True] * 3, [False] * 3):
            with pytest.raises(UserError, match=r"config\.kto\.balance"):
                kto_step.balanced(kto, labels)


# --- the step against a replay ---------------------------------------------------------------------------------------

COUNT, SIZE, MICROBATCHES = 13, 8, 4
NOTHING = optimizer.make(0.9, 0.999, 1e-8, 0.0, 0.0)
LORA = LoraConfig(2, 4.0, targets=("q", "down"))


def examples():
    rng = np.random.default_rng(3)
    made = []
    for i in range(COUNT):
        start, length = int(rng.integers(2, 6)), int(rng.integers(7, 11))
        ids = tuple(rng.integers(4, 101, length).tolist())
        weight = [1.0, 0.25][i == 4]
        made.append(
            Example(f"e{i}", ids, (0.0,) * start + (weight,) * (length - start), start, f"p{i}", bool(rng.random() < 0.5))
        )
    return made


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def replayed(kto, blocks, ratio, kl_ratio, labels, factor):
    """(loss, logged z) of each step in float64, from the descriptions: `ratio` by row, `kl_ratio` by (row, partner)."""
    found = []
    width = SIZE // MICROBATCHES
    for block, partners in blocks:
        every = np.array([kl_ratio[i, j] for i, j in zip(block, partners, strict=True)])
        losses, points = [], []
        for start in range(0, len(block), width):
            rows, kl = block[start : start + width], every[start : start + width]
            if kto.preset == "emjax":
                z = max(0.0, every.mean())
            elif kto.preset == "halos":
                z = max(0.0, kl.sum() / max(1, np.count_nonzero(kl)))
            else:
                z = max(0.0, kl.mean())
            sign = np.where([labels[i] for i in rows], 1, -1)
            weight = np.where(sign > 0, kto.desirable_weight, kto.undesirable_weight) * [factor[i] for i in rows]
            losses.append(weight * sigmoid(-kto.beta * sign * (np.array([ratio[i] for i in rows]) - z)))
            points.append(z)
        mean = np.concatenate(losses).mean() if kto.preset == "emjax" else np.mean([part.mean() for part in losses])
        found.append((mean, np.mean(points)))
    return found


@pytest.mark.parametrize("preset", names.PRESETS)
def test_the_step_of_each_preset(tiny, preset, monkeypatch):
    """Loss and z of every step, an uneven last microbatch among them; log-probs row by row from the model itself."""
    monkeypatch.setattr(pairing, "LLAMA_FACTORY_MAP", CHUNK)
    data, tuning = examples(), Tuning(tiny.config, LORA)
    kto = KtoConfig(0.3, 1.0, 1.4, preset=preset, order="given")
    plan = planned(COUNT, preset, microbatches=MICROBATCHES, labels=[e.label for e in data])
    cache = reference.compute(tiny.params, None, tuning, data, plan, SIZE, (16,), jax.device_put)
    build = kto_step.build(data, plan, SIZE, (16,), cache, MICROBATCHES)
    start = lora.init(LORA, tiny.config, jax.random.key(1)).weights
    policy = lora.Adapter(LORA, jax.tree.map(lambda x: x + 0.06, start))
    found = []
    for number in range(len(plan.order)):
        now = state.create(policy.weights, NOTHING, tuning)
        _, metrics = kto_step.step(
            now, tiny.params, build(number), np.float32(0.0), tuning=tuning, optimizer=NOTHING, kto=kto,
            microbatches=MICROBATCHES,
        )  # fmt: skip
        found.append((float(metrics["loss"]), float(metrics["kl"])))

    ratio, kl_ratio = {}, {}
    for block, partners in zip(plan.blocks, plan.partners, strict=True):
        made = kto_step.batch(data, block, partners, SIZE, (16,))
        scored = [reference.score(tiny.params, a, made, tuning=tuning).values() for a in (policy, None)]
        matched, mixed = (np.float64(a) - np.float64(b) for a, b in zip(*scored, strict=True))
        for at, (i, j) in enumerate(zip(block.tolist(), partners.tolist(), strict=True)):
            ratio[i], kl_ratio[i, j] = matched[at], mixed[at]
    factor = [max(e.weights) for e in data]
    wanted = replayed(kto, steps(plan), ratio, kl_ratio, [e.label for e in data], factor)
    np.testing.assert_allclose(found, wanted, atol=2e-6, rtol=1e-5)
    assert max(z for _, z in wanted) > 0.05
    assert len({len(block) for block, _ in steps(plan)}) == (1 if preset == "halos" else 2)


def test_halos_counts_ratios_that_are_not_zero():
    """Ratios [0, 2, -0.5, 0.5] give 2/3 and not 1/2; no row at all gives 0."""
    ratios, valid = jax.numpy.asarray(np.float32([[0, 2, -0.5, 0.5], [0, 0, 0, 0]]).T.reshape(-1)), np.float32([1, 0] * 4)
    for preset, point in (("halos", 2 / 3), ("trl", 0.5)):
        z, share, divisor = kto_step._reduction(KtoConfig(preset=preset), ratios, jax.numpy.asarray(valid), 2)
        np.testing.assert_allclose(z, [point, 0.0] * 4, rtol=1e-6)
        np.testing.assert_allclose(share / divisor, 0.25 * valid)  # one microbatch has rows


def test_apo_needs_no_partner(tiny):
    data, tuning = examples()[:1], Tuning(tiny.config, LORA)
    kto = KtoConfig(0.3, loss_type="apo_zero_unpaired")
    plan = planned(1, "emjax", size=2, microbatches=1, epochs=1, paired=kto.paired)
    cache = reference.compute(tiny.params, None, tuning, data, plan, 2, (16,), jax.device_put)
    assert cache.keys() == {"reference"}
    batch = kto_step.build(data, plan, 2, (16,), cache)(0)
    assert "kl" not in batch
    policy = jax.tree.map(lambda x: x + 0.06, lora.init(LORA, tiny.config, jax.random.key(1)).weights)
    settings = {"tuning": tuning, "optimizer": NOTHING}
    _, metrics = kto_step.step(
        state.create(policy, NOTHING, tuning), tiny.params, batch, np.float32(0.0), kto=kto, **settings
    )  # fmt: skip
    label = data[0].label
    reward = metrics["reward_desirable_sum" if label else "reward_undesirable_sum"]
    assert abs(metrics["loss"] - sigmoid(-reward if label else reward)) < 1e-6
    assert metrics["kl"] == metrics["kl_raw"] == 0
    labelled = dataclasses.replace(kto, balance="equal")
    with pytest.raises(UserError, match="same label"):
        kto_step.balanced(labelled, [label])
