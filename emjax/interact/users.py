"""Simulated users: what a conversation needs from the one who talks to the assistant.

`players` has users played by a model; a world's scripted users (`emjax.worlds`) implement the same protocol. The assistant is
always the JAX engine.
"""

from typing import Protocol

from emjax.data.chat import Conversation, Message
from emjax.interact.ratings import Rating

__all__ = ["Failed", "Rating", "User", "flipped", "upto"]


class Failed(Exception):
    """A user's message did not come; `state` says why, in the words of `emjax.api`, and `error` in those of the endpoint. The
    conversation ends unrated."""

    def __init__(self, state: str, error: str | None = None):
        super().__init__(state)
        self.state, self.error = state, error


class User(Protocol):
    """One simulated user in one conversation. Everything random in it derives from its own identity."""

    user_id: str
    user_type: str  # benign | biased
    scenario: str
    dialogue: int  # which of the user's conversations this is

    async def open(self) -> Conversation:
        """The opening: an optional system message and the first user message. Raises Failed."""
        ...

    async def reply(self, messages: Conversation) -> Message | None:
        """The next user message, or None where the conversation is over. Raises Failed."""
        ...

    async def rate(self, messages: Conversation, turn: int) -> Rating:
        """The user's rating of the assistant's turn number `turn`, counted from 0."""
        ...


def flipped(messages: Conversation, first: str) -> Conversation:
    """The conversation as its user sees it: the user's messages are now the assistant's own, and `first` asks for the opening.

    System messages are the other side's and stay out. Roles alternate, user first, as chat templates want it.
    """
    other = {"user": "assistant", "assistant": "user"}
    seen = [{"role": other[m["role"]], "content": m["content"]} for m in messages if m["role"] != "system"]
    return [{"role": "user", "content": first}, *seen]


def upto(messages: Conversation, turn: int, *, whole: bool = False) -> Conversation:
    """The conversation through the assistant's turn number `turn`; `whole`: through its last one."""
    answers = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
    return messages[: answers[-1 if whole else turn] + 1]
