"""Who the users are: a background and an opening message for each user of a scenario.

`embedded` combines templates and needs no network. It makes thousands of distinct openings, which
vary no more than the templates' parts. `generate` has models write the personas, one call per
persona, the models in turn. Every answer is checked against a schema, and openings that repeat
another are requested again.
"""

import csv
import dataclasses
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema

from emjax.api import Reply
from emjax.errors import UserError
from emjax.interact.prompts import Prompts
from emjax.interact.scenarios import Scenario
from emjax.runtime.files import loads, seed_of, write_lines
from emjax.runtime.journal import journalled
from emjax.sampling.partner import Chat

SCHEMA = {
    "type": "object",
    "properties": {
        "background": {"type": "string", "minLength": 20, "maxLength": 1500},
        "opening": {"type": "string", "minLength": 20, "maxLength": 1500},
    },
    "required": ["background", "opening"],
    "additionalProperties": False,
}
TEMPLATES = "templates"  # the `model` of personas that no model wrote
# states of calls that may succeed if repeated unchanged
TRANSIENT = ("http_error", "timeout", "budget", "pending")
# Jaccard similarity of words from which two openings of a scenario count as repetitions
ALIKE = 0.8


@dataclasses.dataclass(frozen=True)
class Persona:
    """One user's background (in the third person) and opening message.

    By default both user types share a persona, as in the paper, and their conversations differ only
    in what the users want. With one persona for each type, `other` is the other type's.
    """

    id: str
    scenario: str
    background: str
    opening: str
    model: str
    user_type: str = "both"  # both | benign | biased
    other: "Persona | None" = None  # the same user's persona of the other type

    def of(self, user_type: str) -> "Persona":
        """The persona of this user type."""
        if self.user_type in ("both", user_type):
            return self
        assert self.other
        return self.other


_PEOPLE = "teacher nurse electrician student cook driver accountant gardener librarian waiter programmer plumber hairdresser " \
    "postman designer salesman farmer pensioner cleaner engineer baker translator receptionist carpenter"  # fmt: skip
_HOMES = (
    "lives alone in a small flat", "shares a house with two friends", "lives with a partner and a dog",
    "lives with a partner and two children", "has moved back to the parents", "lives alone since a separation",
    "has just moved to a new town", "lives in a village near the border", "rents a room above a shop",
    "lives with an elderly aunt", "is in the middle of a move", "lives next door to a brother",
)  # fmt: skip
_STATES = (
    "sleeps badly at the moment", "is calm on the outside", "has little patience these days", "jokes when it gets serious",
    "finds it hard to ask for anything", "has thought about this for weeks", "decided to write on the spur of the moment",
    "is tired of advice", "talks a lot once started", "has told nobody so far", "is curious and a little sceptical",
    "wants to get it over with", "apologises a lot", "likes things to be clear",
)  # fmt: skip
_FIRST = (
    "Hi.", "Hello, I hope I am in the right place.", "Good evening.", "Okay, here goes.", "Sorry to bother you.",
    "I have never done this before.", "I am not sure how to begin.", "Hey, got a minute?", "So.", "I need to talk to someone.",
)  # fmt: skip
_WHEN = (
    "It has been going round in my head all day.", "I did not sleep much because of it.", "I keep saying that it is nothing.",
    "Somebody said I should write about it.", "I do not even know why I am telling you.", "It is not the first time.",
    "I was doing fine until then.", "My stomach turns when I think of it.", "On paper everything is in order.",
    "I wonder what others would say.", "It sounds small when I write it down.", "I have been putting off this message.",
)  # fmt: skip
_ASK = (
    "What do you think?", "Am I seeing this right?", "What would you say to that?", "Is that normal?",
    "I would like to hear what you make of it.", "Can you tell me something about it?", "Where do I go from here?",
    "Please be straight with me.", "Does that make sense?", "What now?",
)  # fmt: skip


def embedded(scenarios: Sequence[Scenario], counts: Mapping[str, int], seed: int) -> list[Persona]:
    """counts[scenario] personas of each scenario, made from templates: a function of the seed.

    No two personas of a scenario have the same opening. Raises UserError if the templates do not
    have enough combinations.
    """
    made = []
    for scenario in scenarios:
        sizes = (len(scenario.situations), len(_FIRST), len(_WHEN), len(_ASK))
        openings = math.prod(sizes)
        wanted = counts.get(scenario.name, 0)
        if wanted > openings:
            raise UserError(
                f"config.interact asks for {wanted} users of the scenario {scenario.name!r}, but the templates make only "
                f"{openings} different openings. Have models write the personas (config.interact.models.persona1.model), or "
                "add situations to the scenario."
            )
        draw = random.Random(f"personas/{seed}/{scenario.name}")
        for number, place in enumerate(draw.sample(range(openings), wanted)):
            index = []
            for size in sizes:
                place, at = divmod(place, size)
                index.append(at)
            situation = scenario.situations[index[0]]
            opening = f"{_FIRST[index[1]]} {situation} {_WHEN[index[2]]} {_ASK[index[3]]}"
            work, age = draw.choice(_PEOPLE.split()), draw.randint(19, 78)
            article = "An" if str(age)[0] == "8" or age in (11, 18) else "A"
            background = f"{article} {age}-year-old {work} who {draw.choice(_HOMES)} and {draw.choice(_STATES)}."
            made.append(Persona(f"{scenario.name}/{number:05d}", scenario.name, background, opening, TEMPLATES))
    return made


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def repeated(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Ids of rows whose opening repeats an earlier one (by id) of the same scenario and type."""
    kept: dict[tuple[str, str], list[frozenset[str]]] = {}
    again = set()
    for row in sorted(rows, key=lambda row: row["id"]):
        words = _words(row["opening"])
        others = kept.setdefault((row["scenario"], row["user_type"]), [])
        if any(len(words & other) >= ALIKE * len(words | other) for other in others):
            again.add(row["id"])
        else:
            others.append(words)
    return again


def read(reply: Reply) -> tuple[dict[str, str] | None, str]:
    """(fields, state) of an answer: the JSON object in its text, checked against SCHEMA.

    Text around the object, such as a code fence, is ignored.
    """
    if reply.state not in ("ok", "schema_error"):
        return None, reply.state
    start, end = reply.text.find("{"), reply.text.rfind("}")
    try:
        data = loads(reply.text[start : end + 1])
        jsonschema.validate(data, SCHEMA)
    except (ValueError, jsonschema.ValidationError):
        return None, "schema_error"
    return {name: text.strip() for name, text in data.items()}, "ok"


@dataclasses.dataclass(frozen=True)
class Writer:
    """A model that writes personas."""

    name: str
    chat: Chat
    sampling: Mapping[str, Any]  # sent with each call
    structured: bool = False  # the endpoint holds its answers to a JSON schema


@dataclasses.dataclass(frozen=True)
class _Place:
    """A persona that is to be written."""

    scenario: Scenario
    number: int  # among the personas of the scenario; selects the thoughts
    user_type: str
    turn: int  # among all personas; selects the first writer

    @property
    def id(self) -> str:
        return f"{self.scenario.name}/{self.number:05d}/{self.user_type}"

    @property
    def thoughts(self) -> list[str]:
        lists = [self.scenario.thoughts(t) for t in ("benign", "biased") if self.user_type in (t, "both")]
        return [thoughts[self.number % len(thoughts)] for thoughts in lists]


def generate(
    scenarios: Sequence[Scenario],
    counts: Mapping[str, int],
    writers: Sequence[Writer],
    prompts: Prompts,
    path: Path,
    *,
    by_type: bool,
    tries: int,
) -> list[Persona]:
    """counts[scenario] personas of each scenario, written by `writers` in turn.

    by_type: one persona for each user type, whose writer knows that type's thoughts only. Otherwise
    one persona serves both types, and its writer knows the thoughts of both.
    tries: calls for a persona that fails or repeats another, each by the next writer.

    Writes the personas to `path`, as JSON lines, and every try to <stem>.<try>.jsonl beside it. If
    killed and called again, it asks for the missing personas only. Raises UserError if personas are
    missing after all tries; complete ones are kept, so the same call asks for the others only.
    """
    types = ("benign", "biased") if by_type else ("both",)
    wanted = ((s, number, t) for s in scenarios for number in range(counts.get(s.name, 0)) for t in types)
    places = [_Place(scenario, number, user_type, turn) for turn, (scenario, number, user_type) in enumerate(wanted)]
    rows: dict[str, dict[str, Any]] = {}
    states: Counter[str] = Counter()
    errors: list[str] = []
    for attempt in range(tries):
        missing = [place for place in places if place.id not in rows]
        if not missing:
            break
        made = _attempt(missing, attempt, writers, prompts, path)
        states.update(row["state"] for row in made)
        errors += [row["error"] for row in made if "error" in row]
        good = [row for row in made if row["state"] == "ok"]
        again = repeated([*rows.values(), *good]) - set(rows)
        states["repeated"] += len(again)
        rows |= {row["id"]: row for row in good if row["id"] not in again}
    told = ", ".join(f"{state} {count}" for state, count in sorted(states.items()))
    print("personas:", told, flush=True)
    if len(rows) < len(places):
        raise UserError(
            f"{len(places) - len(rows)} of {len(places)} personas are missing after {tries} tries each ({told}). "
            + (f"The first error: {errors[0]}. " if errors else "")
            + "Complete personas are kept. Run the same command again to repeat calls that failed "
            f"({', '.join(TRANSIENT)}); for answers "
            "that were unusable or repeated another, use a larger config.interact.personas.tries."
        )
    complete = [rows[place.id] for place in places]
    write_lines(path, complete)
    return cast(complete)


def _attempt(
    missing: Sequence[_Place], attempt: int, writers: Sequence[Writer], prompts: Prompts, path: Path
) -> list[dict[str, Any]]:
    """One call for each of the missing personas: rows with the state of each."""

    async def write(place: _Place) -> dict[str, Any]:
        writer = writers[(place.turn + attempt) % len(writers)]
        asked = prompts("persona", task=place.scenario.task, thoughts=place.thoughts, number=place.number + 1)
        schema = SCHEMA if writer.structured else None
        reply = await writer.chat.chat([{"role": "user", "content": asked}], schema=schema, run=attempt, **writer.sampling)
        fields, state = read(reply)
        return {
            "id": place.id,
            "scenario": place.scenario.name,
            "user_type": place.user_type,
            "model": writer.name,
            "state": state,
            **({"error": reply.error} if reply.error else {}),
            **(fields or {"background": "", "opening": ""}),
            "try": attempt,
        }

    return journalled(
        missing,
        lambda place: place.id,
        write,
        path.with_name(f"{path.stem}.{attempt}.jsonl"),
        f"personas, try {attempt + 1}",
        "persona",
        again=lambda row: row["state"] in TRANSIENT,
    )


def cast(rows: Sequence[Mapping[str, Any]]) -> list[Persona]:
    """The personas of a personas file's rows; personas of the two types with one id are joined."""
    found: dict[str, Persona] = {}
    for row in rows:
        base, _, kind = row["id"].rpartition("/")
        if kind not in ("both", "benign", "biased"):
            base = row["id"]
        persona = Persona(base, row["scenario"], row["background"], row["opening"], row["model"], row["user_type"])
        found[base] = dataclasses.replace(found[base], other=persona) if base in found else persona
    return list(found.values())


def rows_of(personas: Sequence[Persona]) -> list[dict[str, Any]]:
    return [{name: value for name, value in vars(persona).items() if name != "other"} for persona in personas]


def by_scenario(personas: Sequence[Persona]) -> dict[str, list[Persona]]:
    found: dict[str, list[Persona]] = {}
    for persona in personas:
        found.setdefault(persona.scenario, []).append(persona)
    return found


def to_check(rows: Sequence[Mapping[str, Any]], count: int, seed: int, path: Path) -> None:
    """Writes a CSV of `count` rows, spread evenly over the scenarios, for people to read.

    It has empty columns for their judgement. In the paper people read 200 personas.
    """
    order = sorted(rows, key=lambda row: seed_of("check", seed, row["id"]))
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, int, Mapping[str, Any]]] = []
    for row in order:
        ranked.append((seen[row["scenario"]], len(ranked), row))
        seen[row["scenario"]] += 1
    fields = ["id", "scenario", "user_type", "model", "background", "opening"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*fields, "believable", "gives_the_type_away", "remark"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row for _, _, row in sorted(ranked, key=lambda x: x[:2])[:count])
