"""The training loop: dispatch a step, then read the metrics of the one before."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from emjax.errors import UserError
from emjax.train.checkpoint import Checkpoints
from emjax.train.metrics import MetricsFile
from emjax.train.state import State

StepFn = Callable[[State, Any, jax.Array], tuple[State, dict[str, jax.Array]]]


def run(
    step_fn: StepFn,
    state: State,
    batches: Callable[[int], Iterator[Any]],
    learning_rates: np.ndarray,
    *,
    directory: Path,
    identity: str,
    put: Callable[[Any], Any],
    examples: Callable[[int], list[str]],
    save_every: int,
    title: str,
) -> State:
    """Trains from the latest checkpoint in `directory` through all steps of `learning_rates`, and returns the state.

    batches(start) yields host batches from that step on; put() moves one to the devices; examples(step) names a step's rows.
    Raises UserError where the loss is not finite, naming the step and its examples.
    """
    steps = len(learning_rates)
    checkpoints = Checkpoints(directory / "checkpoints", identity)
    state = checkpoints.restore(state)
    start = int(state["step"])
    metrics_file = MetricsFile(directory / "metrics.jsonl", start)
    pending: tuple[int, dict[str, jax.Array]] | None = None
    clock = time.perf_counter()
    bar = tqdm(total=steps, initial=start, desc=title, unit="step", mininterval=1.0, dynamic_ncols=True)

    def report() -> None:
        nonlocal clock
        if pending is None:
            return
        step, values = pending
        line = {name: float(value) for name, value in jax.device_get(values).items()}
        if not math.isfinite(line["loss"]):
            ids = examples(step - 1)
            raise UserError(
                f"{title}: the loss is {line['loss']} at step {step}, on the examples {', '.join(ids[:8])}"
                f"{' ...' if len(ids) > 8 else ''}. Lower config.train.learning_rate, or look at these examples."
            )
        now = time.perf_counter()
        metrics_file.write({"step": step, **line, "seconds": round(now - clock, 4)})
        clock = now
        bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)
        bar.update(1)

    try:
        for step, host_batch in zip(range(start + 1, steps + 1), batches(start), strict=True):
            state, values = step_fn(state, put(host_batch), learning_rates[step - 1])
            report()
            pending = (step, values)
            if save_every and step % save_every == 0 and step < steps:
                report()  # first: a state whose loss is not finite is not kept, and no saved step lacks its metrics
                pending = None
                checkpoints.save(state, step)
        report()
    finally:
        bar.close()
        metrics_file.close()
        checkpoints.close()
    return state
