"""JSON-lines files that are written row by row and survive a kill."""

import asyncio
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
    be computed.
    """

    def __init__(self, path: Path):
        self.path = path
        self._partial = path.with_name(path.name + ".journal")
        self.done: dict[str, dict[str, Any]] = {}
        kept = self._partial if self._partial.exists() else path
        if kept.exists():
            whole, _, _ = kept.read_text(encoding="utf-8").rpartition("\n")
            self.done = {row["id"]: row for row in map(loads, whole.split("\n") if whole else [])}
            write_atomically(self._partial, whole + "\n" if whole else "")
        self._open()

    def _open(self) -> None:
        self._file, self._opened = self._partial.open("a", encoding="utf-8"), time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        self.done[row["id"]] = row
        self._file.write(dumps(row) + "\n")
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
