"""Training data prepared by a method (SFT or KTO): batches, step functions and held-out batches."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from emjax.data.batches import Example
from emjax.train import metrics

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Everything in a training run that depends on its method.

    step(state, frozen, batch, learning_rate, **settings) makes one optimizer step;
    evaluate(trainable, frozen, batch, tuning=) returns (sum of losses, number of losses) of one
    batch.
    """

    examples: Sequence[Example]
    rows: Sequence[np.ndarray]  # example indices of each step
    build: Callable[[int], Batch]
    step: Callable[..., Any]
    evaluate: Callable[..., Any]
    held: Sequence[Batch] = ()  # batches that are evaluated and never trained on
    # Example indices of each step's partners, if its rows form mismatched pairs.
    partners: Sequence[np.ndarray] | None = None
    counts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def work(self, matmuls: tuple[int, int], *, full: bool, microbatches: int) -> Callable[[int, Batch], dict[str, float]]:
        """work(step, batch): the counts of a step for metrics.rates. `tokens` excludes padding;
        FLOPs and the padding share include mismatched rows."""

        def of(step: int, batch: Batch) -> dict[str, float]:
            block = [self.examples[i] for i in self.rows[step]]
            tokens, scored = sum(len(e.ids) for e in block), sum(w > 0 for e in block for w in e.weights)
            kl_tokens = kl_scored = 0
            if self.partners:
                kl_scored = sum(len(self.examples[j].ids) - self.examples[j].start for j in self.partners[step])
                # With several microbatches the mismatched pass runs the prompts again.
                kl_tokens = kl_scored + (tokens if microbatches > 1 else 0)
            padded = batch.get("rows", batch)["tokens"].size * (2 if kl_tokens > kl_scored else 1)
            padded += batch["kl"]["tokens"].size if kl_tokens else 0
            done = metrics.flops(matmuls, full=full, tokens=tokens, scored=scored, kl_tokens=kl_tokens, kl_scored=kl_scored)
            return {"examples": len(block), "tokens": tokens, "flops": done, "padding": 1 - (tokens + kl_tokens) / padded}

        return of
