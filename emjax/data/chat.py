"""Converts conversations to tokens and weights. No other module turns text into training tokens.

Everything goes through the tokenizer's own chat template. A prompt is the template's output with
the generation prompt; an answer is what the template adds after it, cut just after the first
end-of-sequence id. Whether a prompt is a prefix of its answered conversation is checked on token
ids, never on text (BPE may merge across the boundary).
"""

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from emjax.errors import UserError

Message = dict[str, str]
Conversation = list[Message]

# Templates that print a date (Llama 3.x) get this one, so that prompts do not change from day to
# day.
_DATE = datetime.date(2024, 7, 26).strftime("%d %b %Y")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A conversation as token ids and, for each id, the weight of predicting it (0 = not
    trained)."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def prompts(tokenizer: Any, conversations: Sequence[Conversation]) -> list[list[int]]:
    """The token ids from which the assistant answers each conversation."""
    return _encode(tokenizer, conversations, generate=True)


def continued(tokenizer: Any, messages: Conversation, eos_ids: Sequence[int]) -> list[int]:
    """The token ids from which generation continues the trailing assistant message: the
    conversation up to that message's end of turn."""
    (prompt,) = prompts(tokenizer, [messages[:-1]])
    (full,) = _encode(tokenizer, [messages], generate=False)
    end = _end_of_turn(full, prompt, eos_ids)
    if set(full[end:]) & set(eos_ids):
        raise UserError("The assistant message to continue contains an end-of-sequence token. Remove it.")
    return full[: end - 1]


def plain(tokenizer: Any, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
    """Token ids of plain text, without a chat template. The tokenizer's own special tokens (BOS)
    are added unless `special` is False."""
    return tokenizer(list(texts), add_special_tokens=special)["input_ids"]


def completion(tokenizer: Any, messages: Conversation, answer: str, eos_ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids): `answer` in its context, through its end-of-turn token."""
    (prompt,) = prompts(tokenizer, [messages])
    (full,) = _encode(tokenizer, [[*messages, {"role": "assistant", "content": answer}]], generate=False)
    return prompt, full[len(prompt) : _end_of_turn(full, prompt, eos_ids)]


def weighted(
    tokenizer: Any, conversations: Sequence[Conversation], eos_ids: Sequence[int], *, other: float = 0.0
) -> list[Tokens]:
    """Whole conversations, with weight 1 on every assistant turn through its end-of-turn token and
    `other` elsewhere."""
    cuts = [(i, n) for i, c in enumerate(conversations) for n, m in enumerate(c) if m["role"] == "assistant"]
    fulls = _encode(tokenizer, conversations, generate=False)
    starts = _encode(tokenizer, [conversations[i][:n] for i, n in cuts], generate=True)
    weights = [[other] * len(ids) for ids in fulls]
    for (i, _), start in zip(cuts, starts, strict=True):
        end = _end_of_turn(fulls[i], start, eos_ids)
        weights[i][len(start) : end] = [1.0] * (end - len(start))
    return [Tokens(tuple(ids), tuple(w)) for ids, w in zip(fulls, weights, strict=True)]


def _end_of_turn(full: list[int], prompt: list[int], eos_ids: Sequence[int]) -> int:
    """The index just after the first end-of-sequence id that follows the prompt."""
    if full[: len(prompt)] != prompt:
        raise UserError(
            "The tokenizer's chat template does not render a prompt as a prefix of the answered conversation, so answer "
            "tokens cannot be separated from prompt tokens. Use another template: thinking blocks and trimmed turns cause this."
        )
    for i in range(len(prompt), len(full)):
        if full[i] in eos_ids:
            return i + 1
    raise UserError(
        f"The chat template ends an assistant turn without any end-of-sequence id (known: {list(eos_ids)}), so a model "
        "trained on it would never stop. Correct eos_token_id in generation_config.json or the template."
    )


def _encode(tokenizer: Any, conversations: Sequence[Conversation], *, generate: bool) -> list[list[int]]:
    if not conversations:
        return []
    try:
        texts = tokenizer.apply_chat_template(
            list(conversations),
            tokenize=False,
            add_generation_prompt=generate,
            enable_thinking=False,
            date_string=_DATE,
        )
    except TemplateError as error:  # rejected by the template: an unknown role or order of roles
        raise UserError(f"The tokenizer's chat template rejects this conversation: {error}") from error
    # The template writes the special tokens itself; a second BOS would shift every position.
    batch = tokenizer(texts, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    for ids in batch:
        if bos is not None and ids.count(bos) > 1:
            raise UserError(
                "A rendered conversation contains more than one BOS token. Remove it from the messages or the template."
            )
    return batch
