"""Conversations between simulated users and the assistant: all in flight at once, written as they finish."""

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emjax.data import chat
from emjax.errors import UserError
from emjax.interact.ratings import Rating, score
from emjax.interact.users import Failed, User
from emjax.runtime.files import seed_of
from emjax.runtime.journal import journalled
from emjax.sampling import Engine, Request, Sampling

# How conversations end that another run may mend: not what was said, but what failed on the way.
PASSING = ("refusal", "length", "empty", "http_error", "timeout", "schema_error", "budget", "pending")


class Busy:
    """Measures how long an engine had nothing to do while something was going on. Entered once a request."""

    def __init__(self) -> None:
        self._inside = 0
        self.begin()

    def begin(self) -> None:
        """Counts from now on."""
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
        """The share of the time since it was made in which no request was inside."""
        waiting = time.perf_counter() - self._since if not self._inside else 0.0
        return (self._idle + waiting) / self.seconds


@dataclasses.dataclass(frozen=True)
class Talk:
    """How the assistant is sampled and conversations are scored."""

    seed: int
    temperature: float
    max_new: int
    aggregate: str
    model: str  # names, for the file
    adapter: str | None = None  # the training stage that made the assistant; None = the base
    round: int = 0
    failures: float = 0.0  # share of conversations that may stay without a message or a rating that failed on the way


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
    """Runs one conversation for each user and writes trajectories.jsonl (contracts, section 4) to `path`.

    A row's "end" says how it ended: "done" (by the user, or at its turn limit), "too_long" (no room in the engine's cache), or
    "user_<state>" where the user's message did not come; then nothing of it is rated. Killed and started again, it repeats only
    what was not yet written; since a reply depends on its own seed and prompt only, and paid answers are cached as they come,
    the file is the same. Raises UserError where more than talk.failures of the conversations failed on the way: called again,
    it does these alone.
    """
    busy = busy or Busy()

    async def converse(user: User) -> dict[str, Any]:
        name = conversation_id(user)
        turns: list[dict[str, Any]] = []
        messages: list[dict[str, str]] = []
        end, why = "done", None
        try:
            messages = await user.open()
            while True:
                tokens = tuple(chat.prompts(tokenizer, [messages])[0])
                if len(tokens) >= engine.cache_length:
                    end = "too_long"
                    break
                request = Request(
                    id=f"{name}/{len(turns)}",
                    tokens=tokens,
                    sampling=Sampling(
                        temperature=talk.temperature, max_new=talk.max_new, seed=seed_of("rollout", talk.seed, name, len(turns))
                    ),
                )
                with busy:
                    result = await engine.submit(request)
                messages = [*messages, {"role": "assistant", "content": result.text}]
                turns.append(
                    {"tokens": list(result.tokens), "logprobs": list(result.logprobs), "stop_reason": result.stop_reason}
                )
                reply = await user.reply(messages)
                if reply is None:
                    break
                messages = [*messages, reply]
        except Failed as failed:
            end, why = f"user_{failed.state}", failed.error
        row = {
            "id": name, "scenario": user.scenario, "user_id": user.user_id, "user_type": user.user_type, "round": talk.round,
            "seed": talk.seed, "model": talk.model, "adapter": talk.adapter, "messages": messages, "turns": turns, "end": end,
        }  # fmt: skip
        if plain := getattr(user, "plain_system", None):
            row["plain_system"] = plain
        if why:
            row["error"] = why
        return await _rated(user, row, talk.aggregate)

    busy.begin()
    rows = journalled(users, conversation_id, converse, path, title, "conversation", again=_passing)
    print(f"{title}: {report(rows, busy)}", flush=True)
    _enough(rows, talk.failures)
    return rows


def rate_again(users: Sequence[User], pool: Sequence[dict[str, Any]], path: Path, *, talk: Talk) -> list[dict[str, Any]]:
    """The same conversations, each rated by the user of its id; written to `path` like a collection."""
    by_id = {row["id"]: row for row in pool}

    async def rate(user: User) -> dict[str, Any]:
        row = by_id[conversation_id(user)]
        bare = [{k: v for k, v in turn.items() if not k.startswith("rating")} for turn in row["turns"]]
        return await _rated(user, {**row, "turns": bare}, talk.aggregate)

    rows = journalled(users, conversation_id, rate, path, "rate", "conversation", again=_passing)
    _enough(rows, talk.failures)
    return rows


def veto(users: Sequence[Any], pool: Sequence[dict[str, Any]], path: Path, *, failures: float) -> list[dict[str, Any]]:
    """The guard's mean reading of each conversation's answers; null, with the first bad state, where one is missing.

    Raises UserError where more than `failures` of them failed on the way.
    """
    by_id = {row["id"]: row for row in pool}

    async def judge(user: Any) -> dict[str, Any]:
        row = by_id[conversation_id(user)]
        given = await asyncio.gather(*(user.veto(row["messages"], turn) for turn in range(len(row["turns"]))))
        bad = [rating for rating in given if rating.state != "ok"] or ([] if given else [Rating(None, "no answer")])
        if bad:
            return {"id": row["id"], "value": None, "state": bad[0].state} | ({"error": bad[0].error} if bad[0].error else {})
        return {"id": row["id"], "value": sum(rating.value for rating in given) / len(given), "state": "ok"}

    rows = journalled(users, conversation_id, judge, path, "veto", "conversation", again=_passing)
    _enough(rows, failures)
    return rows


async def _rated(user: User, row: dict[str, Any], aggregate: str) -> dict[str, Any]:
    """The row with a rating a turn and its score. Where the conversation did not come to its end, nothing is asked."""
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
    """How a conversation ended ("end <state>") and its turns were rated ("rating <state>"); or the guard read it."""
    if "state" in row:
        return [f"veto {row['state']}"]
    return [f"end {row['end']}", *(f"rating {turn['rating_state']}" for turn in row["turns"])]


def _cause(state: str) -> str:
    return state.rpartition(" ")[2].removeprefix("user_")


def _passing(row: dict[str, Any]) -> bool:
    return any(_cause(state) in PASSING for state in _states(row))


def _enough(rows: Sequence[dict[str, Any]], failures: float) -> None:
    states = counted(rows)
    missing, causes = sum(map(_passing, rows)), {_cause(state) for state in states}
    if missing > failures * len(rows) or causes & {"budget", "pending"}:
        told = ", ".join(f"{state} {count}" for state, count in sorted(states.items()))
        texts = ((row.get("error"), *(turn.get("rating_error") for turn in row.get("turns", ()))) for row in rows)
        said = [text for some in texts for text in some if text]
        raise UserError(
            f"{missing} of {len(rows)} conversations failed on the way ({told}). "
            + (f"The first error: {said[0]} " if said else "")
            + "What came is kept: start the same command again to ask for these alone (after a budget was reached, with a "
            "larger one), or set config.interact.failures to the share that may stay without a rating, counted and reported."
            + (" What was cut (length) is cut again: raise sampling.max_tokens of its role." if "length" in causes else "")
        )


def counted(rows: Sequence[dict[str, Any]]) -> Counter[str]:
    """How many conversations and turns are in each state."""
    return Counter(state for row in rows for state in _states(row))


def report(rows: Sequence[dict[str, Any]], busy: Busy) -> str:
    """One line: how many, how fast, how much of the time the engine waited, and every state."""
    states = ", ".join(f"{state} {count}" for state, count in sorted(counted(rows).items()))
    return (
        f"{len(rows)} conversations in {busy.seconds:.1f} s ({len(rows) / busy.seconds:.1f}/s), engine idle "
        f"{busy.idle:.1%} of the time; {states}"
    )
