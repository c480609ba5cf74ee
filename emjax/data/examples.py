"""Training rows from files: conversations with rated answers, or examples with labels, checked field by field."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emjax.data import chat
from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.store import read_lines

_ROLES = ("system", "user", "assistant")


def check_messages(messages: Any, where: str) -> None:
    """Raises UserError unless `messages` is a conversation: a non-empty list of {"role", "content"}."""
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{where}: field \'messages\' must be a non-empty list of {{"role", "content"}}.')
    for n, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES or not isinstance(message.get("content"), str):
            raise UserError(
                f"{where}: messages[{n}] must have a 'role' out of {', '.join(_ROLES)} and a text in 'content', "
                f"not {message!r:.120}."
            )


def read_trajectories(path: Path) -> list[dict[str, Any]]:
    """Reads a trajectories.jsonl that was collected elsewhere (contracts, section 4)."""
    if not path.is_file():
        raise UserError(f"config.interact.trajectories names {path}, which is not a file.")
    rows = read_lines(path)
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        where = f"{path}, line {number}"
        for field, kind in (("id", str), ("user_id", str), ("scenario", str), ("turns", list)):
            if not isinstance(row.get(field), kind):
                raise UserError(f"{where}: field {field!r} must be a {kind.__name__}, not {row.get(field)!r:.80}.")
        if row["id"] in seen:
            raise UserError(f"{where}: the id {row['id']!r} occurs before; ids must be unique.")
        seen.add(row["id"])
        check_messages(row.get("messages"), where)
        if row.get("user_type") not in ("benign", "biased"):
            raise UserError(f"{where}: field 'user_type' must be 'benign' or 'biased', not {row.get('user_type')!r}.")
        if not isinstance(row.get("score"), int | float | None):
            raise UserError(f"{where}: field 'score' must be a number or null, not {row['score']!r:.80}.")
        if len(row["turns"]) != sum(m["role"] == "assistant" for m in row["messages"]):
            raise UserError(f"{where}: 'turns' must hold one entry for each assistant message.")
    return rows


def tokenized(
    rows: Sequence[dict[str, Any]], tokenizer: Any, eos_ids: Sequence[int], max_length: int
) -> tuple[list[Example], dict[str, int]]:
    """examples.jsonl rows -> training rows, and counts of what was cut or dropped.

    A row longer than `max_length` loses its oldest turns first (a system message stays), and is dropped where the last turn
    and the completion alone are too long: a completion is never cut, so its end-of-turn token is always there.
    """
    prompts = chat.prompts(tokenizer, [row["messages"] for row in rows])
    counts: Counter[str] = Counter(rows=len(rows))
    examples = []
    for row, prompt in zip(rows, prompts, strict=True):
        if row.get("completion_tokens"):
            answer = list(row["completion_tokens"])
        else:
            prompt, answer = chat.completion(tokenizer, row["messages"], row["completion"], eos_ids)
        messages = row["messages"]
        cut = False
        while len(prompt) + len(answer) > max_length:
            shorter = _without_oldest_turn(messages)
            if shorter is None:
                break
            messages, cut = shorter, True
            prompt = chat.prompts(tokenizer, [messages])[0]
        if len(prompt) + len(answer) > max_length or not answer:
            counts["dropped_empty" if not answer else "dropped_too_long"] += 1
            continue
        counts["cut"] += cut
        counts["without_eos"] += answer[-1] not in eos_ids
        counts["tokens"] += len(answer)
        examples.append(
            Example(
                id=row["id"],
                ids=(*prompt, *answer),
                weights=(0.0,) * len(prompt) + (float(row["weight"]),) * len(answer),
                start=len(prompt),
                prompt_id=row["prompt_id"],
                label=row["label"],
            )
        )
    if not examples:
        raise UserError(
            f"None of the {len(rows)} training examples is left ({dict(counts)}). Raise config.train.buckets, the "
            "longest of which "
            "is the longest row, or look at the selected conversations."
        )
    return examples, dict(counts)


def _without_oldest_turn(messages: chat.Conversation) -> chat.Conversation | None:
    """Without the oldest user message and the answers to it; None where only the last turn is left."""
    head = [m for m in messages[:1] if m["role"] == "system"]
    rest = messages[len(head) :]
    later = [n for n, m in enumerate(rest) if m["role"] == "user" and n > 0]
    return head + rest[later[0] :] if later else None
