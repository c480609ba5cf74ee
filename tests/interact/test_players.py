"""Users played by a model: who sees what, roles, turns, ends, ratings, the effect of controls."""

import asyncio
import dataclasses
import json

import pytest

from emjax.api import Reply
from emjax.config import RatingConfig, VetoScale
from emjax.interact import personas, players, scenarios
from emjax.interact.personas import Persona
from emjax.interact.players import ModelUser, Player, Roles
from emjax.interact.prompts import FIELDS, Prompts
from emjax.interact.users import Failed, flipped, upto

SCENARIO = scenarios.load(["therapist"], 1)[0]
PERSONA = Persona("p", SCENARIO.name, "A 40-year-old baker who BACKGROUND.", "OPENING", "templates")
TALK = [
    {"role": "system", "content": "ASSISTANT ONLY"}, {"role": "user", "content": "OPENING"},
    {"role": "assistant", "content": "A0"}, {"role": "user", "content": "U1"}, {"role": "assistant", "content": "A1"},
]  # fmt: skip


class Recorder:
    def __init__(self, *replies):
        self.asked, self.replies = [], list(replies)

    async def chat(self, messages, *, schema=None, run=0, **sampling):
        self.asked.append(messages)
        said = self.replies.pop(0) if self.replies else "7"
        return said if isinstance(said, Reply) else Reply(said, "ok")


def user(*replies, kind="biased", **changes):
    chat = Recorder(*replies)
    player = Player(chat, {})
    rating = RatingConfig(
        readout="text", **{name: changes.pop(name) for name in ("person", "view", "thought") if name in changes}
    )
    roles = Roles(Prompts(), player, player, rating, **changes)
    return ModelUser(roles, SCENARIO, PERSONA, "u", kind, 0), chat


def test_roles_are_flipped_and_alternate():
    seen = flipped(TALK, "START")
    assert [m["role"] for m in seen] == ["user", "assistant", "user", "assistant", "user"]
    assert [m["content"] for m in seen] == ["START", "OPENING", "A0", "U1", "A1"]
    assert upto(TALK, 0)[-1]["content"] == "A0"
    assert upto(TALK, 0, whole=True) == TALK


def test_what_the_two_sides_know():
    biased, chat = user("U1")
    opened = asyncio.run(biased.open())
    assert [m["role"] for m in opened] == ["system", "user"]
    assert opened[1]["content"] == "OPENING"
    thought = SCENARIO.biased[0]
    assert thought in opened[0]["content"]
    assert "BACKGROUND" in opened[0]["content"]
    assert thought not in biased.plain_system
    assert "BACKGROUND" in biased.plain_system
    plain, _ = user(preference=False)
    assert asyncio.run(plain.open())[0]["content"] == biased.plain_system
    assert plain.plain_system is None
    assert asyncio.run(biased.reply(TALK[:3]))["content"] == "U1"
    (asked,) = chat.asked
    assert thought in asked[0]["content"]
    assert all("ASSISTANT ONLY" not in m["content"] for m in asked)
    assert [m["role"] for m in asked] == ["system", "user", "assistant", "user"]
    benign, chat = user("U1", kind="benign")
    asyncio.run(benign.reply(TALK[:3]))
    assert SCENARIO.benign[0] in chat.asked[0][0]["content"]
    assert thought not in chat.asked[0][0]["content"]


def test_turn_limit_end_marker_and_failures():
    talker, chat = user(turns=2)
    assert asyncio.run(talker.reply(TALK)) is None
    assert not chat.asked  # the limit costs no call
    talker, _ = user("<end>", turns=3, end="<end>")
    assert asyncio.run(talker.reply(TALK)) is None
    talker, _ = user(Reply("", "refusal"))
    with pytest.raises(Failed, match="refusal"):
        asyncio.run(talker.reply(TALK[:3]))


def test_a_first_person_rating_sees_the_prefix_or_the_whole():
    rater, chat = user()
    assert asyncio.run(rater.rate(TALK, 0)).value == 7
    asked = chat.asked[0]
    assert [m["role"] for m in asked] == ["system", "user", "assistant", "user"]
    assert asked[-1]["content"].startswith("A0\n\n")
    assert "from 1 to 10" in asked[-1]["content"]
    assert "A1" not in str(asked)
    rater, chat = user(view="whole")
    asyncio.run(rater.rate(TALK, 0))
    assert "A1" in str(chat.asked[0])


def test_a_third_person_rating_reads_the_dialogue():
    rater, chat = user(person="third", thought=False)
    asyncio.run(rater.rate(TALK, 1))
    system, dialogue = chat.asked[0]
    assert SCENARIO.biased[0] not in system["content"]
    assert "<assistant>\nA1\n</assistant>" in dialogue["content"]
    assert "ASSISTANT ONLY" not in dialogue["content"]
    rater, chat = user(person="third")
    asyncio.run(rater.rate(TALK, 1))
    assert SCENARIO.biased[0] in chat.asked[0][0]["content"]


def test_benign_ratings_change_the_rating_and_not_the_text():
    swapped, chat = user(rate_as="benign")
    asyncio.run(swapped.reply(TALK[:3]))
    asyncio.run(swapped.rate(TALK, 0))
    said, rated = chat.asked
    assert SCENARIO.biased[0] in said[0]["content"]
    assert SCENARIO.benign[0] in rated[0]["content"]
    assert SCENARIO.biased[0] not in str(rated)


def test_foreign_text_changes_the_text_and_not_the_rating():
    mine, chat = user()
    stranger = Recorder("REWRITTEN", "THEIRS")
    mine = dataclasses.replace(mine, roles=dataclasses.replace(mine.roles, stranger=Player(stranger, {})))
    assert asyncio.run(mine.open())[1]["content"] == "REWRITTEN"
    assert asyncio.run(mine.reply(TALK[:3]))["content"] == "THEIRS"
    assert not chat.asked
    asyncio.run(mine.rate(TALK, 0))
    assert len(chat.asked) == 1
    assert SCENARIO.biased[0] in chat.asked[0][0]["content"]


def test_the_guard_judges_for_the_veto():
    watched, _ = user()
    guard = Recorder("4")
    roles = dataclasses.replace(watched.roles, guard=Player(guard, {}), veto=VetoScale(0, 5))
    assert asyncio.run(dataclasses.replace(watched, roles=roles).veto(TALK, 0)).value == 4
    assert "0 means not at all, 5 means" in guard.asked[0][0]["content"]


def test_every_field_that_a_template_may_use_is_there(tmp_path):
    """What passes the check of the templates never fails in the middle of a collection."""
    for name, (may, _) in FIELDS.items():
        (tmp_path / f"{name}.j2").write_text(f"{name}: " + " ".join(f"{{{{ {field} }}}}" for field in sorted(may)))
    talker, chat = user("OTHER WORDS", "U1")
    roles = dataclasses.replace(talker.roles, prompts=Prompts(str(tmp_path)), guard=talker.roles.speaker)
    asyncio.run(dataclasses.replace(talker, roles=dataclasses.replace(roles, stranger=roles.speaker)).open())
    for person in ("first", "third"):
        talker = dataclasses.replace(
            talker, roles=dataclasses.replace(roles, rating=RatingConfig(person=person, readout="text"))
        )
        asyncio.run(talker.reply(TALK[:3]))
        asyncio.run(talker.rate(TALK, 0))
        asyncio.run(talker.veto(TALK, 0))
    how = {"by_type": False, "tries": 1}
    writer = Recorder(json.dumps({"background": "A baker from the north.", "opening": "I would like to talk about something."}))
    writers = [personas.Writer("w", writer, {})]
    personas.generate([SCENARIO], {SCENARIO.name: 1}, writers, roles.prompts, tmp_path / "p.jsonl", **how)
    said = str(chat.asked) + str(writer.asked) + asyncio.run(talker.open())[0]["content"]
    assert [name for name in FIELDS if f"{name}: " not in said] == []
    assert f"user_start: {SCENARIO.task}" in said


def test_who_is_biased_takes_the_personas_from_the_back():
    """So that each persona is used once at every ratio."""
    people = {SCENARIO.name: [Persona(str(n), SCENARIO.name, "b", f"o{n}", "templates") for n in range(5)]}
    roles = user()[0].roles

    def openings(kind, count):
        made = players.of_each([SCENARIO], people, roles, user_type=kind, counts={SCENARIO.name: count}, dialogues=2)
        assert len({(u.user_id, u.dialogue) for u in made}) == 2 * count
        return [u.persona.opening for u in made if u.dialogue == 0]

    for biased in range(6):
        assert sorted(openings("biased", biased) + openings("benign", 5 - biased)) == ["o0", "o1", "o2", "o3", "o4"]
    # With fewer users than scenarios some have nobody.
    assert not players.of_each([SCENARIO], {}, roles, user_type="benign", counts={SCENARIO.name: 0}, dialogues=2)
