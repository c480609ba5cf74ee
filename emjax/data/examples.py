"""Reads training rows from files (conversations with rated answers, or labelled examples) and
checks every field."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emjax.data import chat
from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.runtime.files import check_fields, numbered_lines, seed_of
from emjax.runtime.numbers import finite, integer

# A field that is misspelt would count as missing, and each may be; others are kept.
_TRAJECTORY = (
    "id", "scenario", "user_id", "user_type", "round", "seed", "model", "adapter", "messages", "turns", "score", "end",
    "plain_system", "error",
)  # fmt: skip
_TURN = ("tokens", "logprobs", "stop_reason", "rating", "rating_state", "rating_raw", "rating_mass", "rating_error")
_EXAMPLE = (
    "id", "prompt_id", "messages", "completion", "completion_tokens", "label", "weight", "source", "trajectory", "turn",
)  # fmt: skip
_ROLES = ("system", "user", "assistant")
# Keys of a message that no template of ours is given, so that they change nothing.
_HARMLESS = frozenset(["role", "content", "weight", "name", "annotations", "id", "timestamp", "model", "metadata"])


def check_messages(messages: Any, where: str) -> None:
    """Raises UserError unless `messages` is a conversation, a non-empty list of
    {"role", "content"}.

    "weight" may be 0 or 1 (see `trained`). Another key must be empty or known to change nothing.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{where}: field \'messages\' must be a non-empty list of {{"role", "content"}}.')
    for n, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES or not isinstance(message.get("content"), str):
            raise UserError(
                f"{where}: messages[{n}] must have a 'role' ({', '.join(_ROLES)}) and a 'content' that is text, "
                f"not {message!r:.120}."
            )
        if (weight := message.get("weight")) is not None:
            integer(weight, f"{where}: messages[{n}].weight", low=0, high=1)
        for key, value in message.items():
            if key not in _HARMLESS and value not in (None, "", [], {}):
                raise UserError(
                    f"{where}: messages[{n}] has the field {key!r} ({value!r:.60}), which is not supported, and leaving it out "
                    "could change what is trained. Remove the field, or the row."
                )


def trained(message: dict[str, Any]) -> bool:
    """Whether an assistant message is an answer to train on; with "weight" 0 it is context only."""
    return message["role"] == "assistant" and message.get("weight") != 0


def read_trajectories(path: Path) -> list[dict[str, Any]]:
    """Reads a trajectories.jsonl that was collected elsewhere and checks every field."""
    if not path.is_file():
        raise UserError(f"config.interact.trajectories names {path}, which is not a file.")
    rows = numbered_lines(path)
    seen: set[str] = set()
    for number, row in rows:
        where = f"{path}, line {number}"
        check_fields(row, _TRAJECTORY, where, others=True)
        for field, kind in (("id", str), ("user_id", str), ("scenario", str), ("turns", list)):
            if not isinstance(row.get(field), kind):
                raise UserError(f"{where}: field {field!r} must be a {kind.__name__}, not {row.get(field)!r:.80}.")
        if row["id"] in seen:
            raise UserError(f"{where}: the id {row['id']!r} occurs before; ids must be unique.")
        seen.add(row["id"])
        check_messages(row.get("messages"), where)
        if row.get("user_type") not in ("benign", "biased"):
            raise UserError(f"{where}: field 'user_type' must be 'benign' or 'biased', not {row.get('user_type')!r}.")
        if "score" not in row:
            raise UserError(f"{where}: field 'score' is missing; it must be a number, or null for a conversation without one.")
        if row["score"] is not None:
            finite(row["score"], f"{where}: field 'score'")
        answers = [m for m in row["messages"] if m["role"] == "assistant"]
        if len(row["turns"]) != len(answers):
            raise UserError(f"{where}: 'turns' must hold one entry for each assistant message.")
        if not all(map(trained, answers)):
            raise UserError(f"{where}: an assistant message has weight 0, but every turn is trained. Leave the row out.")
        for n, turn in enumerate(row["turns"]):
            if not isinstance(turn, dict):
                raise UserError(f"{where}: turns[{n}] must be an object, not {turn!r:.80}.")
            check_fields(turn, _TURN, f"{where}, turns[{n}]", others=True)
            turn["tokens"] = token_ids(turn.get("tokens"), f"{where}: turns[{n}].tokens")
            if turn.get("rating") is not None:
                finite(turn["rating"], f"{where}: turns[{n}].rating")
    return [row for _, row in rows]


def token_ids(value: Any, where: str) -> list[int]:
    """`value` if it is a list of token ids. Raises UserError naming `where`, the file's line and
    field."""
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list of token ids, not {value!r:.80}.")
    if all(type(one) is int and 0 <= one < 2**31 for one in value):
        return value
    return [integer(one, f"{where}[{n}]", low=0, high=2**31 - 1) for n, one in enumerate(value)]


def read_examples(path: Path, *, labelled: bool) -> list[dict[str, Any]]:
    """Reads an examples.jsonl and checks every field. `labelled`: every label must be true or
    false."""
    rows = numbered_lines(path)
    seen: set[str] = set()
    for number, row in rows:
        where = f"{path}, line {number}"
        check_fields(row, _EXAMPLE, where, others=True)
        for field in ("id", "prompt_id", "completion"):
            if not isinstance(row.get(field), str):
                raise UserError(f"{where}: field {field!r} must be text, not {row.get(field)!r:.80}.")
        if row["id"] in seen:
            raise UserError(f"{where}: the id {row['id']!r} occurs before; ids must be unique.")
        seen.add(row["id"])
        check_messages(row.get("messages"), where)
        label = row.get("label")
        if not isinstance(label, bool) and (labelled or label is not None):
            raise UserError(f"{where}: field 'label' must be true or false (JSON, without quotes), not {label!r:.80}.")
        finite(row.get("weight"), f"{where}: field 'weight'", low=0)
        if row.get("completion_tokens") is not None:
            row["completion_tokens"] = token_ids(row["completion_tokens"], f"{where}: field 'completion_tokens'")
    return [row for _, row in rows]


def held_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(training examples, held-out examples). A `share` of the prompts, selected by a hash of seed
    and prompt, is held out with all its examples.

    The split is by prompt, not by row, so no answer to a held-out prompt is trained on. Raises
    UserError if `share` is not a share, or if it selects none or all of the prompts.
    """
    if not share:
        return list(examples), []
    prompts = sorted({e.prompt_id for e in examples}, key=lambda p: seed_of("held out", seed, p))
    count = round(share * len(prompts))
    if not 0 < count < len(prompts):
        raise UserError(
            f"config.train.held_out is {share}, which selects {count} of {len(prompts)} prompts. It must be a share that "
            "leaves some prompts to train on and some to evaluate on; 0 holds none out."
        )
    chosen = set(prompts[:count])
    return [e for e in examples if e.prompt_id not in chosen], [e for e in examples if e.prompt_id in chosen]


def tokenized(
    rows: Sequence[dict[str, Any]], tokenizer: Any, eos_ids: Sequence[int], max_length: int
) -> tuple[list[Example], dict[str, int]]:
    """examples.jsonl rows -> training rows, and counts of cut and dropped rows.

    A row without a scored token (an empty completion, weight 0) is dropped before any pairing or
    batching. A row longer than `max_length` loses its oldest turns first (a system message stays).
    It is dropped if its last turn and completion alone are too long. Completions are never cut, so
    the end-of-turn token is always present. Answers whose outer blanks the chat template drops are
    counted as `trimmed`. Raises UserError, which names the row, for one that cannot be rendered.
    """
    counts: Counter[str] = Counter(rows=len(rows))
    examples = []
    for row in rows:
        try:
            example, what = _tokenized(row, tokenizer, eos_ids, max_length)
        except UserError as error:
            raise UserError(f"Example {row['id']!r}: {error}") from error
        counts.update(what)
        if example:
            examples.append(example)
    if not examples:
        raise UserError(
            f"None of the {len(rows)} training examples is left ({dict(counts)}). Raise the largest length in "
            "config.train.buckets, which limits the length of a row, or check the selected conversations."
        )
    return examples, dict(counts)


def _tokenized(
    row: dict[str, Any], tokenizer: Any, eos_ids: Sequence[int], max_length: int
) -> tuple[Example | None, dict[str, int]]:
    """The training row, or None if it is dropped; and what there is to count."""
    messages, trimmed = row["messages"], False
    if row["completion"] and not row.get("completion_tokens"):
        made = chat.completion(tokenizer, messages, row["completion"], eos_ids)
        prompt, answer, trimmed = made.prompt, made.ids, made.trimmed
    else:  # the sampled ids, or neither ids nor text
        (prompt,) = chat.prompts(tokenizer, [messages])
        answer = list(row.get("completion_tokens") or ())
    cut = False
    while len(prompt) + len(answer) > max_length:
        shorter = _without_oldest_turn(messages)
        if shorter is None:
            break
        messages, cut = shorter, True
        prompt = chat.prompts(tokenizer, [messages])[0]
    dropped = {
        "dropped_empty": not answer,
        "dropped_weight_0": not row["weight"],
        "dropped_too_long": len(prompt) + len(answer) > max_length,
    }
    if any(dropped.values()):
        return None, {next(reason for reason, so in dropped.items() if so): 1}
    example = Example(
        id=row["id"],
        ids=(*prompt, *answer),
        weights=(0.0,) * len(prompt) + (float(row["weight"]),) * len(answer),
        start=len(prompt),
        prompt_id=row["prompt_id"],
        label=row["label"],
    )
    counts = {"cut": int(cut), "without_eos": int(answer[-1] not in eos_ids), "tokens": len(answer)}
    return example, counts | ({"trimmed": 1} if trimmed else {})


def _without_oldest_turn(messages: chat.Conversation) -> chat.Conversation | None:
    """`messages` without the oldest user message and its answers; None if only the last turn is
    left."""
    head = [m for m in messages[:1] if m["role"] == "system"]
    rest = messages[len(head) :]
    later = [n for n, m in enumerate(rest) if m["role"] == "user" and n > 0]
    return head + rest[later[0] :] if later else None
