"""Scenarios: what people come to the assistant for. Each domain is a file with a JSON list.

The fields make the distinctions of Hu et al., section 4, and Williams et al., arXiv:2411.02306. The
texts were written for this project.

name        lower-case letters, digits and underscores; unique among all files that are loaded
task        what the assistant is for, addressed to the assistant
situations  first-person sentences that open a conversation and do not reveal the user's type
benign      thoughts of a user who is satisfied by honest help
biased      thoughts of a user who is satisfied only by being pleased
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emjax.errors import UserError
from emjax.runtime.files import check_fields, loads

SHIPPED = Path(__file__).parent / "domains"
# Fifty therapist scenarios, and one example of every other domain.
DOMAINS = tuple(sorted(file.stem for file in SHIPPED.glob("*.json")))
_LISTS = ("situations", "benign", "biased")


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One kind of conversation. A user's thought comes from the list of the user's type."""

    name: str
    task: str
    situations: tuple[str, ...]
    benign: tuple[str, ...]
    biased: tuple[str, ...]

    def thoughts(self, user_type: str) -> tuple[str, ...]:
        return {"benign": self.benign, "biased": self.biased}[user_type]


def load(domains: Sequence[str], count: int = 0) -> list[Scenario]:
    """The first `count` scenarios (0: all) of the named domains or JSON files.

    Raises UserError, with file, scenario and field, for files that cannot be used.
    """
    found: dict[str, Scenario] = {}
    for domain in domains:
        file = SHIPPED / f"{domain}.json" if domain in DOMAINS else Path(domain)
        if not file.is_file():
            raise UserError(
                f"config.interact.domains has {domain!r}, which is neither a file nor one of {', '.join(DOMAINS)}. "
                "Give one of these names, or a JSON file with a list of scenarios."
            )
        for scenario in _read(file):
            if scenario.name in found:
                raise UserError(f"{file}: the scenario name {scenario.name!r} occurs before. Names must be unique: change one.")
            found[scenario.name] = scenario
    scenarios = list(found.values())
    if not 0 <= count <= len(scenarios) or not scenarios:
        raise UserError(
            f"config.interact.scenarios asks for {count} scenarios, but {', '.join(domains) or 'no domain'} holds "
            f"{len(scenarios)}. Lower it (0 takes all), or add files to config.interact.domains."
        )
    return scenarios[: count or None]


def _read(file: Path) -> list[Scenario]:
    try:
        rows = loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}). Correct the file.") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{file}: the file must be a list of scenarios, with at least one.")
    return [_scenario(row, f"{file}, scenario {number}") for number, row in enumerate(rows, 1)]


def _scenario(row: Any, where: str) -> Scenario:
    fields = [field.name for field in dataclasses.fields(Scenario)]
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be an object with the fields {', '.join(fields)}, not {type(row).__name__}.")
    if isinstance(row.get("name"), str):
        where += f" ({row['name']})"
    check_fields(row, fields, where)
    for field in ("name", "task"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise UserError(f"{where}: the field {field!r} must be a non-empty text, not {row.get(field)!r:.80}.")
    if not re.fullmatch(r"[a-z0-9_]+", row["name"]):
        raise UserError(f"{where}: the field 'name' is {row['name']!r}; use only a-z, 0-9 and underscores.")
    for field in _LISTS:
        texts = row.get(field)
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{where}: the field {field!r} must be a non-empty list of texts, not {texts!r:.80}.")
        if len(set(texts)) < len(texts):
            raise UserError(f"{where}: the field {field!r} contains a text twice. Remove one.")
    if set(row["benign"]) & set(row["biased"]):
        raise UserError(f"{where}: a text is both in 'benign' and in 'biased', so the two types would not differ.")
    return Scenario(row["name"], row["task"].strip(), *(tuple(row[field]) for field in _LISTS))
