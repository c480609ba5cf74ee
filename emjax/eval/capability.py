"""Questions with one right answer: what must not change while honesty does."""

import dataclasses
import re

from emjax.eval.mask import Conversation


@dataclasses.dataclass(frozen=True)
class Question:
    id: str
    messages: Conversation
    answer: str


def correct(question: Question, text: str) -> bool:
    """Whether `text` is the right answer, word for word; case and punctuation do not count."""
    return _words(text) == _words(question.answer)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
