"""Prompts: template files whose fields are checked before the first call.

The files are in templates/; a user's folder may replace any of them. A template that uses an
unknown field, or does not use a required one, is refused with its file and the field.
"""

from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta

from emjax.errors import UserError
from emjax.runtime.files import digest

SHIPPED = Path(__file__).parent / "templates"
# name -> (allowed fields, required fields)
FIELDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    name: (frozenset((may + " " + must).split()), frozenset(must.split()))
    for name, (may, must) in {
        "assistant": ("background", "task preference"),
        "user": ("task", "background thought end"),
        "user_start": ("task", ""),
        "rate_first": ("thought", "low high"),
        "rate_third": ("task background thought", "low high"),
        "veto": ("task background", "low high"),
        "dialogue": ("", "messages"),
        "persona": ("number", "task thoughts"),
        "rephrase": ("background", "text"),
    }.items()
}


class Prompts:
    """The templates by name.

    folder: config.interact.templates, with replacements that have the shipped files' names
    (<name>.j2); "" for none. Raises UserError for a file that cannot be used.
    """

    def __init__(self, folder: str = ""):
        self._environment = jinja2.Environment(
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
        )
        own = Path(folder) if folder else None
        if own and not own.is_dir():
            raise UserError(
                f"config.interact.templates is {folder!r}, which is not a folder. Give a folder with <name>.j2 files."
            )
        for file in sorted(own.glob("*.j2")) if own else []:
            if file.stem not in FIELDS:
                raise UserError(f"{file}: there is no prompt of this name. Name the file after one of {', '.join(FIELDS)}.")
        self._templates: dict[str, jinja2.Template] = {}
        self._texts: dict[str, str] = {}
        for name, (may, must) in FIELDS.items():
            file = own / f"{name}.j2" if own and (own / f"{name}.j2").is_file() else SHIPPED / f"{name}.j2"
            try:
                text = file.read_text(encoding="utf-8")
                used = meta.find_undeclared_variables(self._environment.parse(text))
                self._templates[name] = self._environment.from_string(text)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"config.interact.templates: {file} is not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
                ) from error
            except jinja2.TemplateError as error:
                raise UserError(f"{file}: not a template: {error}. Correct the file.") from error
            for field in sorted(used - may):
                raise UserError(f"{file}: uses the field {field!r}; a {name} prompt has only {', '.join(sorted(may))}.")
            for field in sorted(must - used):
                raise UserError(f"{file}: does not use the field {field!r}, which a {name} prompt needs. Add it.")
            self._texts[name] = text

    def __call__(self, name: str, **fields: Any) -> str:
        """The prompt as text. A missing field raises jinja2.UndefinedError."""
        return self._templates[name].render(**fields).strip()

    def identity(self) -> str:
        """A hash of all templates, for stage hashes."""
        return digest(self._texts)
