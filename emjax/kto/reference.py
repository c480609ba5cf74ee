"""The reference model's log-probs, computed once and cached. The cache is valid as long as model,
rows and pairing stay the same."""

import functools
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.kto import step as kto_step
from emjax.kto.pairing import Plan
from emjax.models.lora import Adapter
from emjax.runtime import process
from emjax.runtime.files import write_atomically
from emjax.train import state as train_state
from emjax.train.state import Tuning

Put = Callable[[Any], Any]


@functools.partial(jax.jit, static_argnames=("tuning", "microbatches"))
def score(
    params: Any, adapter: Adapter | None, batch: kto_step.Batch, *, tuning: Tuning, microbatches: int = 1
) -> dict[str, jax.Array]:
    """The reference's sequence log-probs, float32 [B] each: {"reference", and "reference_kl" if
    rows are paired}.

    The batch is cut into the same microbatches as the policy's, because the rounding of a matrix
    product may depend on its number of rows.
    """

    def one(part: kto_step.Batch) -> dict[str, jax.Array]:
        found = kto_step.logprobs(params, adapter, part, tuning.config, tuning.scoring)
        if tuning.mesh is not None:  # replicated, so that every host can read it
            found = jax.lax.with_sharding_constraint(found, NamedSharding(tuning.mesh, P()))
        return dict(zip(("reference", "reference_kl"), found, strict=False))

    if microbatches == 1:
        return one(batch)
    return train_state.join(jax.lax.map(one, train_state.split(batch, microbatches)))


def fingerprint(params: Any, adapter: Adapter | None) -> str:
    """A checksum of every weight and of the adapter's settings."""
    return train_state.checksum((params, adapter), adapter and adapter.config)


def key(model: str, examples: Sequence[Example], plan: Plan) -> str:
    """The cache key: a hash of the reference model's fingerprint, every token and weight, and the
    pairing."""
    digest = hashlib.sha256(model.encode())
    for rows in (plan.blocks, plan.partners or []):
        for row in rows:
            digest.update(row.astype(np.int64).tobytes() + b"|")
    for e in examples:
        digest.update(repr((e.id, e.ids, e.weights, e.start)).encode())
    return digest.hexdigest()


def compute(
    params: Any,
    adapter: Adapter | None,
    tuning: Tuning,
    examples: Sequence[Example],
    plan: Plan,
    size: int,
    buckets: Sequence[int],
    put: Put,
    microbatches: int = 1,
) -> dict[str, np.ndarray]:
    """{"reference", and "reference_kl" if rows are paired}: float32 [blocks, size]; padding rows
    are 0."""
    scored = []
    for number, block in enumerate(plan.blocks):
        made = kto_step.batch(examples, block, plan.partners[number] if plan.partners else None, size, buckets)
        scored.append(score(params, adapter, put(made), tuning=tuning, microbatches=microbatches))
    found = jax.tree.map(lambda *parts: np.stack(parts), *jax.device_get(scored))
    for name, values in found.items():
        if not np.isfinite(values).all():
            b, row = np.argwhere(~np.isfinite(values))[0]
            raise UserError(
                f"The reference model gives example {examples[plan.blocks[b][row]].id!r} a {name} log-probability of "
                f"{values[b, row]}, so the log-ratio is undefined. Check this example's tokens and the reference weights."
            )
    return found


def cached(path: Path, wanted: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Reads the log-probs at `path`, or computes and writes them. Raises UserError for a file with
    another key."""
    if process.on_first(path.exists):
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        if str(found.pop("key")) != wanted:
            raise UserError(
                f"{path} holds reference log-probs of another model, data set or pairing. They would make every log-ratio "
                "wrong; delete the file, or use another --workdir."
            )
        return found
    made = make()
    whole = io.BytesIO()
    np.savez(whole, key=np.array(wanted), **made)  # type: ignore[arg-type]
    write_atomically(path, whole.getvalue())
    return made
