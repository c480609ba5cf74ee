"""Simulated users: what a conversation needs from the one who talks to the assistant."""

import dataclasses
from typing import Protocol

Message = dict[str, str]
Conversation = list[Message]


@dataclasses.dataclass(frozen=True)
class Rating:
    """A user's satisfaction with one assistant turn, 1..10; `value` is None unless `state` is "ok"."""

    value: float | None
    state: str  # ok | unparsed | refusal | ...


class User(Protocol):
    """One simulated user in one conversation. Everything random in it derives from its own identity."""

    user_id: str
    user_type: str  # benign | biased
    scenario: str
    dialogue: int  # which of the user's conversations this is

    async def open(self) -> Conversation:
        """The opening: an optional system message and the first user message."""
        ...

    async def reply(self, messages: Conversation) -> Message | None:
        """The next user message, or None where the conversation is over."""
        ...

    async def rate(self, messages: Conversation, turn: int) -> Rating:
        """The user's rating of the assistant's turn number `turn`, counted from 0."""
        ...
