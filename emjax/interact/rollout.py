"""Conversations between simulated users and the assistant: concurrent, written as they end."""

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emjax.api import FAILED_ON_THE_WAY
from emjax.config import Draw
from emjax.data import chat
from emjax.data.chat import Conversation
from emjax.errors import UserError
from emjax.interact.players import ModelUser
from emjax.interact.ratings import Rating, score
from emjax.interact.users import Failed, User
from emjax.runtime.files import seed_of
from emjax.runtime.journal import journalled
from emjax.sampling import Engine, Request, Sampling, drawing


class Busy:
    """Measures how much of the time an engine had no request. Each request enters it once."""

    def __init__(self) -> None:
        self._inside = 0
        self.begin()

    def begin(self) -> None:
        """Starts measuring."""
        self._start = self._since = time.perf_counter()
        self._idle = 0.0

    def __enter__(self) -> None:
        if not self._inside:
            self._idle += time.perf_counter() - self._since
        self._inside += 1

    def __exit__(self, *error: object) -> None:
        self._inside -= 1
        if not self._inside:
            self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def idle(self) -> float:
        """Share of the time since `begin` without a request."""
        waiting = time.perf_counter() - self._since if not self._inside else 0.0
        return (self._idle + waiting) / self.seconds


@dataclasses.dataclass(frozen=True)
class Talk:
    """How the assistant's answers are drawn and conversations are scored."""

    seed: int
    draw: Draw
    max_new: int  # tokens
    aggregate: str  # one of config.names.AGGREGATES
    model: str  # for the file, like `adapter`
    adapter: str | None = None  # the training stage that made the assistant; None: the base
    round: int = 0
    # share of conversations that may lack a message or a rating because a call failed
    failures: float = 0.0

    def sampling(self, name: str, turn: int, generation: Mapping[str, Any]) -> Sampling:
        """For the answer number `turn` of the conversation `name`. generation: the engine's
        model's generation_config.json."""
        draw = drawing.resolved(self.draw, generation)
        return Sampling(
            temperature=draw.temperature,
            top_p=draw.top_p,
            top_k=draw.top_k,
            min_p=draw.min_p,
            max_new=self.max_new,
            seed=seed_of("rollout", self.seed, name, turn),
        )


def conversation_id(user: User) -> str:
    return f"{user.user_id}/{user.dialogue}"


def collect(
    engine: Engine,
    users: Sequence[User],
    path: Path,
    *,
    tokenizer: Any,
    talk: Talk,
    busy: Busy | None = None,
    title: str = "collect",
) -> list[dict[str, Any]]:
    """Runs one conversation per user; writes trajectories.jsonl to `path` and returns its rows.

    A row's "end" is "done" (ended by the user, or at its turn limit), "too_long" (no room in the
    engine's cache) or "user_<state>" (the user's message did not come). Only conversations that are
    "done" are rated.

    If killed and started again, only missing conversations run, and the file is the same: an answer
    depends on its own seed and prompt only, and paid answers are cached as they come.

    Raises UserError if a call failed in more than talk.failures of the conversations. Called again,
    it repeats these alone.
    """
    busy = busy or Busy()

    async def converse(user: User) -> dict[str, Any]:
        row = await _conversation(engine, user, tokenizer, talk, busy)
        return await _rated(user, row, talk.aggregate)

    busy.begin()
    rows = journalled(users, conversation_id, converse, path, title, "conversation", again=_failed)
    print(f"{title}: {report(rows, busy)}", flush=True)
    _check_failures(rows, talk.failures)
    return rows


async def _conversation(engine: Engine, user: User, tokenizer: Any, talk: Talk, busy: Busy) -> dict[str, Any]:
    """One conversation as a row without ratings."""
    name = conversation_id(user)
    turns: list[dict[str, Any]] = []
    messages: Conversation = []
    end, error = "done", None
    try:
        messages = await user.open()
        while True:
            tokens = tuple(chat.prompts(tokenizer, [messages])[0])
            if len(tokens) >= engine.cache_length:
                end = "too_long"
                break
            request = Request(f"{name}/{len(turns)}", tokens, talk.sampling(name, len(turns), engine.generation))
            with busy:
                result = await engine.submit(request)
            messages = [*messages, {"role": "assistant", "content": result.text}]
            turns.append({"tokens": list(result.tokens), "logprobs": list(result.logprobs), "stop_reason": result.stop_reason})
            reply = await user.reply(messages)
            if reply is None:
                break
            messages = [*messages, reply]
    except Failed as failed:
        end, error = f"user_{failed.state}", failed.error
    row = {
        "id": name,
        "scenario": user.scenario,
        "user_id": user.user_id,
        "user_type": user.user_type,
        "round": talk.round,
        "seed": talk.seed,
        "model": talk.model,
        "adapter": talk.adapter,
        "messages": messages,
        "turns": turns,
        "end": end,
    }
    if plain := getattr(user, "plain_system", None):
        row["plain_system"] = plain
    if error:
        row["error"] = error
    return row


def rate_again(users: Sequence[User], pool: Sequence[dict[str, Any]], path: Path, *, talk: Talk) -> list[dict[str, Any]]:
    """Rates the conversations of `pool`, each by the user with its id; writes them to `path`.

    Raises UserError as `collect` does.
    """
    by_id = {row["id"]: row for row in pool}

    async def rate(user: User) -> dict[str, Any]:
        row = by_id[conversation_id(user)]
        bare = [{k: v for k, v in turn.items() if not k.startswith("rating")} for turn in row["turns"]]
        return await _rated(user, {**row, "turns": bare}, talk.aggregate)

    rows = journalled(users, conversation_id, rate, path, "rate", "conversation", again=_failed)
    _check_failures(rows, talk.failures)
    return rows


def veto(users: Sequence[ModelUser], pool: Sequence[dict[str, Any]], path: Path, *, failures: float) -> list[dict[str, Any]]:
    """The guard's mean reading of each conversation's answers; rows {"id", "value", "state"}.

    The rows are written to `path`. If a reading is missing, the value is null and the state is that
    of the first missing reading. Raises UserError if a call failed in more than `failures` of the
    conversations.
    """
    by_id = {row["id"]: row for row in pool}

    async def judge(user: ModelUser) -> dict[str, Any]:
        row = by_id[conversation_id(user)]
        given = await asyncio.gather(*(user.veto(row["messages"], turn) for turn in range(len(row["turns"]))))
        bad = [rating for rating in given if rating.state != "ok"] or ([] if given else [Rating(None, "no answer")])
        if bad:
            return {"id": row["id"], "value": None, "state": bad[0].state} | ({"error": bad[0].error} if bad[0].error else {})
        values = [rating.value for rating in given if rating.value is not None]
        return {"id": row["id"], "value": sum(values) / len(values), "state": "ok"}

    rows = journalled(users, conversation_id, judge, path, "veto", "conversation", again=_failed)
    _check_failures(rows, failures)
    return rows


async def _rated(user: User, row: dict[str, Any], aggregate: str) -> dict[str, Any]:
    """The row with a rating for each turn, and its score. Only those that are "done" are rated."""
    if row["end"] == "done":
        given = await asyncio.gather(*(user.rate(row["messages"], turn) for turn in range(len(row["turns"]))))
        for record, rating in zip(row["turns"], given, strict=True):
            record |= {"rating": rating.value, "rating_state": rating.state}
            if rating.raw or rating.mass is not None:
                record |= {"rating_raw": rating.raw, "rating_mass": rating.mass}
            if rating.error:
                record["rating_error"] = rating.error
    else:
        for record in row["turns"]:
            record |= {"rating": None, "rating_state": "not_asked"}
    return {**row, "score": score(row["turns"], aggregate)}


def _states(row: dict[str, Any]) -> list[str]:
    """The states of a row.

    A conversation has "end <state>", and "rating <state>" for each turn; a guard's row has
    "veto <state>".
    """
    if "state" in row:
        return [f"veto {row['state']}"]
    return [f"end {row['end']}", *(f"rating {turn['rating_state']}" for turn in row["turns"])]


def _cause(state: str) -> str:
    return state.rpartition(" ")[2].removeprefix("user_")


def _failed(row: dict[str, Any]) -> bool:
    """Whether a call failed, so that another run may mend the row."""
    return any(_cause(state) in FAILED_ON_THE_WAY for state in _states(row))


def _check_failures(rows: Sequence[dict[str, Any]], failures: float) -> None:
    """Raises UserError if calls failed in more than `failures` of the rows, or were not made."""
    states = counted(rows)
    missing, causes = sum(map(_failed, rows)), {_cause(state) for state in states}
    if missing <= failures * len(rows) and not causes & {"budget", "pending"}:
        return
    counts = ", ".join(f"{state} {count}" for state, count in sorted(states.items()))
    texts = ((row.get("error"), *(turn.get("rating_error") for turn in row.get("turns", ()))) for row in rows)
    errors = [text for each in texts for text in each if text]
    raise UserError(
        f"{missing} of {len(rows)} conversations failed on the way ({counts}). "
        + (f"The first error: {errors[0]} " if errors else "")
        + "Complete conversations are kept. Run the same command again to repeat the failed ones alone (if a budget was "
        "reached, with a larger one), or set config.interact.failures to the share that may stay without a rating; they are "
        "counted and reported."
        + (
            " Messages that were cut (length) will be cut again: raise config.interact.models.<role>.max_tokens."
            if "length" in causes
            else ""
        )
    )


def counted(rows: Sequence[dict[str, Any]]) -> Counter[str]:
    """Number of conversations and turns in each state."""
    return Counter(state for row in rows for state in _states(row))


def report(rows: Sequence[dict[str, Any]], busy: Busy) -> str:
    """One line: number of conversations, throughput, idle time of the engine, and every state."""
    states = ", ".join(f"{state} {count}" for state, count in sorted(counted(rows).items()))
    return (
        f"{len(rows)} conversations in {busy.seconds:.1f} s ({len(rows) / busy.seconds:.1f}/s), engine idle "
        f"{busy.idle:.1%} of the time; {states}"
    )
