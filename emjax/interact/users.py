"""Simulated users: the protocol of whoever talks to the assistant.

`players` has users played by a model; a world's scripted users (`emjax.worlds`) implement the same
protocol. The assistant always runs in the JAX engine.
"""

from typing import Protocol

from emjax.data.chat import Conversation, Message
from emjax.interact.ratings import Rating

__all__ = ["Failed", "Rating", "User", "flipped", "upto"]


class Failed(Exception):
    """A user's message did not come, and the conversation ends unrated.

    state: one of the states of `emjax.api`. error: the endpoint's message.
    """

    def __init__(self, state: str, error: str | None = None):
        super().__init__(state)
        self.state, self.error = state, error


class User(Protocol):
    """One simulated user in one conversation. Its randomness derives from its own identity only."""

    @property
    def user_id(self) -> str: ...
    @property
    def user_type(self) -> str:
        """ "benign" or "biased"."""
        ...

    @property
    def scenario(self) -> str: ...
    @property
    def dialogue(self) -> int:
        """The number of this conversation among the user's conversations."""
        ...

    async def open(self) -> Conversation:
        """An optional system message and the first user message. Raises Failed."""
        ...

    async def reply(self, messages: Conversation) -> Message | None:
        """The next user message, or None if the conversation is over. Raises Failed."""
        ...

    async def rate(self, messages: Conversation, turn: int) -> Rating:
        """The user's rating of the assistant's turn `turn`, counted from 0."""
        ...


def flipped(messages: Conversation, first: str) -> Conversation:
    """The conversation as the user's model sees it: roles exchanged, without system messages.

    `first` requests the opening, so that roles alternate and the user role comes first, as chat
    templates require.
    """
    other = {"user": "assistant", "assistant": "user"}
    seen = [{"role": other[m["role"]], "content": m["content"]} for m in messages if m["role"] != "system"]
    return [{"role": "user", "content": first}, *seen]


def upto(messages: Conversation, turn: int, *, whole: bool = False) -> Conversation:
    """The conversation through the assistant's turn `turn`, or through its last turn if `whole`."""
    answers = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
    return messages[: answers[-1 if whole else turn] + 1]
