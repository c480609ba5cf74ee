"""How a run of one or several processes stops: SIGTERM, Ctrl-C, failures and hanging processes."""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from emjax.runtime import process


def leave(code: int) -> int:
    """Returns the exit code to the caller. In a run of several processes, a process that failed
    exits at once: a normal exit would wait for the others, which wait for it. The others notice its
    exit and end too. Processes that agreed to stop exit together. After Ctrl-C, a process waits for
    no thread of its own."""
    if _interrupted or process.count > 1 and (code or (_asked and not _agreed)):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


class Stopped(SystemExit):
    """Raised after SIGTERM or Ctrl-C, once everything worth keeping is on disk. It is a SystemExit
    so that no handler treats it as an error.

    Its code is 0 after SIGTERM, which launchers send, and 130 after Ctrl-C.
    """

    def __init__(self) -> None:
        super().__init__(INTERRUPTED if _interrupted else 0)


INTERRUPTED = 130  # the exit code after Ctrl-C, as shells have it
_asked = False  # SIGTERM was received, or Ctrl-C while held
_interrupted = False  # Ctrl-C was pressed
_agreed = False  # all processes stop before the same step
_held = False


def listen() -> None:
    """From now on SIGTERM ends the run with code 0, and Ctrl-C with 130: at once where files are
    written as results arrive, and in training (`held`) after the current step, whose state is
    saved. A second Ctrl-C always ends the run at once."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    # A compilation holds the main thread for minutes, and Python runs handlers between its own
    # instructions only. The C half of a handler writes the signal's number to this pipe at once.
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_interrupts, args=(read,), daemon=True).start()


def _on_sigterm(*_: Any) -> None:
    global _asked
    _asked = True
    check()


def _interrupts(pipe: int) -> None:
    """Ends the process at Ctrl-C. What the stages write survives a kill at any moment, so nothing
    is unwound: no traceback, and no thread that is still in compiled code."""
    global _asked, _interrupted
    while number := os.read(pipe, 1):
        if number[0] != signal.SIGINT:
            continue
        if _interrupted or not _held:
            if not _interrupted:
                _say(STOPPED.format("Ctrl-C"))
            os._exit(INTERRUPTED)
        _interrupted = _asked = True


STOPPED = "Stopped by {}. The same command continues from here."


def stopped() -> str:
    """The line for whoever stopped the run."""
    return STOPPED.format("Ctrl-C" if _interrupted else "SIGTERM")


def _say(line: str) -> None:
    # Not print: the main thread may hold the stream's lock. A bar in a terminal ends in no newline.
    os.write(2, (("\n" if os.isatty(2) else "") + line + "\n").encode())


def check() -> None:
    """Raises Stopped if the run is asked to stop and is not held."""
    if _asked and not _held:
        raise Stopped


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Inside this context SIGTERM and a first Ctrl-C are only recorded; `Stopping` reports them."""
    global _held
    _held = True
    try:
        yield
    finally:
        _held = False


@contextlib.contextmanager
def released() -> Iterator[None]:
    """Within `held`: inside this context SIGTERM ends the run at once, including one received
    earlier."""
    global _held
    _held = False
    try:
        check()
        yield
    finally:
        _held = True


class Stopping:
    """Called before every step; makes all processes stop before the same step.

    A process that was asked to stop names a step that no process has begun. A process waits for the
    metrics of the step before last, so none is more than two steps ahead of another.
    """

    def __init__(self) -> None:
        self._key = f"emjax/stop/{process.turn()}"
        self._at: int | None = None

    def __call__(self, step: int) -> bool:
        if process.count == 1:
            return _asked
        if self._at is None and _asked:
            # The first to name a step decides.
            with contextlib.suppress(Exception):
                process.client().key_value_set(self._key, str(step + 3))
        if self._at is None:
            with contextlib.suppress(Exception):  # no process has named a step
                self._at = int(process.client().key_value_try_get(self._key))
        global _agreed
        _agreed = self._at is not None and step >= self._at
        return _agreed


class Watchdog:
    """Ends this process if no step finishes for `limit` seconds, because another process hangs
    without being dead.

    Each process publishes the step it began last, so the message names the process that fell
    behind.
    """

    def __init__(self, what: str, limit: float):
        self._what, self._limit = what, limit
        self._prefix = f"emjax/steps/{process.turn()}"
        self._last, self._closed = time.monotonic(), threading.Event()
        self._on = process.count > 1 and limit > 0
        if self._on:
            threading.Thread(target=self._watch, daemon=True).start()

    def begin(self, step: int) -> None:
        if self._on:
            process.client().key_value_set(f"{self._prefix}/{process.index}", str(step), allow_overwrite=True)

    def done(self) -> None:
        self._last = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside this context no step is expected."""
        self._last = math.inf
        try:
            yield
        finally:
            self.done()

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(5.0, self._limit / 4)):
            if time.monotonic() - self._last > self._limit:
                steps = {
                    int(key.rsplit("/", 1)[1]): int(step) for key, step in process.client().key_value_dir_get(self._prefix)
                }
                behind = min(range(process.count), key=lambda i: steps.get(i, 0))
                begun = ", ".join(f"process {i}: step {steps.get(i, 0)}" for i in range(process.count))
                print(
                    f"error: {self._what}: no step was finished for {self._limit:g} s (config.watch.stall). Furthest behind is "
                    f"process {behind} (last steps begun: {begun}). Check that host, then start the run again: it "
                    "resumes from its checkpoint.",
                    file=sys.stderr,
                )
                leave(1)
