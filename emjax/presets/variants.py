"""Variants that name a model of the user's own: local=PATH and hub=OWNER/NAME[@REVISION]."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from emjax.errors import UserError
from emjax.runtime.files import digest

_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w.+-]+)?")
_SEEDS = re.compile(r"(.+)/\d+")


def path(variant: str) -> str:
    """config.model.path of a variant local=PATH or hub=OWNER/NAME[@REVISION]; "" for others.

    A local path begins with ".", "/" or "~", so that it is never taken for a hub id. Raises
    UserError for a name that cannot be one.
    """
    kind, _, value = variant.partition("=")
    if kind == "local":
        if not value:
            raise UserError("the variant local= names no model; write local=PATH, a checkpoint folder or a .gguf file.")
        value = os.path.expanduser(value)
        return value if value.startswith((".", "/")) else f"./{value}"
    if kind == "hub":
        if not _HUB.fullmatch(value):
            raise UserError(
                f"the variant {variant!r} is no hub id; write hub=OWNER/NAME or hub=OWNER/NAME@REVISION, the revision being a "
                "commit, a tag or a branch without a slash."
            )
        return value
    return ""


def unknown(variant: str, names: Sequence[str]) -> UserError:
    """The error for a variant that is neither one of `names` nor a model of the user's."""
    model = "To use a model of your own, write local=PATH (a checkpoint folder or a .gguf file) or hub=OWNER/NAME[@REVISION]"
    if looks_like_a_path(variant):
        return UserError(f"the variant {variant!r} looks like a path or a hub id. {model}: local={variant}, for example.")
    return UserError(f"the variant {variant!r} is unknown; choose {', '.join(names)}. {model}.")


def looks_like_a_path(variant: str) -> bool:
    named = "/" in variant or variant.startswith((".", "~")) or variant.endswith(".gguf")
    return "=" not in variant and (named or Path(variant).is_dir())


def has_seeds(variant: str) -> bool:
    """Whether a grid's variant ends in a number of seeds, MODEL/3, and not in a folder of that
    name."""
    return bool(_SEEDS.fullmatch(variant)) and not (path(variant) and Path(path(variant)).exists())


def label(variant: str) -> str:
    """What the default work directory is called after: a local model by its folder and 8 hex digits
    of its absolute path, one from the hub by its name and 8 of its revision."""
    found = path(variant)
    if variant.startswith("local=") or (not found and "/" in variant and Path(variant).is_dir()):
        place = Path(found or variant).resolve()
        return f"{place.name}-{digest(str(place))[:8]}"
    name, _, revision = (found or variant).partition("@")
    return name.replace("/", "--") + (f"-{digest(revision)[:8]}" if revision else "")
