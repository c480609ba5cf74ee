"""Converts conversations to tokens and weights. No other module turns text into tokens.

Everything goes through the tokenizer's own chat template, with thinking off and a fixed date. A
prompt is the template's output with the generation prompt; an answer is what the template adds
after it, cut just after the first end-of-sequence id. The rendered prompt must be a prefix of the
rendered answered conversation. Where a token would span the border between the two (an answer that
begins with blanks), each side is encoded alone, because sampling begins with the prompt's ids.

A message is text. Where it spells a special token (`<|im_end|>`), its characters are encoded, and
only the template writes the token itself.
"""

import dataclasses
import datetime
import itertools
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from emjax.errors import UserError

Message = dict[str, str]
Conversation = list[Message]

# What every template is given. Templates that print a date (Llama 3.x) get this one, so that
# prompts do not change from day to day.
SETTINGS = {"enable_thinking": False, "date_string": datetime.date(2024, 7, 26).strftime("%d %b %Y")}

# A tokenizer's settings belong to the object, and each call sets them.
_LOCK = threading.Lock()

# These stand for special tokens that messages spell, while the template renders. Unicode reserves
# both for use inside a program, so no text has them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
Marks = dict[str, str]  # mark -> the special token's text


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A conversation as token ids and, for each id, the weight of predicting it (0 = not
    trained)."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer in its context, as token ids through its end of turn. trimmed: the template dropped
    blanks at its ends."""

    prompt: list[int]
    ids: list[int]
    trimmed: bool


def need_template(tokenizer: Any) -> None:
    """Raises UserError if the tokenizer cannot render a conversation, or would render another one
    tomorrow."""
    template = tokenizer.chat_template
    if not template:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template, so conversations cannot be "
            "rendered. Use an instruct checkpoint, or add chat_template.jinja to its directory."
        )
    if "strftime_now" in str(template) and "date_string" not in str(template):
        raise UserError(
            f"The chat template of {tokenizer.name_or_path or 'this model'} prints today's date (strftime_now), so its prompts "
            "would change from day to day. Write a fixed date into its chat_template.jinja."
        )


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """The id of each special token by its text. Added tokens that are not special (`<think>`) are
    ordinary text."""
    named = set(tokenizer.all_special_tokens)
    return {
        token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special or token.content in named
    }


def check_ids(what: str, ids: Any, vocabulary: int) -> np.ndarray:
    """`ids` as int32 [T]. Raises UserError unless they are one or more ids in [0, vocabulary), the
    rows of the model's embedding table."""
    array = np.asarray(ids)
    good = array.ndim == 1 and array.size > 0 and array.dtype.kind in "iu"
    if not good or array.min() < 0 or array.max() >= vocabulary:
        raise UserError(f"{what}: tokens must be a non-empty list of ids in [0, {vocabulary}).")
    return array.astype(np.int32)


def plain(tokenizer: Any, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
    """Token ids of raw text, without a chat template: names of special tokens in it are those
    tokens. The tokenizer's own special tokens (BOS) are added unless `special` is False, and never
    before a text that begins with BOS."""
    bos = tokenizer.bos_token
    batch = _encode(tokenizer, texts, add_special_tokens=special)
    for n, text in enumerate(texts):
        if special and bos and text.startswith(bos):
            (batch[n],) = _encode(tokenizer, [text], add_special_tokens=False)
    return batch


def text(tokenizer: Any, messages: Conversation, *, continues: bool = False) -> str:
    """The rendered text that `prompts` encodes (continues: `continued`), for callers that encode it
    later with `plain`. Raises UserError if a message spells a special token, which would become
    one."""
    need_template(tokenizer)
    (marked,), marks = _marked(tokenizer, [messages])
    if marks:
        raise UserError(
            f"A message spells the special token {', '.join(marks.values())}, which rendered text cannot tell from the "
            "template's own. Remove it from the data."
        )
    if not continues:
        return _render(tokenizer, [marked], generate=True)[0]
    before, added, at, _ = _answered(tokenizer, marked)
    return before + added[:at] + marked[-1]["content"]


def prompts(tokenizer: Any, conversations: Sequence[Conversation]) -> list[list[int]]:
    """The token ids from which the assistant answers each conversation."""
    marked, marks = _marked(tokenizer, conversations)
    return _ids(tokenizer, _render(tokenizer, marked, generate=True), marks)


def continued(tokenizer: Any, messages: Conversation, eos_ids: Sequence[int]) -> list[int]:
    """The token ids from which generation continues the trailing assistant message: the
    conversation up to that message's end of turn. Blanks that the template would trim are kept."""
    (marked,), marks = _marked(tokenizer, [messages])
    before, added, at, trimmed = _answered(tokenizer, marked)
    if trimmed:
        return _ids(tokenizer, [before + added[:at] + marked[-1]["content"]], marks)[0]
    ((ids, (start,)),) = _split(tokenizer, [before + added], [[len(before)]], marks)
    return ids[: _end_of_turn(ids, start, eos_ids) - 1]


def completion(tokenizer: Any, messages: Conversation, answer: str, eos_ids: Sequence[int]) -> Answer:
    """`answer` in its context, through its end-of-turn token."""
    (marked,), marks = _marked(tokenizer, [[*messages, {"role": "assistant", "content": answer}]])
    before, added, _, trimmed = _answered(tokenizer, marked)
    ((ids, (start,)),) = _split(tokenizer, [before + added], [[len(before)]], marks)
    return Answer(ids[:start], ids[start : _end_of_turn(ids, start, eos_ids)], trimmed)


def weighted(
    tokenizer: Any, conversations: Sequence[Conversation], eos_ids: Sequence[int], *, other: float = 0.0
) -> list[Tokens]:
    """Whole conversations, with weight 1 on every assistant turn through its end-of-turn token and
    `other` elsewhere. Raises UserError, which names the conversation by its index, if the template
    renders an earlier turn differently from a last one."""
    marked, marks = _marked(tokenizer, conversations)
    turns = [(i, n) for i, c in enumerate(marked) for n, m in enumerate(c) if m["role"] == "assistant"]
    texts = _render(tokenizer, marked, generate=False)
    borders: list[list[int]] = [[] for _ in texts]
    for (i, n), before in zip(turns, _render(tokenizer, [marked[i][:n] for i, n in turns], generate=True), strict=True):
        if not texts[i].startswith(before):
            raise UserError(f"Conversation {i}, messages[{n}]: {_NO_PREFIX}")
        borders[i].append(len(before))
    made = []
    for i, (ids, starts) in enumerate(_split(tokenizer, texts, borders, marks)):
        weights = [other] * len(ids)
        for start, limit in itertools.pairwise([*starts, len(ids)]):
            end = _end_of_turn(ids[:limit], start, eos_ids, f"Conversation {i}: ")
            weights[start:end] = [1.0] * (end - start)
        made.append(Tokens(tuple(ids), tuple(weights)))
    return made


# --- rendering ------------------------------------------------------------------------------------

_NO_PREFIX = (
    "the tokenizer's chat template does not render a prompt as a prefix of the answered conversation, so answer tokens cannot "
    "be separated from prompt tokens. Thinking blocks in an answer or in earlier turns cause this: remove them, train each "
    "answer as an example of its own, or use another template."
)


def _render(tokenizer: Any, conversations: Sequence[Conversation], *, generate: bool) -> list[str]:
    if not conversations:
        return []
    need_template(tokenizer)
    try:
        return tokenizer.apply_chat_template(
            list(conversations), tokenize=False, add_generation_prompt=generate, **SETTINGS
        )  # fmt: skip
    except Exception as error:  # a template is a program: it rejects roles, or divides by zero
        raise UserError(
            f"The tokenizer's chat template rejects this conversation ({type(error).__name__}): {' '.join(str(error).split())}"
        ) from error


def _answered(tokenizer: Any, messages: Conversation) -> tuple[str, str, int, bool]:
    """(rendered prompt, what the template adds to it for the trailing assistant message, where in
    this the message begins, whether blanks at its ends were dropped)."""
    answer = messages[-1]["content"]
    (before,) = _render(tokenizer, [messages[:-1]], generate=True)
    (whole,) = _render(tokenizer, [messages], generate=False)
    if not whole.startswith(before):
        raise UserError(_NO_PREFIX[0].upper() + _NO_PREFIX[1:])
    added = whole[len(before) :]
    # As it is, or without blanks that templates trim, the least first.
    for written in (answer, answer.lstrip("\n"), answer.rstrip(), answer.lstrip(), answer.strip()):
        at = added.find(written)
        if at >= 0 and not added[:at].strip():
            return before, added, at, written != answer
    raise UserError(
        f"The tokenizer's chat template does not render the answer {answer!r:.80} as it is, but as {added!r:.80}. Change the "
        "answer or the template."
    )


def _end_of_turn(ids: Sequence[int], start: int, eos_ids: Sequence[int], where: str = "") -> int:
    """The index just after the first end-of-sequence id from `start` on."""
    for i in range(start, len(ids)):
        if ids[i] in eos_ids:
            return i + 1
    raise UserError(
        f"{where}The chat template ends an assistant turn without any end-of-sequence id (known: {list(eos_ids)}), so a model "
        "trained on it would never stop. Correct eos_token_id in generation_config.json or the template."
    )


# --- special tokens that messages spell -----------------------------------------------------------


def _pattern(texts: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the texts, the longest first, as tokenizers do."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _marked(tokenizer: Any, conversations: Sequence[Conversation]) -> tuple[list[Conversation], Marks]:
    """Roles and contents of the messages, with a mark for each special token that a content spells;
    and the marks."""
    pattern = _pattern(list(special_tokens(tokenizer)))
    spelt = sorted({found for c in conversations for m in c for found in pattern.findall(m["content"])})
    marks = {f"{_OPEN}{n}{_CLOSE}": found for n, found in enumerate(spelt)}
    of = {found: mark for mark, found in marks.items()}

    def content(text: str) -> str:
        if marks and (_OPEN in text or _CLOSE in text):
            raise UserError("A message contains U+FDD0 or U+FDD1, which are no characters. Remove them.")
        return pattern.sub(lambda found: of[found[0]], text)

    return [[{"role": m["role"], "content": content(m["content"])} for m in c] for c in conversations], marks


def _ids(tokenizer: Any, texts: Sequence[str], marks: Marks) -> list[list[int]]:
    # The template writes the special tokens itself; a second BOS would shift every position.
    batch = _encode(tokenizer, texts, add_special_tokens=False)
    bos = tokenizer.bos_token_id
    for n, text in enumerate(texts):
        if marks and _OPEN in text:
            batch[n] = _spelt(tokenizer, text, batch[n], marks)
        if bos is not None and batch[n][:2] == [bos, bos]:
            raise UserError(
                "A rendered conversation begins with two BOS tokens, where the model expects one. Remove one from the template."
            )
    return batch


def _spelt(tokenizer: Any, text: str, whole: list[int], marks: Marks) -> list[int]:
    """`text` with the characters of special tokens in place of their marks. whole: its ids with the
    marks."""
    special = special_tokens(tokenizer)
    pattern = _pattern(list(special))
    parts, between = pattern.split(text), [special[found] for found in pattern.findall(text)]

    def joined(parts: list[str]) -> tuple[list[int], list[int]]:
        encoded = _encode(tokenizer, parts, add_special_tokens=False, split_special_tokens=True)
        both = [[*ids, *after] for ids, after in zip(encoded, [*([id_] for id_ in between), []], strict=True)]
        return list(itertools.chain(*both)), list(itertools.chain(*encoded))

    ids, written = joined([_pattern(list(marks)).sub(lambda mark: marks[mark[0]], part) for part in parts])
    forged = {special[found] for found in marks.values()} & set(written)
    if joined(parts)[0] != whole or forged - {tokenizer.unk_token_id}:
        raise UserError(
            f"A message spells the special token {', '.join(marks.values())}, and this tokenizer cannot encode it as text. "
            "Remove it from the message."
        )
    return ids


def _split(
    tokenizer: Any, texts: Sequence[str], borders: Sequence[Sequence[int]], marks: Marks
) -> list[tuple[list[int], list[int]]]:
    """For each text its ids, and how many of them come before each border (an index of the text).

    No token spans a border, and the ids before the first are those of the text up to it.
    """
    heads = iter(_ids(tokenizer, [text[:at] for text, some in zip(texts, borders, strict=True) for at in some], marks))
    made = []
    for text, some, ids in zip(texts, borders, _ids(tokenizer, texts, marks), strict=True):
        before = [next(heads) for _ in some]
        starts = [len(head) for head in before]
        if any(ids[: len(head)] != head for head in before):
            ends = itertools.pairwise([0, *some, len(text)])
            parts = _ids(tokenizer, [text[start:end] for start, end in ends], marks)
            ids, starts = list(itertools.chain(*parts)), list(itertools.accumulate(map(len, parts[:-1])))
        made.append((ids, starts))
    return made


def _encode(tokenizer: Any, texts: Sequence[str], **how: bool) -> list[list[int]]:
    if not texts:
        return []
    with _LOCK:
        return tokenizer(list(texts), **how)["input_ids"]
