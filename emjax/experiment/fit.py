"""A model and examples -> a tuned model, by SFT or KTO; an interrupted training goes on where it stopped."""

import functools
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax

from emjax.data import batches
from emjax.data.batches import Example
from emjax.data.examples import held_out
from emjax.errors import UserError
from emjax.experiment.common import versions
from emjax.kto import pairing, reference
from emjax.kto import step as kto_step
from emjax.models import LanguageModel, lora, sharding
from emjax.models.config import ModelConfig
from emjax.runtime.files import digest, write_atomically
from emjax.train import loop, metrics, optimizer, sft
from emjax.train import state as train_state
from emjax.train.optimizer import OptimizerConfig
from emjax.train.state import Tuning


def step_settings(
    train: Any,
    shape: ModelConfig,
    *,
    dtype: str,
    lora_config: lora.LoraConfig | None,
    attention: str,
    mesh: jax.sharding.Mesh,
    seed: int,
) -> dict[str, Any]:
    """The static arguments of a training step. Raises UserError where a batch does not spread evenly over the mesh."""
    size, microbatches = int(train.batch_size), int(train.microbatches)
    rows = mesh.shape["data"] * mesh.shape["fsdp"] * microbatches
    if size < 1 or size % rows:
        raise UserError(
            f"config.train.batch_size is {size}; it must be a multiple of {rows}, the product of the mesh's data "
            "and fsdp sizes and config.train.microbatches. Change it, or give devices to config.mesh.tensor."
        )
    return {
        "tuning": Tuning(shape, lora_config, attention, train.remat, mesh, seed, dtype),
        "optimizer": optimizer.from_config(_optimizer_config(train)),
        "microbatches": microbatches,
    }


def _optimizer_config(train: Any) -> OptimizerConfig:
    return OptimizerConfig(**{name: train[name] for name in OptimizerConfig.__dataclass_fields__})


def fit(
    lm: LanguageModel,
    examples: Sequence[Example],
    train: Any,
    *,
    method: str,
    lora_config: lora.LoraConfig | None,
    attention: str,
    mesh: jax.sharding.Mesh,
    seed: int,
    directory: Path,
    identity: str,
    title: str,
    watch: Any,
    kto: kto_step.KtoConfig | None = None,
    against: LanguageModel | None = None,
    group: bool = False,
    visits: Collection[int] = (),
    visit: Callable[[int, LanguageModel], None] = lambda step, lm: None,
) -> LanguageModel:
    """Trains `lm` (its adapter, or all of it) on `examples`, resuming from `directory` where it was interrupted.

    An adapter goes on from lm's own, or starts as nothing. KTO's reference is `against`, or else `lm` as it is now: the base,
    the adapter of the round before (iterated self-training), or the full weights. What was made of the examples (held out,
    paired, cut) is counted in training.json. visit(step, model) is called after each of the steps in `visits`; after an
    interruption it may be called again for a step.
    """
    dtype = str(lm.params["embed"].dtype)
    settings = step_settings(train, lm.config, dtype=dtype, lora_config=lora_config, attention=attention, mesh=mesh, seed=seed)
    tuning, opt, microbatches = (settings[name] for name in ("tuning", "optimizer", "microbatches"))
    buckets, size = tuple(train.buckets), int(train.batch_size)
    mine = lm.adapter and lm.adapter.config
    if mine and mine != lora_config:
        raise UserError(
            f"{title}: the model has an adapter ({mine}), and config.train asks for {lora_config or 'full tuning'}. Go on with "
            "the same LoRA settings, or merge the adapter first."
        )
    if lora_config is None:
        trainable, frozen = lm.params, None
    else:
        trainable, frozen = (lm.adapter or lora.init(lora_config, lm.config, jax.random.key(seed))).weights, lm.params
    put = functools.partial(sharding.put, sharding=sharding.batch_sharding(mesh))
    epochs = int(train.get("epochs", 1))
    examples, kept_back = held_out(examples, float(train.get("held_out", 0.0)), seed)
    counts: dict[str, Any] = {"examples": len(examples), "held_out": len(kept_back)}
    held_batches: list[Any] = []
    if method == "kto":
        assert kto is not None
        kto = kto_step.balanced(kto, [e.label for e in examples])
        of = against or lm
        model = digest([identity, reference.fingerprint(of.params, of.adapter)])

        def planned(part: Sequence[Example], name: str, **how: Any) -> tuple[pairing.Plan, dict[str, Any]]:
            plan = pairing.plan(
                [e.label for e in part], [e.prompt_id for e in part], batch_size=size, seed=seed, paired=kto.paired, **how
            )
            slices = how["microbatches"]
            make = functools.partial(reference.compute, of.params, of.adapter, tuning, part, plan, size, buckets, put, slices)
            return plan, reference.cached(directory / name, reference.key(model, part, plan), make)

        how = {"preset": kto.preset, "order": kto.order, "microbatches": microbatches, "epochs": epochs}
        plan, cache = planned(examples, "reference.npz", **how)
        build = kto_step.build(examples, plan, size, buckets, cache, microbatches)
        rows_of = [plan.blocks[b] for b in plan.order]
        partners_of = plan.partners and [plan.partners[b] for b in plan.order]
        step: Any = functools.partial(kto_step.step, kto=kto)
        counts["undesirable_weight"] = kto.undesirable_weight
        counts |= pairing.facts(plan, [e.prompt_id for e in examples])
        if kept_back:
            how = {"preset": "emjax", "order": "shuffled", "microbatches": 1, "epochs": 1}
            held_plan, held_cache = planned(kept_back, "reference_held_out.npz", **how)
            held = kto_step.build(kept_back, held_plan, size, buckets, held_cache)
            held_batches = [held(number) for number in range(len(held_plan.order))]
        evaluate: Any = functools.partial(kto_step.evaluate, kto=kto)
    elif method == "sft":
        rows_of, partners_of = batches.plan([len(e.ids) for e in examples], size, epochs, seed, group=group), None
        build = batches.sft(examples, rows_of, size, buckets)
        step = sft.step
        if kept_back:
            held_rows = batches.plan([len(e.ids) for e in kept_back], size, 1, seed, group=False)
            held_batches = [batches.sft(kept_back, held_rows, size, buckets)(number) for number in range(len(held_rows))]
        evaluate = sft.evaluate
    else:
        raise ValueError(method)
    write_atomically(directory / "training.json", json.dumps(counts | {"steps": len(rows_of)}, indent=1))
    matmuls = metrics.matmul_weights(lm.params)

    def work(step: int, batch: dict[str, Any]) -> dict[str, float]:
        """What a step does (metrics.rates): real tokens and those of padding, of KTO's mismatched rows too."""
        block = [examples[i] for i in rows_of[step]]
        tokens, scored = sum(len(e.ids) for e in block), sum(w > 0 for e in block for w in e.weights)
        kl_tokens = kl_scored = 0
        if partners_of:
            kl_scored = sum(len(examples[j].ids) - examples[j].start for j in partners_of[step])
            # Several microbatches run the prompts, and with them the rows, once more.
            kl_tokens = kl_scored + (tokens if microbatches > 1 else 0)
        padded = batch.get("rows", batch)["tokens"].size * (2 if kl_tokens > kl_scored else 1)
        padded += batch["kl"]["tokens"].size if kl_tokens else 0
        done = metrics.flops(
            matmuls, full=lora_config is None, tokens=tokens, scored=scored, kl_tokens=kl_tokens, kl_scored=kl_scored
        )
        return {"examples": len(block), "tokens": tokens, "flops": done, "padding": 1 - (tokens + kl_tokens) / padded}

    def held_out_loss(state: train_state.State) -> dict[str, jax.Array]:
        sums = [evaluate(state["trainable"], frozen, put(batch), tuning=tuning) for batch in held_batches]
        return {"held_out_loss": sum(total for total, _ in sums) / sum(count for _, count in sums)}

    def made(state: train_state.State) -> LanguageModel:
        if lora_config is None:
            return lm.replace(params=train_state.cast(state["trainable"], tuning.dtype))
        return lm.replace(adapter=lora.Adapter(lora_config, state["trainable"]))

    state = loop.run(
        lambda state, batch, rate: step(state, frozen, batch, rate, **settings),
        train_state.create(trainable, opt, tuning),
        lambda start: batches.serve(build, len(rows_of), start),
        optimizer.learning_rates(_optimizer_config(train), len(rows_of)),
        directory=directory,
        identity=identity,
        put=put,
        examples=lambda step: [examples[i].id for i in rows_of[step]],
        work=work,
        save_every=int(train.save_every),
        title=title,
        dtype=tuning.dtype,
        watch=loop.Watch(**watch),
        evaluate=held_out_loss if held_batches else None,
        about={
            "base": reference.fingerprint(lm.params, lm.adapter), "versions": versions(),
            "config": {"train": json.loads(train.to_json()), "method": method, "seed": seed, "mesh": dict(mesh.shape)},
        },
        visits=visits,
        visit=lambda step, state: visit(step, made(state)),
    )  # fmt: skip
    return made(state)
