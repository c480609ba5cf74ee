"""ml_collections' ConfigDict, which users edit and override, to typed sections and back: the only
importer of it."""

import dataclasses
import functools
import importlib.util
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, Union

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from emjax.config.experiments import EXPERIMENTS, GridConfig
from emjax.config.fields import Section
from emjax.errors import UserError

S = TypeVar("S", bound=Section)
# "eval" or "worlds" -> {name: its section's type}
Kinds = Mapping[str, Mapping[str, type[Section]]]


# --- from users -----------------------------------------------------------------------------------


def parse(given: ConfigDict, kinds: Callable[[Mapping[str, Any]], Kinds], where: str = "config") -> Section:
    """The typed configuration of an experiment.

    kinds(values): the types of the sections that benchmarks and worlds declare. Raises UserError
    for an unknown name, a value of another type, out of range or at odds with another, in one
    sentence that names the field.
    """
    plain = _plain(given)
    kind = plain.get("experiment")
    if kind not in EXPERIMENTS:
        raise UserError(f"{where}.experiment is {kind!r}; choose {', '.join(EXPERIMENTS)}.")
    if kind == "grid":
        cells = {name: parse(given.cells[name], kinds, f"{where}.cells.{name}") for name in plain.get("cells", {})}
        return section(GridConfig, plain | {"cells": {}}, {}, where, cells=cells)
    return section(EXPERIMENTS[kind], plain, kinds(plain), where)


def _plain(given: Any) -> Any:
    if isinstance(given, ConfigDict):
        return {name: _plain(value) for name, value in given.items()}
    return tuple(map(_plain, given)) if isinstance(given, list | tuple) else given


def section(cls: type[S], given: Mapping[str, Any], kinds: Kinds, where: str, **made: Any) -> S:
    """A section of type `cls` from plain values; `made`: fields that are made already."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    opened = next((name for name, field in fields.items() if field.metadata["option"].open), "")
    known = kinds.get(where.rpartition(".")[2], {}) if opened else {}
    for name in given:
        if name not in fields and name not in known or name == opened:
            choices = ", ".join([*(field for field in fields if field != opened), *known])
            raise UserError(f"{where}.{name} is unknown; {where} has {choices}.")
    values = dict(made)
    for name, value in given.items():
        if name in fields and name not in made:
            values[name] = _value(hints[name], value, kinds, f"{where}.{name}")
    if opened:
        values[opened] = {
            name: section(known[name], value, kinds, f"{where}.{name}") for name, value in given.items() if name in known
        }
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{where}.{error}") from error


def _value(hint: Any, value: Any, kinds: Kinds, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        options = [one for one in inner if one is not type(None)]
        if len(options) == 1:
            return _value(options[0], value, kinds, where)
        by_kind = {_kind(one): one for one in options}
        if not isinstance(value, Mapping) or value.get("kind") not in by_kind:
            kind = value.get("kind") if isinstance(value, Mapping) else value
            raise UserError(f"{where}.kind is {kind!r}; choose {', '.join(by_kind)}.")
        return section(by_kind[value["kind"]], value, kinds, where)
    if isinstance(hint, type) and issubclass(hint, Section):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}; it has the fields {', '.join(f.name for f in dataclasses.fields(hint))}.")
        return section(hint, value, kinds, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}; names with values are needed.")
        return {name: _value(inner[1], one, kinds, f"{where}.{name}") for name, one in value.items()}
    if origin is tuple:
        if not isinstance(value, tuple):
            raise UserError(f"{where} is {value!r}; give a tuple, such as ({value!r},).")
        return tuple(_value(inner[0], one, kinds, where) for one in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where} is {value!r}; {_NEEDED[hint]} is needed.")
    return value


_NEEDED = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}


def _kind(cls: type[Section]) -> str:
    return str(next(field.default for field in dataclasses.fields(cls) if field.name == "kind"))


# --- to users -------------------------------------------------------------------------------------


def to_config_dict(given: Section) -> ConfigDict:
    """A section with its values as users edit and override it."""
    made = ConfigDict()
    hints = typing.get_type_hints(type(given))
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.metadata["option"].open:
            for name, one in value.items():
                made[name] = to_config_dict(one)
        elif value is None:
            (kind,) = (one for one in typing.get_args(hints[field.name]) if one is not type(None))
            made[field.name] = config_dict.placeholder(kind)
        else:
            made[field.name] = _open(value)
    return made


def _open(value: Any) -> Any:
    if isinstance(value, Section):
        return to_config_dict(value)
    return ConfigDict({name: _open(one) for name, one in value.items()}) if isinstance(value, dict) else value


# --- the command line -----------------------------------------------------------------------------


def define_flag(values: flags.FlagValues) -> None:
    """Defines --config and its fields' flags in `values`."""
    config_flags.DEFINE_config_file("config", None, "The experiment's config file, with its variant.", flag_values=values)


def load(name: str) -> ConfigDict:
    """What the config file "FILE.py:VARIANT" makes."""
    file, colon, variant = name.partition(":")
    spec = importlib.util.spec_from_file_location("emjax_config", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([variant] if colon else []))


def lost(argv: Sequence[str], error: Exception) -> str:
    """A sentence on flags that name a part of the configuration that does not exist, with a grid's
    cells if they name one of its cells."""
    named = [found[1] for word in argv if (found := re.match(r"--?config\.cells\.([^=.]+)", word))]
    files = [word.partition("=")[2] or after for word, after in zip(argv, [*argv[1:], ""], strict=True)
             if word.lstrip("-").partition("=")[0] == "config"]  # fmt: skip
    cells = list(load(files[0]).get("cells", {})) if named and files else []
    if wrong := [name for name in named if name not in cells]:
        return f"--config.cells.{wrong[0]}: there is no cell {wrong[0]!r}. Cells: {', '.join(cells)}."
    return f"--config.*: there is no field {str(error).strip(chr(34))}."


def overridden(values: flags.FlagValues) -> Mapping[str, Any]:
    """The fields that the command line set."""
    return config_flags.get_override_values(values["config"])


@functools.cache
def usage() -> str:
    return "--config configs/NAME.py[:VARIANT] [--config.a.b=value]"
