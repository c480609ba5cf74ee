"""Who the users are: a background and an opening message for each place of a scenario.

`embedded` puts them together from templates, without a network: thousands of distinct openings, but no more varied than their
parts. `generate` has models write them, one call a persona, the models taking turns; every answer is checked against a schema,
and openings that repeat one another are asked for again.
"""

import csv
import dataclasses
import json
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
from emjax.runtime.files import seed_of, write_lines
from emjax.runtime.journal import journalled
from emjax.sampling.partner import Chat, EngineChat

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
PASSING = ("http_error", "timeout", "budget", "pending")  # states that the same call may mend
ALIKE = 0.8  # share of common words (Jaccard) from which two openings of a scenario count as one


@dataclasses.dataclass(frozen=True)
class Persona:
    """One user's background (third person) and opening message. With one opening a type, `openings` and `backgrounds` have it;
    else both types share one, as in the paper, and their conversations differ only in what the users want."""

    id: str
    scenario: str
    background: str
    opening: str
    model: str
    user_type: str = "both"  # both | benign | biased
    other: "Persona | None" = None  # its counterpart of the other type

    def of(self, user_type: str) -> "Persona":
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
    """counts[scenario] personas of each scenario, made from templates: no two with the same opening. A function of the seed."""
    found = []
    for scenario in scenarios:
        sizes = (len(scenario.situations), len(_FIRST), len(_WHEN), len(_ASK))
        places = _product(sizes)
        wanted = counts.get(scenario.name, 0)
        if wanted > places:
            raise UserError(
                f"config.interact asks for {wanted} users of the scenario {scenario.name!r}, and the templates make only "
                f"{places} different openings. Have models write the personas (config.interact.models.persona1.model), or add "
                "to the scenario's situations."
            )
        draw = random.Random(f"personas/{seed}/{scenario.name}")
        for number, place in enumerate(draw.sample(range(places), wanted)):
            index = []
            for size in sizes:
                place, at = divmod(place, size)
                index.append(at)
            situation = scenario.situations[index[0]]
            opening = f"{_FIRST[index[1]]} {situation} {_WHEN[index[2]]} {_ASK[index[3]]}"
            work, age = draw.choice(_PEOPLE.split()), draw.randint(19, 78)
            article = "An" if str(age)[0] == "8" or age in (11, 18) else "A"
            background = f"{article} {age}-year-old {work} who {draw.choice(_HOMES)} and {draw.choice(_STATES)}."
            found.append(Persona(f"{scenario.name}/{number:05d}", scenario.name, background, opening, TEMPLATES))
    return found


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def repeated(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Ids of rows whose opening shares ALIKE of its words with an earlier one (by id) of its scenario and type."""
    kept: dict[tuple[str, str], list[frozenset[str]]] = {}
    again = set()
    for row in sorted(rows, key=lambda row: row["id"]):
        mine = _words(row["opening"])
        others = kept.setdefault((row["scenario"], row["user_type"]), [])
        if any(len(mine & other) >= ALIKE * len(mine | other) for other in others):
            again.add(row["id"])
        else:
            others.append(mine)
    return again


def read(reply: Reply) -> tuple[dict[str, str] | None, str]:
    """(fields, state) of an answer: the one JSON object in its text (fences aside), held to the schema."""
    if reply.state not in ("ok", "schema_error"):
        return None, reply.state
    start, end = reply.text.find("{"), reply.text.rfind("}")
    try:
        data = json.loads(reply.text[start : end + 1])
        jsonschema.validate(data, SCHEMA)
    except (ValueError, jsonschema.ValidationError):
        return None, "schema_error"
    return {name: text.strip() for name, text in data.items()}, "ok"


def generate(
    scenarios: Sequence[Scenario],
    counts: Mapping[str, int],
    models: Sequence[tuple[str, Chat, Mapping[str, Any], bool]],
    prompts: Prompts,
    path: Path,
    *,
    by_type: bool,
    tries: int,
) -> list[Persona]:
    """counts[scenario] personas of each scenario, written by `models` in turn: (name, chat, sampling, structured output).

    by_type: one for each user type, knowing that type's thoughts alone; else one for both, knowing both. What failed or repeats
    another is asked for again, up to `tries` times, each time of the next model. Writes `path` (JSON lines with every try's
    state); killed and called again it asks for what is missing. Raises UserError where a persona is still missing at the end:
    what came is kept, so the same call asks for the others alone.
    """
    places: list[dict[str, Any]] = [
        {"id": f"{scenario.name}/{number:05d}/{kind}", "scenario": scenario, "number": number, "user_type": kind}
        for scenario in scenarios
        for number in range(counts.get(scenario.name, 0))
        for kind in (("benign", "biased") if by_type else ("both",))
    ]
    for turn, place in enumerate(places):
        place["turn"] = turn
    rows: dict[str, dict[str, Any]] = {}
    states: Counter[str] = Counter()
    for attempt in range(tries):
        missing = [place for place in places if place["id"] not in rows]
        if not missing:
            break

        async def write(place: dict[str, Any], attempt: int = attempt) -> dict[str, Any]:
            scenario, kind = place["scenario"], place["user_type"]
            name, chat, sampling, structured = models[(place["turn"] + attempt) % len(models)]
            number = place["number"]
            thoughts = [
                scenario.thoughts(k)[number % len(scenario.thoughts(k))] for k in ("benign", "biased") if kind in (k, "both")
            ]
            asked = prompts("persona", task=scenario.task, thoughts=thoughts, number=number + 1)
            schema = SCHEMA if structured and not isinstance(chat, EngineChat) else None
            reply = await chat.chat([{"role": "user", "content": asked}], schema=schema, run=attempt, **sampling)
            fields, state = read(reply)
            about = {"id": place["id"], "scenario": scenario.name, "user_type": kind, "model": name, "state": state}
            return about | (fields or {"background": "", "opening": ""}) | {"try": attempt}

        part = path.with_name(f"{path.stem}.{attempt}.jsonl")
        made = journalled(
            missing, lambda place: place["id"], write, part, f"personas, try {attempt + 1}", "persona",
            again=lambda row: row["state"] in PASSING,
        )  # fmt: skip
        states.update(row["state"] for row in made)
        good = [row for row in made if row["state"] == "ok"]
        double = repeated([*rows.values(), *good]) - set(rows)
        states["repeated"] += len(double)
        rows |= {row["id"]: row for row in good if row["id"] not in double}
    print("personas:", ", ".join(f"{state} {count}" for state, count in sorted(states.items())), flush=True)
    if len(rows) < len(places):
        raise UserError(
            f"{len(places) - len(rows)} of {len(places)} personas are missing after {tries} tries each "
            f"({', '.join(f'{state} {count}' for state, count in sorted(states.items()))}). What came is kept: start the same "
            f"command again to ask for those that did not come ({', '.join(PASSING)}), and with a larger "
            "config.interact.personas.tries for those that came and were no good."
        )
    write_lines(path, [rows[place["id"]] for place in places])
    return cast(list(rows[place["id"]] for place in places))


def cast(rows: Sequence[Mapping[str, Any]]) -> list[Persona]:
    """Rows of a personas file -> personas; the two types of one place belong together."""
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
    """A CSV of `count` rows for people to read, spread evenly over the scenarios, with empty columns for their judgement.

    The paper had 200 read by hand.
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
