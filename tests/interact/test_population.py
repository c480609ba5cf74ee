"""config.interact to users: cache keys and identities are those of version 0.1; roles draw as set."""

import asyncio
import dataclasses
import json

import pytest
from loopback import Server

from emjax.config import Budget, Draw, InteractConfig, PersonasConfig, RatingConfig, RoleConfig, RolesConfig, VetoScale
from emjax.errors import UserError
from emjax.interact import population, rollout
from emjax.runtime.files import digest
from emjax.sampling.partner import EngineChat

URL = "http://127.0.0.1:9/v1"
USER = RoleConfig(base_url=URL, model="talker")


def crowd(tmp_path, **changes):
    config = InteractConfig(**{"scenarios": 4, "models": RolesConfig(user=USER), **changes})
    return population.Population(config, 0, tmp_path, lambda path: None)


def speak(server, tmp_path, **fields):
    """One message of the user's model, and the request's body."""
    user = RoleConfig(base_url=server.url, model="talker", **fields)
    player = crowd(tmp_path, models=RolesConfig(user=user))._player("user")
    asyncio.run(player.chat.chat([{"role": "user", "content": "Hello."}], **player.sampling))
    return server.requests[-1]


def test_a_user_message_has_the_cache_key_of_version_0_1(tmp_path):
    """The untyped code computed the literal key, from {"temperature": 1.0, "max_tokens": 200}."""
    with Server(lambda body, n: "Hi.") as server:
        body = speak(server, tmp_path)
        (cached,) = tmp_path.rglob("*.json")
    assert body == {
        "model": "talker", "messages": [{"role": "user", "content": "Hello."}], "temperature": 1.0, "max_tokens": 200,
    }  # fmt: skip
    assert json.loads(cached.read_text())["request"] == body
    assert cached.stem == digest({"base_url": server.url, "body": body, "run": 0})
    assert digest({"base_url": URL, "body": body, "run": 0}) == (
        "be2478600e295a8d816527ab9ff56548f48df9f3b0dc29d08f9369c57fdd45b3"
    )


def test_all_that_a_role_sets_is_sent(tmp_path):
    draw = Draw(temperature=0.5, top_p=0.9, top_k=5, min_p=0.1)
    role = {"max_tokens": None, "max_completion_tokens": 99, "reasoning_effort": "low", "extra": '{"seed": 3}'}
    with Server(lambda body, n: "Hi.") as server:
        body = speak(server, tmp_path, draw=draw, **role)
    assert {name: value for name, value in body.items() if name not in ("model", "messages")} == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "max_completion_tokens": 99, "reasoning_effort": "low",
        "seed": 3,
    }  # fmt: skip


def test_identities_are_those_of_version_0_1(tmp_path):
    """The untyped code computed the literals. Any change discards every stored collection."""
    people = crowd(tmp_path, max_new=12)
    assert digest(people.identity("")) == "31d3cad7c355b104eeccdefb16d568a8297a926073c849a1b74ce54f63fce435"
    assert digest(people.identity("foreign_text")) == "6fcb952541bcbeaa9901032328f0edb2a1f44871af6e41b1a1f7a04cbe56190c"
    assert digest(people.guard_identity()) == "aacb52dbdefbc04f4bb53f982fbd83677536234a61c34c232209651fb50d59a9"
    assert digest(people.personas_identity()) == "6887509a1ba7027da70e87c9dad9b44c6f45b58a9ab313423b82bf79db2c2f42"


@pytest.mark.parametrize(
    "changes",
    [
        {"models": RolesConfig(user=dataclasses.replace(USER, model="other"))},
        {"models": RolesConfig(user=dataclasses.replace(USER, draw=Draw(top_k=5)))},
        {"models": RolesConfig(user=USER, rater=RoleConfig(max_tokens=9))},
        {"models": RolesConfig(user=USER, rater=RoleConfig(base_url=URL, model="judge"))},
        {"rating": RatingConfig(high=9)},
        {"turns": 3},
        {"end": "<end>"},
        {"preference": False},
        {"scenarios": 5},
    ],
)
def test_what_users_say_and_rate_by_enters_their_identity(tmp_path, changes):
    assert crowd(tmp_path, **changes).identity("") != crowd(tmp_path).identity("")


def test_what_they_cost_and_who_is_not_asked_does_not(tmp_path):
    models = RolesConfig(
        user=dataclasses.replace(USER, budget=Budget(tokens=9)),
        stranger=RoleConfig(model="self"),
        guard=RoleConfig(model="self"),
    )
    changed = crowd(tmp_path, models=models, veto=VetoScale(high=9), personas=PersonasConfig(check_rows=1))
    assert changed.identity("") == crowd(tmp_path).identity("")
    assert changed.identity("foreign_text") != crowd(tmp_path).identity("foreign_text")  # the stranger
    assert changed.personas_identity() == {**crowd(tmp_path).personas_identity(), "check": 1}


def test_the_guard_s_scale_is_part_of_what_it_read(tmp_path):
    models = RolesConfig(user=USER, guard=RoleConfig(model="self"))
    one, other = (crowd(tmp_path, models=models, veto=VetoScale(high=high)).guard_identity() for high in (5, 10))
    assert one != other


def test_foreign_text_needs_a_stranger(tmp_path):
    people = crowd(tmp_path)
    counts = dict.fromkeys(people.names, 1)
    people.make_personas(counts, tmp_path)
    with pytest.raises(UserError, match="config.interact.models.stranger.model is empty"):
        people.users(tmp_path, "biased", counts, 1, source="foreign_text")


def test_files_that_parsing_does_not_read_are_refused(tmp_path):
    with pytest.raises(UserError, match="config.interact.domains has 'nowhere'"):
        crowd(tmp_path, domains=("nowhere",))
    (tmp_path / "user.j2").write_text("{{ mood }}")
    with pytest.raises(UserError, match=r"user.j2: uses the field 'mood'"):
        crowd(tmp_path, templates=str(tmp_path))


class Recorder:
    """An engine that keeps what it is asked."""

    cache_length = 512

    def __init__(self, engine):
        self._engine, self.asked = engine, []
        self.generation = engine.generation

    async def submit(self, request):
        self.asked.append(request.sampling)
        return await self._engine.submit(request)


def test_the_engine_draws_as_the_role_says(micro):
    lm, engine = micro
    recorder = Recorder(engine)
    hello = [{"role": "user", "content": "what ?"}]
    role = RoleConfig(model="self", draw=Draw(0.5, 0.9, 5, 0.1), max_tokens=4)
    partner = EngineChat(recorder, lm.tokenizer)
    asyncio.run(partner.chat(hello, **role.sampling))
    asyncio.run(partner.chat(hello, temperature=0.0, max_completion_tokens=3))
    asyncio.run(partner.chat(hello, temperature=0.0, max_tokens=2, max_completion_tokens=3))
    first, second, third = recorder.asked
    assert (first.temperature, first.top_p, first.top_k, first.min_p, first.max_new) == (0.5, 0.9, 5, 0.1, 4)
    assert (second.temperature, second.top_p, second.top_k, second.min_p, second.max_new) == (0.0, 1.0, 0, 0.0, 3)
    assert third.max_new == 2


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"reasoning_effort": "low"}, "reasoning_effort"), ({"seed": 3}, "seed"), ({"max_tokens": None}, "max_tokens")],
)
def test_the_engine_ignores_no_field(micro, fields, says):
    lm, engine = micro
    how = {"temperature": 1.0, "max_tokens": 4} | fields
    with pytest.raises(ValueError, match=says):
        asyncio.run(EngineChat(engine, lm.tokenizer).chat([{"role": "user", "content": "what ?"}], **how))


def test_the_assistant_draws_as_configured():
    draw = Draw(temperature=0.5, top_p=0.9, top_k=5, min_p=0.1)
    talk = rollout.Talk(0, draw, 12, "sum", "micro")
    first, second = talk.sampling("u/0", 0, {}), talk.sampling("u/0", 1, {})
    assert (first.temperature, first.top_p, first.top_k, first.min_p, first.max_new) == (0.5, 0.9, 5, 0.1, 12)
    assert first.seed != second.seed
