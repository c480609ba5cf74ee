"""A model and examples -> a tuned model, by SFT or KTO; an interrupted training continues where it
stopped."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from emjax.config import KtoConfig, LoraConfig, TrainConfig, Watch, as_dict
from emjax.data import batches, chat
from emjax.data.batches import Example
from emjax.data.examples import held_out
from emjax.errors import UserError
from emjax.experiment.common import versions
from emjax.kto import reference
from emjax.kto import training as kto_training
from emjax.models import LanguageModel, lora, sharding
from emjax.models.config import ModelConfig
from emjax.runtime.files import dumps, write_atomically
from emjax.train import loop, metrics, optimizer, sft
from emjax.train import state as train_state
from emjax.train.prepared import Prepared
from emjax.train.state import Tuning


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained: everything but the model and the examples."""

    train: TrainConfig
    mesh: jax.sharding.Mesh
    seed: int
    kto: KtoConfig = KtoConfig()
    watch: Watch = Watch()
    attention: str = "xla"
    group: bool = False  # SFT: rows of like length share a batch

    @property
    def lora(self) -> LoraConfig | None:
        """The adapter; None where all weights are trained."""
        return None if self.train.tuning == "full" else self.train.lora

    def settings(self, shape: ModelConfig, dtype: str) -> dict[str, Any]:
        """The static arguments of a training step. Raises UserError where a batch does not spread
        evenly over the mesh."""
        size, microbatches = self.train.batch_size, self.train.microbatches
        rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"] * microbatches
        if size % rows:
            raise UserError(
                f"config.train.batch_size is {size}; it must be a multiple of {rows}, the product of the mesh's data "
                "and fsdp sizes and config.train.microbatches. Change it, or give devices to config.mesh.tensor."
            )
        return {
            "tuning": Tuning(shape, self.lora, self.attention, self.train.remat, self.mesh, self.seed, dtype),
            "optimizer": optimizer.from_config(self.train),
            "microbatches": microbatches,
        }


@dataclasses.dataclass(frozen=True)
class Visits:
    """Calls call(step, model) after each of the steps `at`; after an interruption it may be called
    again for a step."""

    at: tuple[int, ...] = ()
    call: Callable[[int, LanguageModel], None] = lambda step, lm: None


def fit(
    lm: LanguageModel,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    directory: Path,
    identity: str,
    title: str,
    against: LanguageModel | None = None,
    visits: Visits = Visits(),  # noqa: B008 (it is frozen)
) -> LanguageModel:
    """Trains `lm` (its adapter, or all of it) on `examples`, resuming from `directory` where it was
    interrupted.

    An adapter continues from lm's own, or starts at zero. KTO's reference is `against`, or else
    `lm` as it is now: the base, the adapter of the round before (iterated self-training), or the
    full weights. training.json counts what became of the examples (held out, paired, cut).
    """
    train, mesh = recipe.train, recipe.mesh
    settings = recipe.settings(lm.config, str(lm.params["embed"].dtype))
    tuning: Tuning = settings["tuning"]
    trainable, frozen = _split(lm, recipe, title)
    put = functools.partial(sharding.put, sharding=sharding.batch_sharding(mesh))
    for example in examples:
        chat.check_ids(f"Training example {example.id!r}", example.ids, lm.config.V)
    examples, kept_back = held_out(examples, train.held_out, recipe.seed)
    made: Prepared
    if train.method == "kto":
        where = kto_training.Where(tuning, put, directory, identity)
        made = kto_training.prepare(examples, kept_back, train, recipe.kto, recipe.seed, against or lm, where)
    else:
        made = sft.prepare(examples, kept_back, train, recipe.seed, group=recipe.group)
    counts = {"examples": len(examples), "held_out": len(kept_back), **made.counts, "steps": len(made.rows)}
    write_atomically(directory / "training.json", dumps(counts, indent=1))

    def held_out_loss(state: train_state.State) -> dict[str, jax.Array]:
        sums = [made.evaluate(state["trainable"], frozen, put(batch), tuning=tuning) for batch in made.held]
        return {"held_out_loss": sum(total for total, _ in sums) / sum(count for _, count in sums)}

    def tuned(state: train_state.State) -> LanguageModel:
        if recipe.lora is None:
            return lm.replace(params=train_state.cast(state["trainable"], tuning.dtype))
        return lm.replace(adapter=lora.Adapter(recipe.lora, state["trainable"]))

    state = loop.run(
        lambda state, batch, rate: made.step(state, frozen, batch, rate, **settings),
        train_state.create(trainable, settings["optimizer"], tuning),
        lambda start: batches.serve(made.build, len(made.rows), start),
        optimizer.learning_rates(train, len(made.rows)),
        directory=directory,
        identity=identity,
        put=put,
        examples=lambda step: [examples[i].id for i in made.rows[step]],
        work=made.work(metrics.matmul_weights(lm.params), full=recipe.lora is None, microbatches=train.microbatches),
        save_every=train.save_every,
        title=title,
        dtype=tuning.dtype,
        watch=recipe.watch,
        evaluate=held_out_loss if made.held else None,
        about=_about(lm, recipe),
        visits=visits.at,
        visit=lambda step, state: visits.call(step, tuned(state)),
    )
    return tuned(state)


def _about(lm: LanguageModel, recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint says of the run that wrote it."""
    return {
        "base": reference.fingerprint(lm.params, lm.adapter),
        "versions": versions(),
        "config": {"train": as_dict(recipe.train), "seed": recipe.seed, "mesh": dict(recipe.mesh.shape)},
    }


def _split(lm: LanguageModel, recipe: Recipe, title: str) -> tuple[Any, Any]:
    """(the tree that is trained, the frozen base or None)."""
    own = lm.adapter and lm.adapter.config
    if own and own != recipe.lora:
        raise UserError(
            f"{title}: the model has an adapter ({own}), and config.train asks for {recipe.lora or 'full tuning'}. Continue "
            "with the same LoRA settings, or merge the adapter first."
        )
    if recipe.lora is None:
        return lm.params, None
    return (lm.adapter or lora.init(recipe.lora, lm.config, jax.random.key(recipe.seed))).weights, lm.params
