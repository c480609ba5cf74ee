"""JSON-lines files that are written row by row and survive a kill."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emjax.runtime import stopping
from emjax.runtime.files import dumps, loads, write_atomically, write_lines

# A mounted bucket stores a file's content only when the file is closed, so the journal is reopened
# whenever this many seconds have passed.
KEPT_S = 30


class Journal:
    """JSON lines, each appended as soon as it is known. `finish` sorts them by id into the final
    file.

    Reopening a journal after a kill restores every complete line, so that only missing rows need to
    be computed. Each line ends in its digest; a damaged one is said, and its row computed again.
    """

    def __init__(self, path: Path):
        self.path = path
        self._partial = path.with_name(path.name + ".journal")
        self.done: dict[str, dict[str, Any]] = {}
        kept = self._partial if self._partial.exists() else path
        if kept.exists():
            self._restore(kept)
        self._open()

    def _restore(self, kept: Path) -> None:
        # In bytes: a full disk may cut inside a character.
        whole, newline, _ = kept.read_bytes().rpartition(b"\n")
        damaged = 0
        for line in whole.split(b"\n") if newline else []:
            row = _row(line)
            if row is None:
                damaged += 1
            else:
                self.done[row["id"]] = row
        if damaged:
            print(f"{kept}: {damaged} damaged lines; their rows are made again.", flush=True)
        write_atomically(self._partial, b"".join(map(_line, self.done.values())))

    def _open(self) -> None:
        self._file, self._opened = self._partial.open("ab"), time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        self.done[row["id"]] = row
        self._file.write(_line(row))
        self._file.flush()
        if time.monotonic() - self._opened > KEPT_S:
            self._file.close()
            self._open()
        stopping.check()

    def finish(self) -> list[dict[str, Any]]:
        self._file.close()
        rows = [self.done[key] for key in sorted(self.done)]
        write_lines(self.path, rows)
        self._partial.unlink()
        return rows


def _line(row: dict[str, Any]) -> bytes:
    """The row, a tab (which JSON has only as an escape), and half of the row's SHA-256."""
    text = dumps(row).encode()
    return text + b"\t" + hashlib.sha256(text).hexdigest()[:32].encode() + b"\n"


def _row(line: bytes) -> dict[str, Any] | None:
    """The row of a line, None if damaged. A finished file's lines have no digest."""
    text, tab, known = line.partition(b"\t")
    if tab and hashlib.sha256(text).hexdigest()[:32].encode() != known:
        return None
    try:
        row = loads(text)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("id"), str) else None


def journalled(
    things: Sequence[Any],
    name: Callable[[Any], str],
    one: Callable[[Any], Awaitable[dict[str, Any]]],
    path: Path,
    title: str,
    unit: str,
    again: Callable[[dict[str, Any]], bool] = lambda row: False,
) -> list[dict[str, Any]]:
    """Runs one(thing) for all things concurrently and writes each row to `path`'s journal as it
    completes. Returns the rows sorted by id.

    A row's id must be name(thing). Called again after a kill, it computes only missing rows and
    rows for which again(row) is true.
    """
    journal = Journal(path)
    waiting = [thing for thing in things if name(thing) not in journal.done or again(journal.done[name(thing)])]
    bar = tqdm(total=len(things), initial=len(things) - len(waiting), desc=title, unit=unit, mininterval=1.0)

    async def record(thing: Any) -> None:
        journal.add(await one(thing))
        bar.update(1)

    async def all_of_them() -> None:
        # gather, not a task group: the first error propagates unwrapped and ends the run.
        await asyncio.gather(*(record(thing) for thing in waiting))

    asyncio.run(all_of_them())
    bar.close()
    return journal.finish()
