"""The training loop: dispatch a step, then read the metrics of the one before."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from emjax.config import Watch
from emjax.errors import UserError
from emjax.runtime import process, stopping
from emjax.train import checkpoint, metrics
from emjax.train.checkpoint import Checkpoints
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
    work: Callable[[int, Any], dict[str, float]],
    save_every: int,
    title: str,
    dtype: str = "float32",
    watch: Watch = Watch(),  # noqa: B008 (it is frozen)
    evaluate: Callable[[State], dict[str, jax.Array]] | None = None,
    about: Mapping[str, Any] | None = None,
    visits: Collection[int] = (),
    visit: Callable[[int, State], None] = lambda step, state: None,
) -> State:
    """Trains from the latest checkpoint in `directory` through all steps of `learning_rates`, and returns the state.

    batches(start) yields host batches from that step on; put() moves one to the devices; examples(step) names a step's rows;
    work(step, host batch) is what metrics.rates needs; evaluate(state) is called every `watch.eval_every` steps; `about` is
    written into the checkpoints. visit(step, state) is called after each of the steps in `visits`; it may take its time and
    use the devices. The state is saved before it: SIGTERM ends a visit at once, and the next run begins with the same visit,
    also where it had come to its end. Elsewhere the state of the last step is saved after SIGTERM, and stopping.Stopped raised.
    Raises UserError where the loss is not finite, naming the step and its examples, and for a visit to a step that is none.
    """
    steps = len(learning_rates)
    if beyond := [step for step in visits if not 1 <= step <= steps]:
        raise UserError(f"config.eval.at_steps holds {beyond[0]}, but {title} has the steps 1 to {steps}. Choose of these.")
    there = checkpoint.place(directory, watch.checkpoints, identity)
    checkpoints = Checkpoints(there, identity, about=about, restore=watch.restore)
    state = checkpoints.restore(state)
    start = kept = int(state["step"])  # kept: the last step whose state is on disk
    lines = metrics.Metrics(directory, start, title=title, identity=identity, wandb=watch.wandb)
    pending: tuple[int, dict[str, jax.Array], dict[str, float]] | None = None
    tracing = False
    clock = time.perf_counter()
    bar = tqdm(
        total=steps, initial=start, desc=title, unit="step", mininterval=1.0, dynamic_ncols=True, disable=not process.first()
    )
    stop_asked, watchdog = stopping.Stopping(), stopping.Watchdog(title, watch.stall)

    def report() -> None:
        nonlocal clock
        if pending is None:
            return
        step, values, done = pending
        line = {name: float(value) for name, value in jax.device_get(values).items()}
        if not math.isfinite(line["loss"]):
            ids = examples(step - 1)
            raise UserError(
                f"{title}: the loss is {line['loss']} at step {step}, on the examples {', '.join(ids[:8])}"
                f"{' ...' if len(ids) > 8 else ''}. Lower config.train.learning_rate, or look at these examples."
            )
        now = time.perf_counter()
        lines.write({"step": step, **line, **metrics.rates(done, now - clock, dtype)})
        clock = now
        watchdog.done()
        bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)
        bar.update(1)

    def save(step: int) -> None:
        nonlocal pending, kept
        report()  # first: a state whose loss is not finite is not kept, and no saved step lacks its metrics
        pending = None
        lines.keep()
        checkpoints.save(state, step)
        kept = step

    def look(step: int) -> None:
        nonlocal clock
        with watchdog.paused(), stopping.released():
            visit(step, state)
        clock = time.perf_counter()

    try:
        with stopping.held():
            if start in visits:
                look(start)
            for step, host_batch in zip(range(start + 1, steps + 1), batches(start), strict=True):
                if stop_asked(step):
                    if step - 1 > kept:
                        save(step - 1)
                    checkpoints.wait()
                    raise stopping.Stopped
                if watch.profile and step == watch.profile[0]:
                    jax.profiler.start_trace(str(directory / "profile"))
                    tracing = True
                watchdog.begin(step)
                state, values = step_fn(state, put(host_batch), learning_rates[step - 1])
                if evaluate and (step % watch.eval_every == 0 or step == steps):
                    values = values | evaluate(state)
                if tracing and step == watch.profile[1]:
                    jax.block_until_ready(state)
                    jax.profiler.stop_trace()
                    tracing = False
                report()
                pending = (step, values, work(step - 1, host_batch))
                if step in visits or (save_every and step % save_every == 0 and step < steps):
                    save(step)
                if step in visits:
                    checkpoints.wait()  # a run that ends in the visit cannot wait for the others to write their parts
                    look(step)
            report()
            checkpoints.wait()
    finally:
        if tracing:
            jax.profiler.stop_trace()
        watchdog.close()
        bar.close()
        lines.close()
        checkpoints.close()
    return state
