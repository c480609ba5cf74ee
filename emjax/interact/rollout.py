"""Conversations between simulated users and the assistant: all in flight at once, written as they finish."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emjax.data import chat
from emjax.interact.ratings import score
from emjax.interact.users import User
from emjax.sampling import Engine, Request, Sampling
from emjax.store import Journal, seed_of


def conversation_id(user: User) -> str:
    return f"{user.user_id}/{user.dialogue}"


def collect(
    engine: Engine,
    users: Sequence[User],
    path: Path,
    *,
    tokenizer: Any,
    model: str,
    seed: int,
    temperature: float,
    max_new: int,
    aggregate: str,
) -> list[dict[str, Any]]:
    """Runs one conversation for each user and writes trajectories.jsonl (contracts, section 4) to `path`.

    Killed and started again, it repeats only what was not yet written; since a reply depends on its own seed and prompt only,
    the file is the same.
    """
    journal = Journal(path)
    waiting = [user for user in users if conversation_id(user) not in journal.done]
    bar = tqdm(
        total=len(users),
        initial=len(users) - len(waiting),
        desc="collect",
        unit="conversation",
        mininterval=1.0,
    )

    async def converse(user: User) -> None:
        name = conversation_id(user)
        messages = await user.open()
        turns: list[dict[str, Any]] = []
        while True:
            request = Request(
                id=f"{name}/{len(turns)}",
                tokens=tuple(chat.prompts(tokenizer, [messages])[0]),
                sampling=Sampling(temperature=temperature, max_new=max_new, seed=seed_of("rollout", seed, name, len(turns))),
            )
            result = await engine.submit(request)
            messages = [*messages, {"role": "assistant", "content": result.text}]
            turns.append(
                {
                    "tokens": list(result.tokens),
                    "logprobs": list(result.logprobs),
                    "stop_reason": result.stop_reason,
                }
            )
            reply = await user.reply(messages)
            if reply is None:
                break
            messages = [*messages, reply]
        for turn, record in enumerate(turns):
            rating = await user.rate(messages, turn)
            record |= {"rating": rating.value, "rating_state": rating.state}
        row = {
            "id": name, "scenario": user.scenario, "user_id": user.user_id, "user_type": user.user_type, "round": 0,
            "seed": seed, "model": model, "adapter": None, "messages": messages, "turns": turns,
            "score": score(turns, aggregate),
        }  # fmt: skip
        journal.add(row)
        bar.update(1)

    async def all_of_them() -> None:
        # gather, not a task group: the first error comes out as itself, and ends the run.
        await asyncio.gather(*(converse(user) for user in waiting))

    asyncio.run(all_of_them())
    bar.close()
    return journal.finish()
