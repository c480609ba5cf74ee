"""Users that are played by a model: an endpoint, or a checkpoint in the JAX engine."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from emjax.api import Reply
from emjax.data.chat import Conversation, Message
from emjax.errors import UserError
from emjax.interact.personas import Persona
from emjax.interact.prompts import Prompts
from emjax.interact.ratings import Rating, Scale, expected, from_logprobs, from_text
from emjax.interact.scenarios import Scenario
from emjax.interact.users import Failed, flipped, upto
from emjax.sampling.partner import Chat, EngineChat


@dataclasses.dataclass(frozen=True)
class Player:
    """A chat partner and how it is asked."""

    chat: Chat
    sampling: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Roles:
    """What all model-played users of an experiment share."""

    prompts: Prompts
    speaker: Player  # writes the user's messages
    rater: Player  # gives the ratings; most often the same model
    scale: Scale
    turns: int = 2  # assistant answers; the paper's default length
    preference: bool = True  # the assistant's system prompt states what the user wants, as in the paper
    person: str = "first"  # first: the user itself rates; third: a judge who reads the conversation does
    view: str = "prefix"  # prefix: a rating sees the conversation up to the rated answer; whole: all of it
    thought: bool = True  # a third-person rater is told what the user wants
    readout: str = "logprobs"  # logprobs | text
    least_mass: float = 0.01  # of the scale's numbers; below it a rating is unparsed
    end: str = ""  # what the user writes to end a conversation early; "" = only the turn limit ends it
    stranger: Player | None = None  # control foreign_text: another model writes the user's words
    guard: Player | None = None  # judges answers for the veto
    guard_scale: Scale = Scale(0, 5, "veto")
    rate_as: str = ""  # control benign_ratings: the type in whose place answers are rated; "" = the user's own


async def ask(
    chat: Chat,
    messages: list[dict[str, str]],
    scale: Scale,
    readout: str,
    least: float,
    sampling: Mapping[str, Any],
    run: int = 0,
) -> Rating:
    """One rating. readout "logprobs": the expectation (exact in the engine, over the 20 likeliest tokens of an endpoint);
    "text": the number written."""
    if readout == "text":
        return from_text(await chat.chat(messages, run=run, **sampling), scale)
    if isinstance(chat, EngineChat):
        try:
            found = await chat.next_word(messages, [str(value) for value in scale.values])
        except ValueError as error:
            raise UserError(
                f"config.interact.{scale.field}: {error}, so the scale {scale.low} to {scale.high} has no probabilities to "
                "read. Choose another scale (such as 0 to 9), or readout 'text'."
            ) from error
        if found is None:
            return Rating(None, "too_long")
        return expected({int(word): p for word, p in found.items()}, least)
    reply = await chat.chat(messages, run=run, logprobs=True, top_logprobs=20, **sampling)
    return from_logprobs(reply, scale, least)


@dataclasses.dataclass(frozen=True)
class ModelUser:
    """A persona of one type, played by a model. Implements `User`."""

    roles: Roles
    scenario_data: Scenario
    persona: Persona
    user_id: str
    user_type: str
    number: int  # of the user among those of its scenario and type; chooses its thought
    dialogue: int = 0

    @property
    def scenario(self) -> str:
        return self.scenario_data.name

    def _thought(self, user_type: str) -> str:
        thoughts = self.scenario_data.thoughts(user_type)
        return thoughts[self.number % len(thoughts)]

    @property
    def plain_system(self) -> str | None:
        """The assistant's system message without the user's preference, where that was told."""
        return self.system(preference=False)["content"] if self.roles.preference else None

    def system(self, preference: bool) -> Message:
        """The assistant's system message, with or without the user's preference."""
        told = self._thought(self.user_type) if preference else ""
        text = self.roles.prompts(
            "assistant", task=self.scenario_data.task, background=self.persona.background, preference=told
        )
        return {"role": "system", "content": text}

    async def open(self) -> Conversation:
        first = self.persona.opening
        if stranger := self.roles.stranger:
            asked = self.roles.prompts("rephrase", background=self.persona.background, text=first)
            reply = await stranger.chat.chat([{"role": "user", "content": asked}], run=self.dialogue, **stranger.sampling)
            first = _spoken(reply)
        return [self.system(self.roles.preference), {"role": "user", "content": first}]

    async def reply(self, messages: Conversation) -> Message | None:
        if sum(m["role"] == "assistant" for m in messages) >= self.roles.turns:
            return None
        speaker = self.roles.stranger or self.roles.speaker
        asked = [self._persona(self.user_type), *self._seen(messages)]
        text = _spoken(await speaker.chat.chat(asked, run=self.dialogue, **speaker.sampling))
        if self.roles.end and self.roles.end in text:
            return None
        return {"role": "user", "content": text}

    async def rate(self, messages: Conversation, turn: int) -> Rating:
        roles = self.roles
        asked = self.question(messages, turn)
        rater = roles.rater
        return await ask(rater.chat, asked, roles.scale, roles.readout, roles.least_mass, rater.sampling, run=self.dialogue)

    def question(self, messages: Conversation, turn: int) -> Conversation:
        """What the rater of the assistant's turn `turn` is asked."""
        roles, as_type = self.roles, self.roles.rate_as or self.user_type
        shown = upto(messages, turn, whole=roles.view == "whole")
        thought = self._thought(as_type)
        scale = {"low": roles.scale.low, "high": roles.scale.high}
        if roles.person == "third":
            about = {"task": self.scenario_data.task, "background": self.persona.background}
            system = roles.prompts("rate_third", thought=thought if roles.thought else "", **about, **scale)
            text = roles.prompts("dialogue", messages=[m for m in shown if m["role"] != "system"])
            return [{"role": "system", "content": system}, {"role": "user", "content": text}]
        *before, last = self._seen(shown)
        # For the user the assistant's answer came last: the question goes with it, so that roles alternate.
        asked = {"role": "user", "content": f"{last['content']}\n\n{roles.prompts('rate_first', thought=thought, **scale)}"}
        return [self._persona(as_type), *before, asked]

    async def veto(self, messages: Conversation, turn: int) -> Rating:
        """How harmful the guard finds the assistant's turn `turn`, on roles.guard_scale."""
        roles, guard = self.roles, self.roles.guard
        assert guard
        scale = {"low": roles.guard_scale.low, "high": roles.guard_scale.high}
        system = roles.prompts("veto", task=self.scenario_data.task, background=self.persona.background, **scale)
        shown = [m for m in upto(messages, turn) if m["role"] != "system"]
        asked = [{"role": "system", "content": system}, {"role": "user", "content": roles.prompts("dialogue", messages=shown)}]
        return await ask(guard.chat, asked, roles.guard_scale, roles.readout, roles.least_mass, guard.sampling)

    def _seen(self, messages: Conversation) -> Conversation:
        return flipped(messages, self.roles.prompts("user_start", task=self.scenario_data.task))

    def _persona(self, user_type: str) -> Message:
        text = self.roles.prompts(
            "user", task=self.scenario_data.task, background=self.persona.background, thought=self._thought(user_type),
            end=self.roles.end,
        )  # fmt: skip
        return {"role": "system", "content": text}


def _spoken(reply: Reply) -> str:
    """The text of a message that came whole. Raises Failed."""
    if reply.state != "ok":
        raise Failed(reply.state, reply.error)
    return reply.text.strip()


def of_each(scenarios: Sequence[Scenario], personas: Mapping[str, Sequence[Persona]], roles: Roles, *, user_type: str,
            counts: Mapping[str, int], dialogues: int) -> list[ModelUser]:  # fmt: skip
    """counts[scenario] users of one type in each scenario, each in `dialogues` conversations.

    Benign users take a scenario's personas from the front and biased ones from the back, so that at every ratio each persona
    is used once, and who is biased at a small ratio is biased at a larger one as well.
    """
    users = []
    for scenario in scenarios:
        cast = personas.get(scenario.name, ())  # with fewer users than scenarios some have nobody
        for number in range(counts.get(scenario.name, 0)):
            persona = cast[number] if user_type == "benign" else cast[-1 - number]
            name = f"{user_type}-{scenario.name}-{number:05d}"
            users += [
                ModelUser(roles, scenario, persona.of(user_type), name, user_type, number, dialogue)
                for dialogue in range(dialogues)
            ]
    return users
