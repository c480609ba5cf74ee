"""Conversations between simulated users and the assistant: all in flight at once, written as they finish."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emjax.data import chat
from emjax.interact.ratings import score
from emjax.interact.users import User
from emjax.sampling import Engine, Request, Sampling
from emjax.store import journalled, seed_of


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

    async def converse(user: User) -> dict[str, Any]:
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
        return {
            "id": name, "scenario": user.scenario, "user_id": user.user_id, "user_type": user.user_type, "round": 0,
            "seed": seed, "model": model, "adapter": None, "messages": messages, "turns": turns,
            "score": score(turns, aggregate),
        }  # fmt: skip

    return journalled(users, conversation_id, converse, path, "collect", "conversation")
