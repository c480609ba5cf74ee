"""The training loop: dispatch a step, then read the metrics of the previous one."""

import dataclasses
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


@dataclasses.dataclass
class _Reports:
    """Metrics of dispatched steps. One step stays pending while the next one runs."""

    title: str
    lines: metrics.Metrics
    bar: tqdm
    watchdog: stopping.Watchdog
    examples: Callable[[int], list[str]]
    dtype: str
    clock: float = dataclasses.field(default_factory=time.perf_counter)
    _pending: tuple[int, dict[str, jax.Array], dict[str, float]] | None = None

    def take(self, step: int, values: dict[str, jax.Array], done: dict[str, float]) -> None:
        self._pending = (step, values, done)

    def flush(self) -> None:
        """Reads, checks and writes the metrics of the pending step."""
        if self._pending is None:
            return
        step, values, done = self._pending
        self._pending = None
        line = {name: float(value) for name, value in jax.device_get(values).items()}
        if not math.isfinite(line["loss"]):
            ids = self.examples(step - 1)
            raise UserError(
                f"{self.title}: the loss is {line['loss']} at step {step}, on the examples {', '.join(ids[:8])}"
                f"{' ...' if len(ids) > 8 else ''}. Lower config.train.learning_rate, or look at these examples."
            )
        now = time.perf_counter()
        self.lines.write({"step": step, **line, **metrics.rates(done, now - self.clock, self.dtype)})
        self.clock = now
        self.watchdog.done()
        self.bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)
        self.bar.update(1)


@dataclasses.dataclass
class _Trace:
    """A profiler trace from the first to the last of `steps`, written to `folder`."""

    steps: tuple[int, ...]
    folder: Path
    _on: bool = False

    def before(self, step: int) -> None:
        if self.steps and step == self.steps[0]:
            jax.profiler.start_trace(str(self.folder))
            self._on = True

    def after(self, step: int, state: State) -> None:
        if self._on and step == self.steps[1]:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False


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
    """Trains from the latest checkpoint in `directory` through all steps of `learning_rates`, and
    returns the state.

    batches(start) yields host batches from step `start` on; put() moves a batch to the devices;
    examples(step) names the rows of a step; work(step, host batch) returns the counts that
    metrics.rates needs; evaluate(state) is called every `watch.eval_every` steps; `about` is
    written into the checkpoints. visit(step, state) is called after each step in `visits`; it may
    take long and use the devices.

    The state is saved before each visit. SIGTERM ends a visit at once, and the next run repeats
    that visit, even if it had finished. Outside visits, SIGTERM saves the state of the last step
    and raises stopping.Stopped. Raises UserError if the loss is not finite (naming the step and its
    examples) and if `visits` holds a step that does not exist.
    """
    steps = len(learning_rates)
    if beyond := [step for step in visits if not 1 <= step <= steps]:
        raise UserError(f"config.eval.at_steps holds {beyond[0]}, but {title} has steps 1 to {steps}. Choose one of these.")
    there = checkpoint.place(directory, watch.checkpoints, identity)
    checkpoints = Checkpoints(there, identity, about=about, restore=watch.restore)
    state = checkpoints.restore(state)
    start = kept = int(state["step"])  # kept: the last step whose state is on disk
    lines = metrics.Metrics(directory, start, title=title, identity=identity, wandb=watch.wandb)
    bar = tqdm(
        total=steps, initial=start, desc=title, unit="step", mininterval=1.0, dynamic_ncols=True, disable=not process.first()
    )
    stop_asked, watchdog = stopping.Stopping(), stopping.Watchdog(title, watch.stall)
    reports = _Reports(title, lines, bar, watchdog, examples, dtype)
    trace = _Trace(watch.profile, directory / "profile")

    def save(step: int) -> int:
        # Flush first: a state with a non-finite loss must not be saved, and every saved step must
        # have its metrics.
        reports.flush()
        lines.keep()
        checkpoints.save(state, step)
        return step

    def look(step: int) -> None:
        with watchdog.paused(), stopping.released():
            visit(step, state)
        reports.clock = time.perf_counter()

    try:
        with stopping.held():
            if start in visits:
                look(start)
            for step, host_batch in zip(range(start + 1, steps + 1), batches(start), strict=True):
                if stop_asked(step):
                    kept = save(step - 1) if step - 1 > kept else kept
                    checkpoints.wait()
                    raise stopping.Stopped
                trace.before(step)
                watchdog.begin(step)
                state, values = step_fn(state, put(host_batch), learning_rates[step - 1])
                if evaluate and (step % watch.eval_every == 0 or step == steps):
                    values = values | evaluate(state)
                trace.after(step, state)
                reports.flush()
                reports.take(step, values, work(step - 1, host_batch))
                if step in visits or (save_every and step % save_every == 0 and step < steps):
                    kept = save(step)
                if step in visits:
                    # A run that ends during the visit cannot wait for the other processes to write
                    # their parts.
                    checkpoints.wait()
                    look(step)
            reports.flush()
            checkpoints.wait()
    finally:
        trace.close()
        for thing in (watchdog, bar, lines, checkpoints):
            thing.close()
    return state
