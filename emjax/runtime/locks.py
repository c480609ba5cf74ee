"""File locks, so that only one run at a time works in a directory."""

import contextlib
import errno
import fcntl
import functools
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from emjax.runtime import process

_locks: dict[Path, IO[str]] = {}


def lock(path: Path) -> str:
    """Takes the lock `path` until `unlock` or until this process ends for any reason: the kernel
    releases it. Returns "", or a description of the holder. On a file system without locks it
    prints a warning and continues."""
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
    file.truncate(0)  # a killed process leaves its name behind
    file.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()
    return ""


@functools.cache  # once
def _say_unlocked(folder: Path, why: str) -> None:
    print(f"{folder} does not support locks ({why}): make sure that no other run writes there at the same time.", flush=True)


def unlock(path: Path) -> None:
    if file := _locks.pop(path, None):
        with file:
            file.truncate(0)


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Inside this context only one run works on `what`. Waits for the lock `path`. All processes of
    the run must enter it."""
    if process.first() and (who := lock(path)):
        print(f"{what}: waiting for {who}", flush=True)
        while lock(path):
            time.sleep(0.5)
    process.together("alone")
    try:
        yield
    finally:
        unlock(path)
