"""Typed sections of a configuration: a field has a default, a line of documentation, a unit and
checks."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of a field beside its type and default."""

    doc: str
    unit: str = ""
    choices: tuple[str, ...] = ()  # of a text, or of each text of a tuple
    low: float = -math.inf  # of a number, or of each number of a tuple or dict
    high: float = math.inf
    above: float = -math.inf  # like low, but exclusive
    below: float = math.inf
    # what must exist here if the field is set: "file", "folder", "place" (a folder or hub id) or
    # "variable"
    needs: str = ""
    under: str = ""  # the name of that file or folder below --data_root
    # how fast, for how much or how closely watched: may differ in a finished run
    pace: bool = False
    played: bool = False  # only users that a model plays read it
    open: bool = False  # sections whose names and types are declared elsewhere


def option(default: Any, doc: str, **known: Any) -> Any:
    """A field of a Section. `known`: the fields of Option. A dict or list is the default of each
    instance."""
    metadata = {"option": Option(doc, **known)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the configuration. Making one with a wrong value raises UserError, which begins
    with the field's name."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), field.metadata["option"])
        self.check()

    def check(self) -> None:
        """Checks what several fields decide together. A message begins with a field's name."""


def _check(name: str, value: Any, known: Option) -> None:
    for one in value if isinstance(value, tuple) else value.values() if isinstance(value, dict) else (value,):
        if isinstance(one, Section) or one is None:
            continue
        if known.choices and one not in known.choices:
            held = f"holds {one!r}" if isinstance(value, tuple) else f"is {one!r}"
            raise UserError(f"{name} {held}; choose {', '.join(filter(None, known.choices))}.")
        if isinstance(one, int | float) and not isinstance(one, bool) and not _within(one, known):
            raise UserError(f"{name} is {value!r}; it must be {_range(known)}.")


def _within(value: float, known: Option) -> bool:
    return known.low <= value <= known.high and known.above < value < known.below and math.isfinite(value)


def _range(known: Option) -> str:
    ends = [
        *([f"at least {known.low:g}"] if known.low > -math.inf else []),
        *([f"above {known.above:g}"] if known.above > -math.inf else []),
        *([f"at most {known.high:g}"] if known.high < math.inf else []),
        *([f"below {known.below:g}"] if known.below < math.inf else []),
    ]
    return " and ".join(ends) or "a finite number"


def options(section: Section) -> Iterator[tuple[str, Any, Option]]:
    """(name, value, Option) of each field."""
    for field in dataclasses.fields(section):
        yield field.name, getattr(section, field.name), field.metadata["option"]


def walk(section: Section, prefix: str = "config") -> Iterator[tuple[str, Any, Option]]:
    """(full name, value, Option) of each field that is no section itself, in order of declaration.

    An Option is marked as `pace` or `played` where the section that holds it is.
    """
    for name, value, known in options(section):
        at = prefix if known.open else f"{prefix}.{name}"
        parts = {at: value} if isinstance(value, Section) else {}
        if isinstance(value, dict) and any(isinstance(one, Section) for one in value.values()):
            parts = {f"{at}.{key}": one for key, one in value.items()}
        if parts or known.open:
            for inner, part in parts.items():
                for full, one, its in walk(part, inner):
                    yield full, one, dataclasses.replace(its, pace=its.pace or known.pace, played=its.played or known.played)
        else:
            yield at, value, known


def as_dict(section: Section) -> dict[str, Any]:
    """The section as JSON values, in the shape that a user writes it."""
    plain: dict[str, Any] = {}
    for name, value, known in options(section):
        if known.open:
            plain |= {key: as_dict(one) for key, one in value.items()}
        else:
            plain[name] = _json(value)
    return plain


def _json(value: Any) -> Any:
    if isinstance(value, Section):
        return as_dict(value)
    if isinstance(value, dict):
        return {key: _json(one) for key, one in value.items()}
    return [_json(one) for one in value] if isinstance(value, tuple) else value


def is_local(text: str) -> bool:
    """Whether it can only be a path on this machine, and no hub id (OWNER/NAME)."""
    return text.startswith((".", "/", "~")) or text.count("/") != 1


def missing(section: Section, environment: Sequence[str] | dict[str, str], prefix: str = "config") -> list[str]:
    """A sentence for each file, folder or environment variable that a field names and that is not
    here."""
    found = []
    for name, value, known in walk(section, prefix):
        for one in value if isinstance(value, tuple) else (value,):
            if not one or not known.needs or not isinstance(one, str):
                continue
            kind = "folder" if known.needs == "place" and is_local(one) else known.needs
            there = {"file": Path(one).is_file, "folder": Path(one).is_dir}.get(kind, lambda: True)
            if known.needs == "variable" and one not in environment:
                found.append(f"{name}: the environment variable {one} is not set; put the key there.")
            elif not there():
                found.append(f"{name}: there is no {kind} {one}.")
    return found
