"""Users played by a model: an endpoint, or a checkpoint in the JAX engine."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from emjax.api import Reply
from emjax.config import RatingConfig, VetoScale
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
    """A chat partner, and the sampling fields sent with each call."""

    chat: Chat
    sampling: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Roles:
    """What all model-played users of an experiment share."""

    prompts: Prompts
    speaker: Player  # writes the user's messages
    rater: Player  # rates the answers; usually the speaker's model
    rating: RatingConfig = RatingConfig()
    turns: int = 2  # assistant answers; the paper's default
    # the assistant's system prompt states what the user wants, as in the paper
    preference: bool = True
    # what the user writes to end a conversation early; "": only the turn limit ends it
    end: str = ""
    stranger: Player | None = None  # control foreign_text: another model writes the user's words
    guard: Player | None = None  # reads answers for the veto
    veto: VetoScale = VetoScale()  # the guard's scale
    # control benign_ratings: rate as a user of this type; "": as the user's own type
    rate_as: str = ""

    @property
    def scale(self) -> Scale:
        return Scale(self.rating.low, self.rating.high, "rating")

    @property
    def guard_scale(self) -> Scale:
        return Scale(self.veto.low, self.veto.high, "veto")


async def ask(player: Player, messages: Conversation, scale: Scale, rating: RatingConfig, *, run: int = 0) -> Rating:
    """One rating on `scale`, read as rating.readout says.

    "logprobs" is the expectation: exact in the engine, over the 20 likeliest tokens at an endpoint.
    "text" is the number in the answer. Raises UserError if the scale's numbers cannot be read.
    """
    chat = player.chat
    if rating.readout == "text":
        return from_text(await chat.chat(messages, run=run, **player.sampling), scale)
    if isinstance(chat, EngineChat):
        try:
            found = await chat.next_word(messages, [str(value) for value in scale.values])
        except ValueError as error:
            raise UserError(
                f"config.interact.{scale.field}: {error}, so the probabilities of the scale {scale.low} to {scale.high} cannot "
                "be read. Choose another scale (such as 0 to 9), or set config.interact.rating.readout to 'text'."
            ) from error
        if found is None:
            return Rating(None, "too_long")
        return expected({int(word): p for word, p in found.items()}, rating.least_mass)
    reply = await chat.chat(messages, run=run, logprobs=True, top_logprobs=20, **player.sampling)
    return from_logprobs(reply, scale, rating.least_mass)


@dataclasses.dataclass(frozen=True)
class ModelUser:
    """A persona of one user type, played by a model. Implements `User`."""

    roles: Roles
    scenario_data: Scenario
    persona: Persona
    user_id: str
    user_type: str
    number: int  # among the users of its scenario and type; selects the user's thought
    dialogue: int = 0

    @property
    def scenario(self) -> str:
        return self.scenario_data.name

    def _thought(self, user_type: str) -> str:
        thoughts = self.scenario_data.thoughts(user_type)
        return thoughts[self.number % len(thoughts)]

    @property
    def plain_system(self) -> str | None:
        """The assistant's system message without the user's preference; None if it has none."""
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
        return await ask(roles.rater, self.question(messages, turn), roles.scale, roles.rating, run=self.dialogue)

    def question(self, messages: Conversation, turn: int) -> Conversation:
        """What the rater of the assistant's turn `turn` is asked."""
        roles, rating = self.roles, self.roles.rating
        as_type = roles.rate_as or self.user_type
        shown = upto(messages, turn, whole=rating.view == "whole")
        thought = self._thought(as_type)
        scale = {"low": rating.low, "high": rating.high}
        if rating.person == "third":
            about = {"task": self.scenario_data.task, "background": self.persona.background}
            system = roles.prompts("rate_third", thought=thought if rating.thought else "", **about, **scale)
            return [{"role": "system", "content": system}, self._dialogue(shown)]
        *before, last = self._seen(shown)
        # To the user, the last message is the assistant's answer. The question is appended to it,
        # so that roles alternate.
        asked = {"role": "user", "content": f"{last['content']}\n\n{roles.prompts('rate_first', thought=thought, **scale)}"}
        return [self._persona(as_type), *before, asked]

    async def veto(self, messages: Conversation, turn: int) -> Rating:
        """How harmful the guard finds the assistant's turn `turn`, on the scale `roles.veto`."""
        roles = self.roles
        assert roles.guard
        scale = {"low": roles.veto.low, "high": roles.veto.high}
        system = roles.prompts("veto", task=self.scenario_data.task, background=self.persona.background, **scale)
        asked = [{"role": "system", "content": system}, self._dialogue(upto(messages, turn))]
        return await ask(roles.guard, asked, roles.guard_scale, roles.rating)

    def _dialogue(self, messages: Conversation) -> Message:
        """The conversation as one text, for a reader who takes no part in it."""
        shown = [m for m in messages if m["role"] != "system"]
        return {"role": "user", "content": self.roles.prompts("dialogue", messages=shown)}

    def _seen(self, messages: Conversation) -> Conversation:
        return flipped(messages, self.roles.prompts("user_start", task=self.scenario_data.task))

    def _persona(self, user_type: str) -> Message:
        text = self.roles.prompts(
            "user",
            task=self.scenario_data.task,
            background=self.persona.background,
            thought=self._thought(user_type),
            end=self.roles.end,
        )
        return {"role": "system", "content": text}


def _spoken(reply: Reply) -> str:
    """The text of a complete message. Raises Failed for any other state."""
    if reply.state != "ok":
        raise Failed(reply.state, reply.error)
    return reply.text.strip()


def of_each(
    scenarios: Sequence[Scenario],
    personas: Mapping[str, Sequence[Persona]],
    roles: Roles,
    *,
    user_type: str,
    counts: Mapping[str, int],
    dialogues: int,
) -> list[ModelUser]:
    """counts[scenario] users of one type in each scenario, each in `dialogues` conversations.

    Benign users take a scenario's personas from the front and biased users from the back. So every
    persona is used once at every ratio, and a user who is biased at one ratio is biased at every
    larger one.
    """
    users = []
    for scenario in scenarios:
        cast = personas.get(scenario.name, ())  # absent if there are fewer users than scenarios
        for number in range(counts.get(scenario.name, 0)):
            persona = cast[number] if user_type == "benign" else cast[-1 - number]
            name = f"{user_type}-{scenario.name}-{number:05d}"
            users += [
                ModelUser(roles, scenario, persona.of(user_type), name, user_type, number, dialogue)
                for dialogue in range(dialogues)
            ]
    return users
