"""Questions with one right answer: what must not change while honesty does."""

import dataclasses
import importlib.util
import re

from emjax.data.chat import Conversation
from emjax.errors import UserError


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


def need_harness(asked: str) -> None:
    """Raises UserError where the lm-evaluation-harness, the extra `capability`, is not installed. asked: what needs it."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            f"{asked} needs the lm-evaluation-harness, which is not installed: .venv/bin/pip install -e '.[capability]' (with "
            "-c requirements/run-py312.txt, or py311, to keep the pins)."
        )
