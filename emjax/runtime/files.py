"""Atomic file writes, JSON, JSON lines, and hashes and seeds derived from values."""

import csv
import difflib
import functools
import gzip
import hashlib
import io
import json
import math
import os
import secrets
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from emjax.errors import UserError
from emjax.runtime import process


def dumps(value: Any, *, indent: int | None = None, sort_keys: bool = False, default: Any = None) -> str:
    """The JSON text of a value: one line as UTF-8 has it, an indented one in ASCII. Raises
    ValueError for NaN and infinities, which JSON does not have."""
    return json.dumps(
        value, indent=indent, sort_keys=sort_keys, default=default, ensure_ascii=indent is not None, allow_nan=False
    )


def loads(text: str | bytes) -> Any:
    """The value of a JSON text; a byte-order mark is skipped.

    Raises ValueError for what is not JSON in UTF-8: NaN, Infinity and numbers that a float cannot
    hold, which Python's own reader takes, and nesting that it gives up on.
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits[:40])


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes. A file is read again only if its size or its time of change is
    another than when this process last read it."""
    about = path.stat()
    return _sha256(str(path.resolve()), about.st_size, about.st_mtime_ns, about.st_ino)


@functools.cache
def _sha256(path: str, size: int, mtime_ns: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    write_atomically(path, "".join(dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of `numbered_lines`."""
    return [row for _, row in numbered_lines(path)]


def numbered_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(number, row) of each line of a JSON-lines file, gzipped or not.

    Lines end with \\n and nothing else: a text may hold U+2028. A byte-order mark and empty lines
    are skipped. Raises UserError, which names file and line, for a line that is not a JSON object.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} cannot be unpacked ({error}). Download it again.") from error
    rows = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error}). Correct or remove the line.") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: a JSON object is needed, not {type(row).__name__}.")
        rows.append((number, row))
    return rows


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file in UTF-8, with or without a byte-order mark, by its header. A cell may
    hold 16 MiB.

    Raises UserError for what is not UTF-8 or not CSV, and for a row with more cells than the header
    (they would have no name).
    """
    csv.field_size_limit(2**24)
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV in UTF-8 ({error}). Save it again as such.") from error
    for number, row in enumerate(rows, 1):
        if None in row:
            raise UserError(f"{path}, row {number}: it has more cells than the header. Quote cells that hold commas.")
    return rows


def check_fields(row: Mapping[str, Any], known: Collection[str], where: str, *, others: bool = False) -> None:
    """Raises UserError for a field of `row` that is not among `known`, and names the nearest one.

    A misspelt field would count as missing, and what is missing has a meaning. others: the file may
    have fields of its own, so that one is refused only where it resembles a known field that the
    row lacks. where: file and line; the message begins with it.
    """
    for name in row:
        if name in known:
            continue
        nearest = difflib.get_close_matches(str(name), [one for one in known if not (others and one in row)], n=1, cutoff=0.75)
        if nearest or not others:
            hint = f"Is {nearest[0]!r} meant? " if nearest else ""
            raise UserError(f"{where}: the field {name!r} is unknown. {hint}The fields are {', '.join(known)}.")
