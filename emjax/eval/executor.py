"""Runs programs that a model wrote, confined by Linux namespaces (emjax/eval/confine.py)."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from emjax.errors import UserError

_UID = 61_000  # of confined programs if we are root; nobody else's, and one for each worker


class Executor:
    """Runs programs, `workers` at a time (0: one a core). seconds, memory and disk (bytes), and
    processes limit each of them.

    Raises UserError where they cannot be confined: there is no weaker mode.
    """

    def __init__(self, workers: int = 0, *, seconds: float = 5.0, memory: int = 2**30, disk: int = 2**24, processes: int = 8):
        if sys.platform != "linux":
            raise UserError(
                "HumanEval executes what a model wrote, confined by Linux namespaces. Run it on Linux, or leave it out of "
                "config.eval.benchmarks."
            )
        workers = workers or os.cpu_count() or 1
        self._limits = {"seconds": seconds, "memory": memory, "disk": disk, "processes": processes}
        self._uids = [_UID + i if os.geteuid() == 0 else None for i in range(workers)]
        self._slots: asyncio.Queue[int | None] | None = None
        if self._confined("", self._uids[0]) != "passed":  # else every program would seem to fail
            raise UserError(f"Not even an empty program ends well within {self._limits}. Raise these limits.")

    async def run(self, text: str) -> str:
        """passed | failed | timeout | memory."""
        if self._slots is None:
            self._slots = asyncio.Queue()
            for uid in self._uids:
                self._slots.put_nowait(uid)
        uid = await self._slots.get()
        try:
            return await asyncio.to_thread(self._confined, text, uid)
        finally:
            self._slots.put_nowait(uid)

    def _confined(self, text: str, uid: int | None) -> str:
        script = str(Path(__file__).with_name("confine.py"))
        with tempfile.TemporaryDirectory(prefix="emjax-") as root:
            asked = self._limits | {
                "program": text.encode(errors="replace").decode(), "root": root, "uid": uid,
                "prefix": os.path.realpath(sys.base_prefix), "python": os.path.realpath(sys.executable),
            }  # fmt: skip
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, start_new_session=True, env={},
            )  # fmt: skip
            try:
                out, err = process.communicate(json.dumps(asked), timeout=self._limits["seconds"] + 30)
            finally:
                process.kill()  # with it goes the namespace
        if process.returncode or out not in ("passed", "failed", "timeout", "memory"):
            why = err.strip()[-300:] or f"exit code {process.returncode}"
            raise UserError(
                f"A program could not be confined ({why}), so it was not run. HumanEval needs Linux with user namespaces "
                "(kernel 5.14 or later; in a container they may be forbidden): allow them, or leave 'humaneval' out of "
                "config.eval.benchmarks."
            )
        return out
