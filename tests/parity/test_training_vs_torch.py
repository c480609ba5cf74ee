"""Whole training runs against hand-written torch loops on the same batches (float32, AdamW, clipping, a schedule)."""

import jax
import numpy as np
import pytest

from emjax import models
from emjax.config import KtoConfig, LoraConfig, TrainConfig
from emjax.data import batches
from emjax.data.batches import Example
from emjax.kto import pairing, reference
from emjax.kto import step as kto_step
from emjax.models import LanguageModel, decoder, lora
from emjax.models.config import ModelConfig
from emjax.train import optimizer, sft, state
from emjax.train.state import Tuning
from emjax.worlds.micro import tokenizer
from emjax.worlds.micro.world import World

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SETTINGS = TrainConfig(
    learning_rate=1e-2, schedule="cosine", warmup=0.4, final=0.1, b1=0.9, b2=0.99, eps=1e-6, weight_decay=0.05, clip=1.0
)
RATES = optimizer.learning_rates(SETTINGS, 5)
OPT = optimizer.from_config(SETTINGS)
BUCKETS = (16,)
# Biases, one matrix for embedding and head.
QWEN = ModelConfig(
    family="qwen2", V=340, D=32, L=2, H=4, K=2, h=8, F=48, norm_eps=1e-6, rope_theta=1e4, rope_scaling=None,
    max_position=64, tied=True, qkv_bias=True, qk_norm=False, init_std=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def lm():
    params = decoder.init(QWEN, jax.random.key(0))
    return LanguageModel(QWEN, params, tokenizer.build(World(0)), (5,), source="made up")


@pytest.fixture(scope="module")
def directory(lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    models.save(lm, path)
    return path


def examples(count, prompted):
    """`prompted`: weights 0 on the prompt and 1 on the rest; otherwise any weights."""
    rng = np.random.default_rng(2)
    made = []
    for i in range(count):
        start, length = rng.integers(4, 7), rng.integers(9, 12)
        ids = tuple(rng.integers(0, 340, length).tolist())
        weights = (np.arange(length) >= start) * (1.0 if prompted else rng.choice([0.1, 1.0], length))
        made.append(Example(f"e{i}", ids, tuple(weights.tolist()), int(start), f"p{i // 2}", bool(rng.random() < 0.5)))
    return made


def weighted_sums(model, rows):
    """[B]: for each (ids, weights) the sum of the weighted log-probs of all ids but the first."""
    ids, weights = torch.zeros(len(rows), 16, dtype=torch.long), torch.zeros(len(rows), 16)
    for i, (some, w) in enumerate(rows):
        ids[i, : len(some)], weights[i, : len(w)] = torch.tensor(some), torch.tensor(w)
    logprobs = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (logprobs * weights[:, 1:]).sum(-1)


def adamw(named):
    """Norms and biases do not decay."""
    kept = [p for n, p in named if "norm" in n or n.endswith("bias")]
    decayed = [p for n, p in named if not ("norm" in n or n.endswith("bias"))]
    groups = [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": SETTINGS.weight_decay}]
    return torch.optim.AdamW(groups, betas=(SETTINGS.b1, SETTINGS.b2), eps=SETTINGS.eps)


def update(opt, loss, rate):
    """One step; returns the norm of the gradients before clipping."""
    params = [p for group in opt.param_groups for p in group["params"]]
    opt.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(params, SETTINGS.clip)
    for group in opt.param_groups:
        group["lr"] = float(rate)
    opt.step()
    return norm.item()


def test_sft(lm, directory):
    data = examples(10, prompted=False)
    steps = batches.plan([len(e.ids) for e in data], 4, 2, 0, group=False)[:5]  # the third batch is short
    build = batches.sft(data, steps, 4, BUCKETS)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    opt = adamw(list(model.named_parameters()))
    tuning = Tuning(QWEN, None)
    now = state.create(lm.params, OPT, tuning)
    losses = []
    for step, rate in enumerate(RATES):
        now, metrics = sft.step(now, None, build(step), rate, tuning=tuning, optimizer=OPT, microbatches=2)
        rows = [(data[i].ids, data[i].weights) for i in steps[step]]
        loss = -weighted_sums(model, rows).sum() / sum(sum(weights[1:]) for _, weights in rows)
        losses.append(loss.item())
        norm = update(opt, loss, rate)
        assert abs(metrics["loss"] - losses[-1]) < 2e-6
        assert abs(metrics["grad_norm"] / norm - 1) < 1e-5
    assert losses[-1] < losses[0] - 0.3


def test_kto(lm, directory, tmp_path):
    data = examples(9, prompted=True)
    labels, prompts = [e.label for e in data], [e.prompt_id for e in data]
    # Five rows and four.
    plan = pairing.plan(
        labels, prompts, preset="emjax", order="shuffled", batch_size=6, microbatches=2, epochs=3, seed=0
    )  # fmt: skip
    blocks, partners, order = plan.blocks, plan.partners, plan.order
    adapter = lora.init(LoraConfig(4, 8.0, targets=("q", "o", "up")), QWEN, jax.random.key(3))
    tuning, kto = Tuning(QWEN, adapter.config), KtoConfig(0.3, 1.0, 1.25)
    made = reference.compute(lm.params, None, tuning, data, plan, 6, BUCKETS, jax.device_put)
    build = kto_step.build(data, plan, 6, BUCKETS, made, 2)
    models.save_adapter(lm.replace(adapter=adapter), tmp_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, str(tmp_path), is_trainable=True)
    opt = adamw([(n, p) for n, p in model.named_parameters() if p.requires_grad])
    now = state.create(adapter.weights, OPT, tuning)
    points = []
    for step, rate in enumerate(RATES):
        now, metrics = kto_step.step(
            now, lm.params, build(step), rate, tuning=tuning, optimizer=OPT, kto=kto, microbatches=2
        )  # fmt: skip
        pairs = [(data[i], data[j]) for i, j in zip(blocks[order[step]], partners[order[step]], strict=True)]
        mixed = [e.ids[: e.start] + other.ids[other.start :] for e, other in pairs]
        matched = [(e.ids, e.weights) for e, _ in pairs]
        mixed = [(ids, [float(t >= e.start) for t in range(len(ids))]) for ids, (e, _) in zip(mixed, pairs, strict=True)]
        with torch.no_grad():
            z = weighted_sums(model, mixed)
            with model.disable_adapter():
                z = (z - weighted_sums(model, mixed)).mean().clamp(min=0)
                before = weighted_sums(model, matched)
        ratios = weighted_sums(model, matched) - before
        sign = torch.tensor([1.0 if e.label else -1.0 for e, _ in pairs])
        weight = torch.where(sign > 0, kto.desirable_weight, kto.undesirable_weight)
        loss = (weight * torch.sigmoid(-kto.beta * sign * (ratios - z))).mean()
        norm = update(opt, loss, rate)
        points.append(z.item())
        assert abs(metrics["loss"] - loss.item()) < 2e-6
        assert abs(metrics["kl"] - points[-1]) < 5e-5
        assert abs(metrics["grad_norm"] / norm - 1) < 1e-5
    assert max(points) > 0.01
    for name, pair in now["trainable"].items():
        for which, ours in pair.items():
            theirs = {n: p for n, p in model.named_parameters() if f".{name}_proj.lora_{which}." in n}
            for value, (_, p) in zip(ours, sorted(theirs.items()), strict=True):
                np.testing.assert_allclose(value, p.detach().numpy().T, atol=2e-4)
