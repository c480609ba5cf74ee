"""Atomic file writes, JSON lines, and hashes and seeds derived from values."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from emjax.errors import UserError
from emjax.runtime import process


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested mappings; an empty one is a value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {prefix + name: value}
    return found


def seed_of(*parts: Any) -> int:
    """A 31-bit seed derived from a name, so that randomness depends on what a part is and never on
    when it runs."""
    return int(digest(list(parts))[:8], 16) & 0x7FFFFFFF


def plain(field: str, name: str) -> str:
    """Returns `name` if it is safe as the name of a file or folder. Raises UserError if it would
    lead to another directory."""
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise UserError(
            f"{field} holds the name {name!r}, which becomes a file name: it must not be empty, begin with a dot or "
            "contain a slash."
        )
    return name


def unfinished(path: Path) -> Path:
    """The temporary file that write_atomically writes before it replaces `path`; a kill may leave
    it behind."""
    return path.with_name(path.name + ".partial")


def write_atomically(path: Path, content: str | bytes, *, shared: bool = False) -> None:
    """Replaces `path` atomically, on process 0 only. A kill or a crash of the machine leaves either
    the old file or the new one.

    shared: other runs may write this file at the same time, so the temporary file gets a unique
    name.
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
    """Reads JSON lines. A line that is not a JSON object raises UserError, which names file and
    line."""
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
