"""The gate of a world: the items that the untouched model can be asked, frozen as gate.jsonl before
any training."""

import dataclasses
import importlib
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emjax.errors import UserError
from emjax.eval.asker import Asker, EngineAsker
from emjax.eval.items import Item
from emjax.runtime.files import read_lines, write_lines
from emjax.sampling import Engine

FILE = "gate.jsonl"


def freeze(gate: Callable[[Asker], Sequence[Item]], engine: Engine, tokenizer: Any, seed: int, directory: Path) -> None:
    """Asks the gate's questions and writes the items that it lets pass. Raises UserError where none
    does."""
    asker = EngineAsker(engine, tokenizer, seed, "gate", directory / "answers")
    items = gate(asker)
    asker.close()
    if not items:
        raise UserError("The world's gate lets no item pass: this model cannot be asked any of its questions.")
    kinds = [f"{type(item).__module__}:{type(item).__qualname__}" for item in items]
    rows = [{"kind": kind, **dataclasses.asdict(item)} for kind, item in zip(kinds, items, strict=True)]
    write_lines(directory / FILE, rows)


def thaw(directory: Path) -> list[Item]:
    """The items that `freeze` wrote."""
    return [_item(row) for row in read_lines(directory / FILE)]


def _item(row: dict[str, Any]) -> Item:
    module, _, name = row["kind"].partition(":")
    cls: Any = getattr(importlib.import_module(module), name)
    if not issubclass(cls, Item):
        raise UserError(f"{FILE} names the kind {row['kind']!r}, which is no item. Delete the gate's stage to make it again.")
    hints = typing.get_type_hints(cls)
    fields = {name: value for name, value in row.items() if name != "kind"}
    made: dict[str, Any] = {n: tuple(v) if typing.get_origin(hints[n]) is tuple else v for n, v in fields.items()}
    return cls(**made)
