"""Files that survive being killed, JSON lines, and hashes and seeds made from values."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emjax.errors import UserError
from emjax.runtime import process


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def seed_of(*parts: Any) -> int:
    """A 31-bit seed from a name: what is random in a part depends on what it is, never on when it
    runs."""
    return int(digest(list(parts))[:8], 16) & 0x7FFFFFFF


def plain(field: str, name: str) -> str:
    """A name that becomes a file's or a folder's. Raises UserError for one that would lead
    elsewhere."""
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise UserError(
            f"{field} holds the name {name!r}, which becomes a file's: it must not begin with a dot or hold a slash."
        )
    return name


def unfinished(path: Path) -> Path:
    """What write_atomically writes before it takes the place of `path`; a kill may leave it."""
    return path.with_name(path.name + ".partial")


def write_atomically(path: Path, content: str | bytes, *, shared: bool = False) -> None:
    """Of several processes the first one writes. A kill leaves the old file or the new one, a crash
    of the machine as well.

    shared: other runs may write this file at the same time, so what is unfinished has a name that
    none of them takes.
    """
    if not process.first():
        return
    partial = unfinished(path.with_name(f"{path.name}.{secrets.token_hex(4)}") if shared else path)
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


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
