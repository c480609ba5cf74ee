"""Whole runs of TRL's KTOTrainer and of transformers' Trainer against ours: the same model, tokenizer, data and optimizer.

The text goes through both tokenization paths. 21 rows in microbatches of 4, two a step: each epoch's last microbatch has one
row, which under TRL is its own partner.
"""

import functools

import jax
import numpy as np
import optax
import pytest

from emjax import models
from emjax.config import KtoConfig, LoraConfig
from emjax.data import batches
from emjax.data.examples import tokenized
from emjax.kto import pairing, reference
from emjax.kto import step as kto_step
from emjax.models import LanguageModel, decoder, lora
from emjax.models.config import ModelConfig
from emjax.train import optimizer, sft, state
from emjax.train.state import Tuning
from emjax.worlds.micro import tokenizer
from emjax.worlds.micro.world import World

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")

CONFIG = ModelConfig(
    family="llama", V=340, D=32, L=2, H=4, K=2, h=8, F=48, norm_eps=1e-6, rope_theta=1e4, rope_scaling=None,
    max_position=64, tied=False, qkv_bias=False, qk_norm=False, init_std=0.1,
)  # fmt: skip
COUNT, SIZE, MICROBATCHES, EPOCHS = 21, 8, 2, 4
RATES = {"sgd": 0.05, "adamw_torch": 1e-3}
# Not 0.999: optax forms 1 - b2**t in float32, which for 0.999 is off by 1.3e-5 of itself; torch does it in float64.
B2 = 0.99
OPTIMIZERS = {"sgd": optax.sgd(1.0), "adamw_torch": optimizer.make(0.9, B2, 1e-8, 0.0, 0.0)}
LORA = LoraConfig(4, 16.0, targets=("q", "v", "down"))
KTO = KtoConfig(0.3, 1.0, 1.3, preset="trl", order="given")


@pytest.fixture(scope="module")
def lm():
    return LanguageModel(CONFIG, decoder.init(CONFIG, jax.random.key(0)), tokenizer.build(World(0)), (5,), source="made up")


@pytest.fixture(scope="module")
def directory(lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    models.save(lm, path)
    return path


@pytest.fixture(scope="module")
def rows():
    words = [w for w in World(0).vocabulary() if w.isalpha()]
    rng = np.random.default_rng(0)

    def text(low, high):
        return " ".join(rng.choice(words, rng.integers(low, high)))

    return [
        {
            "id": f"e{i}", "prompt_id": f"p{i}", "messages": [{"role": "user", "content": text(2, 6)}],
            "completion": text(1, 5), "label": bool(rng.random() < 0.6), "weight": 1.0,
        }
        for i in range(COUNT)
    ]  # fmt: skip


def arguments(kind, path, optim, **more):
    return kind(
        output_dir=str(path), per_device_train_batch_size=SIZE // MICROBATCHES, gradient_accumulation_steps=MICROBATCHES,
        num_train_epochs=EPOCHS, learning_rate=RATES[optim], optim=optim, lr_scheduler_type="constant", weight_decay=0.0,
        max_grad_norm=0.0, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, train_sampling_strategy="sequential",
        adam_beta2=B2, **more,
    )  # fmt: skip


def recorded(kind):
    """The trainer, which also keeps each microbatch's share of its step's loss (what it logs may be rounded)."""

    class Recorded(kind):
        def training_step(self, *args, **kw):
            loss = super().training_step(*args, **kw)
            self.shares = [*getattr(self, "shares", []), loss.item()]
            return loss

        @property
        def losses(self):
            return np.reshape(self.shares, (-1, MICROBATCHES)).sum(axis=1)

    return Recorded


@pytest.mark.parametrize("optim", RATES)
@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_kto(lm, directory, rows, tmp_path, optim, tuned):
    examples, _ = tokenized(rows, lm.tokenizer, lm.eos_ids, 32)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    adapter = None
    if tuned == "lora":
        adapter = lora.init(LORA, CONFIG, jax.random.key(3))
        models.save_adapter(lm.replace(adapter=adapter), tmp_path / "adapter")
        model = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"), is_trainable=True)
    table = [
        {"prompt": r["messages"], "completion": [{"role": "assistant", "content": r["completion"]}], "label": r["label"]}
        for r in rows
    ]
    trainer = recorded(trl.KTOTrainer)(
        model=model,
        args=arguments(
            trl.KTOConfig, tmp_path, optim, beta=KTO.beta, desirable_weight=KTO.desirable_weight,
            undesirable_weight=KTO.undesirable_weight, precompute_ref_log_probs=True, max_length=32,
        ),
        train_dataset=datasets.Dataset.from_list(table),
        processing_class=transformers.AutoTokenizer.from_pretrained(directory),
    )  # fmt: skip
    for row, e in zip(trainer.train_dataset, examples, strict=True):
        assert (*row["prompt_ids"], *row["completion_ids"]) == e.ids
        assert len(row["prompt_ids"]) == e.start
    trainer.train()
    points = [line["kl"] for line in trainer.state.log_history if "kl" in line]

    tuning = Tuning(CONFIG, adapter and adapter.config)
    plan = pairing.plan(
        [e.label for e in examples], [e.prompt_id for e in examples], preset=KTO.preset, order=KTO.order, batch_size=SIZE,
        microbatches=MICROBATCHES, epochs=EPOCHS, seed=0,
    )  # fmt: skip
    assert pairing.facts(plan, range(COUNT))["kl_self_pairs"] == 1
    made = reference.compute(lm.params, None, tuning, examples, plan, SIZE, (32,), jax.device_put)
    build = kto_step.build(examples, plan, SIZE, (32,), made, MICROBATCHES)
    now = state.create(adapter.weights if adapter else lm.params, OPTIMIZERS[optim], tuning)
    frozen = lm.params if adapter else None
    found = []
    for number in range(len(plan.order)):
        now, metrics = kto_step.step(
            now, frozen, build(number), np.float32(RATES[optim]), tuning=tuning, optimizer=OPTIMIZERS[optim], kto=KTO,
            microbatches=MICROBATCHES,
        )  # fmt: skip
        found.append((float(metrics["loss"]), float(metrics["kl"])))
    losses, z = np.transpose(found)
    print(f"{optim} {tuned}: loss {np.abs(losses - trainer.losses).max():.1e}, z {np.abs(z - points).max():.1e}")
    assert len(losses) == len(points) == 12
    np.testing.assert_allclose(losses, trainer.losses, atol=2e-6, rtol=0)
    np.testing.assert_allclose(z, points, atol=5e-5, rtol=0)
    assert max(points) > 0.05
    assert losses.min() < losses[0] - 0.02


@pytest.mark.parametrize("optim", RATES)
@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_sft(lm, directory, rows, tmp_path, optim, tuned):
    """transformers divides by the tokens of the whole step, as we do."""
    examples, _ = tokenized(rows, lm.tokenizer, lm.eos_ids, 32)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    adapter = None
    if tuned == "lora":
        adapter = lora.init(LORA, CONFIG, jax.random.key(3))
        models.save_adapter(lm.replace(adapter=adapter), tmp_path / "adapter")
        model = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"), is_trainable=True)
    table = [
        {"input_ids": e.ids, "labels": [t if w else -100 for t, w in zip(e.ids, e.weights, strict=True)]} for e in examples
    ]
    trainer = recorded(transformers.Trainer)(
        model=model,
        args=arguments(transformers.TrainingArguments, tmp_path, optim),
        train_dataset=datasets.Dataset.from_list(table),
        data_collator=transformers.DataCollatorForSeq2Seq(lm.tokenizer, padding=True),
        processing_class=lm.tokenizer,
    )
    trainer.train()

    tuning = Tuning(CONFIG, adapter and adapter.config)
    steps = [np.arange(i, min(i + SIZE, COUNT)) for i in range(0, COUNT, SIZE)] * EPOCHS
    build = batches.sft(examples, steps, SIZE, (32,))
    step = functools.partial(sft.step, tuning=tuning, optimizer=OPTIMIZERS[optim], microbatches=MICROBATCHES)
    now = state.create(adapter.weights if adapter else lm.params, OPTIMIZERS[optim], tuning)
    losses = []
    for number in range(len(steps)):
        now, metrics = step(now, lm.params if adapter else None, build(number), np.float32(RATES[optim]))
        losses.append(float(metrics["loss"]))
    print(f"{optim} {tuned}: loss {np.abs(losses - trainer.losses).max():.1e}")
    np.testing.assert_allclose(losses, trainer.losses, atol=2e-6, rtol=0)
    assert len(losses) == 12
    assert min(losses) < losses[0] - 0.03
