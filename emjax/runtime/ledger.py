"""What a run has spent, kept in its work directory, so that a restart does not start its budget
anew.

A call's worst case is written before it is sent, and its cost when it ends. What a killed run left
open counts with its worst case. Several processes may share one file.
"""

import fcntl
import os
import uuid
from pathlib import Path

from emjax.errors import UserError
from emjax.runtime.files import dumps, loads
from emjax.runtime.numbers import finite


class Ledger:
    """At most `usd` over all that reserve here, restarts included.

    file: {"call", "usd"} lines; the last one of a call counts. Raises UserError for a line that
    is no such entry.
    """

    def __init__(self, file: Path, usd: float):
        self.file, self.usd = file, usd
        self._read, self._rest = 0, b""  # bytes read, and those after the last whole line
        self._of: dict[str, float] = {}  # by call

    @property
    def spent(self) -> float:
        """USD so far; what is in flight with its worst case."""
        if self.file.exists():
            with self.file.open("rb") as file:
                self._catch_up(file.fileno())
        return sum(self._of.values())

    def reserve(self, usd: float) -> str | None:
        """The name of a call that may cost as much; None if the cap could be exceeded."""
        call = uuid.uuid4().hex
        return call if self._enter(call, usd, capped=True) else None

    def settle(self, call: str, usd: float) -> None:
        """What a call has cost."""
        self._enter(call, usd, capped=False)

    def _enter(self, call: str, usd: float, *, capped: bool) -> bool:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._catch_up(file.fileno())
            if capped and sum(self._of.values()) + usd > self.usd:
                return False
            # a line that a kill cut short is ended first
            line = (b"\n" if self._rest else b"") + dumps({"call": call, "usd": usd}).encode() + b"\n"
            os.write(file.fileno(), line)
        return True

    def _catch_up(self, file: int) -> None:
        """Reads what was written since, here and elsewhere."""
        new = os.pread(file, os.fstat(file).st_size - self._read, self._read)
        self._read += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in filter(None, lines):
            try:
                row = loads(line)
                self._of[str(row["call"])] = finite(row["usd"], "usd", low=0)
            except (ValueError, KeyError, TypeError, UserError):
                if line.endswith(b"}"):
                    raise UserError(
                        f"{self.file}: {line[:80]!r} is no entry of what was spent. Mend or remove the line."
                    ) from None
