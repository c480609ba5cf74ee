"""The reference model's log-probs, computed once and kept: valid while model, rows and pairing stay the same."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.kto import step as kto_step
from emjax.models.lora import Adapter
from emjax.train.logprobs import sequence_logprobs
from emjax.train.state import Tuning

Put = Callable[[Any], Any]


@functools.partial(jax.jit, static_argnames="tuning")
def pair(params: Any, adapter: Adapter | None, rows: Any, kl_rows: Any, *, tuning: Tuning) -> tuple[jax.Array, jax.Array]:
    """Sequence log-probs of the matched and of the mismatched rows, two float32 [B]."""
    score = functools.partial(sequence_logprobs, tuning.config, params, adapter, implementation=tuning.implementation)
    return score(rows), score(kl_rows)


def key(model: str, examples: Sequence[Example], blocks: Sequence[np.ndarray], partners: Sequence[np.ndarray]) -> str:
    """What a cache is valid for: the reference model's fingerprint, every token and weight, and who is paired with whom."""
    digest = hashlib.sha256(model.encode())
    for block, partner in zip(blocks, partners, strict=True):
        digest.update(block.astype(np.int64).tobytes() + b"|" + partner.astype(np.int64).tobytes())
    for e in examples:
        digest.update(repr((e.id, e.ids, e.weights, e.start)).encode())
    return digest.hexdigest()


def compute(
    params: Any,
    adapter: Adapter | None,
    tuning: Tuning,
    examples: Sequence[Example],
    blocks: Sequence[np.ndarray],
    partners: Sequence[np.ndarray],
    size: int,
    buckets: Sequence[int],
    put: Put,
) -> dict[str, np.ndarray]:
    """{"reference", "reference_kl"}: float32 [blocks, size], rows of padding 0."""
    matched, mismatched = [], []
    for block, partner in zip(blocks, partners, strict=True):
        made = kto_step.batch(examples, block, partner, size, buckets)
        a, b = pair(params, adapter, put(made["rows"]), put(made["kl_rows"]), tuning=tuning)
        matched.append(a)
        mismatched.append(b)
    found = {
        "reference": np.stack(jax.device_get(matched)),
        "reference_kl": np.stack(jax.device_get(mismatched)),
    }
    for name, values in found.items():
        if not np.isfinite(values).all():
            b, row = np.argwhere(~np.isfinite(values))[0]
            raise UserError(
                f"The reference model gives example {examples[blocks[b][row]].id!r} a {name} log-probability of "
                f"{values[b, row]}: the log-ratio would be undefined. Check that example's tokens and the reference weights."
            )
    return found


def cached(path: Path, wanted: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Reads the log-probs at `path`, or makes and writes them; a file made for another key is refused."""
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        if str(found.pop("key")) != wanted:
            raise UserError(
                f"{path} holds reference log-probs of another model, data set or pairing. It would make every log-ratio wrong; "
                "delete the file, or use another --workdir."
            )
        return found
    made = make()
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, key=np.array(wanted), **made)  # type: ignore[arg-type]
    partial.replace(path)
    return made
