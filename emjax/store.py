"""Stages and their outputs: a content-addressed store, and line files that survive being killed."""

import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

import emjax
from emjax import process
from emjax.errors import UserError

SCRATCH = "checkpoints"  # a stage's folder of what only an unfinished stage needs: no output, and gone soon after
KEPT_S = 30  # a bucket that is mounted has of a file what was there when it was closed, so a journal is closed now and then


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def seed_of(*parts: Any) -> int:
    """A 31-bit seed from a name: what is random in a part depends on what it is, never on when it runs."""
    return int(digest(list(parts))[:8], 16) & 0x7FFFFFFF


def plain(field: str, name: str) -> str:
    """A name that becomes a file's or a folder's. Raises UserError for one that would lead elsewhere."""
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise UserError(
            f"{field} holds the name {name!r}, which becomes a file's: it must not begin with a dot or hold a slash."
        )
    return name


def unfinished(path: Path) -> Path:
    """What write_atomically writes before it takes the place of `path`; a kill may leave it."""
    return path.with_name(path.name + ".partial")


def write_atomically(path: Path, content: str | bytes, *, shared: bool = False) -> None:
    """Of several processes the first one writes. A kill leaves the old file or the new one, a crash of the machine as well.

    shared: other runs may write this file at the same time, so what is unfinished has a name that none of them takes.
    """
    if not process.first():
        return
    partial = unfinished(path.with_name(f"{path.name}.{secrets.token_hex(4)}") if shared else path)
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


# --- locks: one run at a time ----------------------------------------------------------------------------------------

_locks: dict[Path, IO[str]] = {}


def lock(path: Path) -> str:
    """Takes the lock `path` until `unlock` or the end of this process, however it comes: the kernel lets go. Returns "", or
    who has it. On a file system without locks it says so, and the run goes on."""
    if path in _locks:
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            return file.read() or "another process"
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            file.close()
            raise
        _say_unlocked(path.parent, str(error.strerror))
    _locks[path] = file
    file.truncate(0)  # a killed process has left its name
    file.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()
    return ""


@functools.cache  # once
def _say_unlocked(folder: Path, why: str) -> None:
    print(f"{folder} knows no locks ({why}): see to it that no other run writes there meanwhile.", flush=True)


def unlock(path: Path) -> None:
    if file := _locks.pop(path, None):
        with file:
            file.truncate(0)


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Inside, of all runs only this one works on `what`: waits until it has the lock `path`. For all processes to enter."""
    if process.first() and (who := lock(path)):
        print(f"{what}: waiting for {who}", flush=True)
        while lock(path):
            time.sleep(0.5)
    process.together("alone")
    try:
        yield
    finally:
        unlock(path)


# --- stages ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage: where its files are, and the hash that stands for (its config, its inputs)."""

    name: str
    hash: str
    directory: Path


class Store:
    def __init__(self, root: Path):
        self.root = root

    def run(self, name: str, config: dict[str, Any], inputs: Sequence[Stage | str], make: Callable[[Path], None]) -> Stage:
        """Runs make(directory) unless this stage is finished. `inputs`: stages, or hashes of what lies outside the store.

        The manifest is written last, so a stage without one is unfinished: it is run again in the same directory and may go
        on from what it finds there. One that another run is making is waited for. Raises UserError where a finished stage has
        lost a file.
        """
        keys = [i.hash if isinstance(i, Stage) else i for i in inputs]
        identity = digest({"stage": name, "version": emjax.__version__, "config": config, "inputs": keys})
        stage = Stage(name, identity, self.root / name / identity[:16])
        if not self._finished(stage):
            with alone(self.root / "locks" / f"{name}-{identity[:16]}", f"stage {name}"):
                if not self._finished(stage):  # by a run that this one waited for
                    self._make(stage, config, keys, make)
        return stage

    def _finished(self, stage: Stage) -> bool:
        manifest = stage.directory / "manifest.json"
        if not process.on_first(manifest.is_file):
            return False
        for file, size in json.loads(manifest.read_text())["files"].items():
            path = stage.directory / file
            if not path.is_file() or path.stat().st_size != size:
                raise UserError(
                    f"{path} is missing or was changed since the stage {stage.name!r} finished. Delete the folder "
                    f"{stage.directory} to have it made again."
                )
        return True

    def _make(self, stage: Stage, config: dict[str, Any], keys: list[str], make: Callable[[Path], None]) -> None:
        process.on_first(lambda: stage.directory.mkdir(parents=True, exist_ok=True))
        if not stage.directory.is_dir():
            raise UserError(
                f"Process {process.index} of {process.count} does not see {stage.directory}, which process 0 has made. Several "
                "hosts need a --workdir and --store on a file system that all of them share."
            )
        make(stage.directory)
        process.together("stage")
        process.on_first(lambda: self._finish(stage, config, keys))

    def _finish(self, stage: Stage, config: dict[str, Any], keys: list[str]) -> None:
        files = sorted(p.relative_to(stage.directory) for p in stage.directory.rglob("*") if p.is_file())
        sizes = {str(p): (stage.directory / p).stat().st_size for p in files if p.parts[0] != SCRATCH}
        written = {
            "stage": stage.name,
            "hash": stage.hash,
            "version": emjax.__version__,
            "config": config,
            "inputs": keys,
            "files": sizes,
        }
        write_atomically(stage.directory / "manifest.json", json.dumps(written, indent=1, sort_keys=True))


# --- line files ------------------------------------------------------------------------------------------------------


class Journal:
    """JSON lines, each appended as soon as it is known; `finish` sorts them by id into the final file.

    Opening one again after a kill gives back every whole line, so that only what is missing is done.
    """

    def __init__(self, path: Path):
        self.path = path
        self._partial = path.with_name(path.name + ".journal")
        self.done: dict[str, dict[str, Any]] = {}
        kept = self._partial if self._partial.exists() else path
        if kept.exists():
            whole, _, _ = kept.read_text(encoding="utf-8").rpartition("\n")
            self.done = {row["id"]: row for row in map(json.loads, whole.split("\n") if whole else [])}
            write_atomically(self._partial, whole + "\n" if whole else "")
        self._open()

    def _open(self) -> None:
        self._file, self._opened = self._partial.open("a", encoding="utf-8"), time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        self.done[row["id"]] = row
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        if time.monotonic() - self._opened > KEPT_S:
            self._file.close()
            self._open()
        process.check()

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
    """one(thing) for all things at once, each row written to `path`'s journal as it comes; rows sorted by id.

    A row's id must be name(thing). Killed and called again, it does only what is missing, and rows of which again(row).
    """
    journal = Journal(path)
    waiting = [thing for thing in things if name(thing) not in journal.done or again(journal.done[name(thing)])]
    bar = tqdm(total=len(things), initial=len(things) - len(waiting), desc=title, unit=unit, mininterval=1.0)

    async def record(thing: Any) -> None:
        journal.add(await one(thing))
        bar.update(1)

    async def all_of_them() -> None:
        # gather, not a task group: the first error comes out as itself, and ends the run.
        await asyncio.gather(*(record(thing) for thing in waiting))

    asyncio.run(all_of_them())
    bar.close()
    return journal.finish()


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines; a line that is not a JSON object raises UserError naming file and line."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not valid JSON ({error}). Correct or remove the line.") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: a JSON object is needed, not {type(row).__name__}.")
            rows.append(row)
    return rows


def remove(directory: Path) -> None:
    if process.first() and directory.exists():
        shutil.rmtree(directory)
