"""KTO's part of a training run: pairs, cached reference log-probs, batches and the step."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emjax.config import KtoConfig, TrainConfig
from emjax.data.batches import Example
from emjax.kto import pairing, reference
from emjax.kto import step as kto_step
from emjax.models import LanguageModel
from emjax.runtime.files import digest
from emjax.train.prepared import Prepared
from emjax.train.state import Tuning


@dataclasses.dataclass(frozen=True)
class Where:
    """How and where the reference log-probs are computed and cached."""

    tuning: Tuning
    put: Callable[[Any], Any]  # a host batch to the devices
    directory: Path
    identity: str  # of the run


def prepare(
    examples: Sequence[Example],
    held_out: Sequence[Example],
    train: TrainConfig,
    kto: KtoConfig,
    seed: int,
    against: LanguageModel,
    where: Where,
) -> Prepared:
    """Batches for kto.step with the log-probs of the reference `against`, which are cached in
    where.directory.

    Raises UserError if no mismatched pairs exist or if a label that kto.balance needs is absent.
    """
    kto = kto_step.balanced(kto, [e.label for e in examples])
    model = digest([where.identity, reference.fingerprint(against.params, against.adapter)])
    size, buckets = train.batch_size, train.buckets

    def planned(part: Sequence[Example], name: str, **how: Any) -> tuple[pairing.Plan, dict[str, np.ndarray]]:
        labels, prompts = [e.label for e in part], [e.prompt_id for e in part]
        plan = pairing.plan(labels, prompts, batch_size=size, seed=seed, paired=kto.paired, **how)
        make = functools.partial(
            reference.compute,
            against.params,
            against.adapter,
            where.tuning,
            part,
            plan,
            size,
            buckets,
            where.put,
            how["microbatches"],
        )
        return plan, reference.cached(where.directory / name, reference.key(model, part, plan), make)

    parts = train.microbatches
    plan, cache = planned(
        examples, "reference.npz", preset=kto.preset, order=kto.order, microbatches=parts, epochs=train.epochs
    )
    held = []
    if held_out:
        once = {"preset": "emjax", "order": "shuffled", "microbatches": 1, "epochs": 1}
        held_plan, held_cache = planned(held_out, "reference_held_out.npz", **once)
        build = kto_step.build(held_out, held_plan, size, buckets, held_cache)
        held = [build(number) for number in range(len(held_plan.order))]
    return Prepared(
        examples,
        [plan.blocks[b] for b in plan.order],
        kto_step.build(examples, plan, size, buckets, cache, train.microbatches),
        functools.partial(kto_step.step, kto=kto),
        functools.partial(kto_step.evaluate, kto=kto),
        held,
        plan.partners and [plan.partners[b] for b in plan.order],
        {"undesirable_weight": kto.undesirable_weight} | pairing.facts(plan, [e.prompt_id for e in examples]),
    )
