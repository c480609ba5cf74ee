"""Whoever can be asked in a chat: an endpoint (`emjax.api.ChatClient`), or a model in the JAX engine."""

import asyncio
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from emjax.api import Reply
from emjax.data import chat
from emjax.runtime.files import digest, seed_of
from emjax.sampling.engine import Engine
from emjax.sampling.requests import Request, Sampling


class Chat(Protocol):
    """What can be asked: `emjax.api.ChatClient`, or `EngineChat`."""

    async def chat(
        self, messages: list[dict[str, str]], *, schema: dict[str, Any] | None = None, run: int = 0, **sampling: Any
    ) -> Reply: ...


class EngineChat:
    """A model in the JAX engine as a chat partner. Sampling: temperature, max_tokens; the seed follows from what is asked.

    busy: entered while the engine has a request of this chat, for whoever counts (it may be entered several times at once).
    """

    def __init__(self, engine: Engine, tokenizer: Any, seed: int = 0, busy: AbstractContextManager[Any] | None = None):
        self._engine, self._tokenizer, self._seed = engine, tokenizer, seed
        self._busy = busy or nullcontext()
        self._scorers = ThreadPoolExecutor(max_workers=64)  # each waits for its row; rows asked side by side run together

    async def chat(
        self, messages: list[dict[str, str]], *, schema: dict[str, Any] | None = None, run: int = 0, **sampling: Any
    ) -> Reply:
        if schema is not None:
            raise ValueError("the engine has no structured output")
        key = digest([messages, run])
        how = Sampling(
            temperature=sampling["temperature"], max_new=sampling["max_tokens"], seed=seed_of("chat", self._seed, key)
        )
        tokens = self._prompt(messages)
        if len(tokens) >= self._engine.cache_length:
            return Reply("", "too_long")
        with self._busy:
            result = await self._engine.submit(Request(key, tokens, how))
        usage = {"prompt_tokens": len(tokens), "completion_tokens": len(result.tokens)}
        state = "length" if result.stop_reason == "length" else "ok" if result.text.strip() else "empty"
        return Reply(result.text, state, result.stop_reason, usage)

    async def next_word(self, messages: list[dict[str, str]], words: Sequence[str]) -> dict[str, float] | None:
        """{word: probability that the answer begins with it}, of the whole vocabulary; None where the prompt is too long.

        A word may be spelt with or without a leading space. Of one that takes several tokens (10, where digits stand alone) the
        tokens' probabilities are multiplied, and what goes on to a longer word (1 to 10) does not count for the shorter. Raises
        ValueError for a word that the tokenizer does not know.
        """
        spelt = {word: self._spellings(word) for word in words}
        after: dict[tuple[int, ...], set[int]] = {}  # what has been said -> the tokens that may come next
        for ids in itertools.chain(*spelt.values()):
            for n, id_ in enumerate(ids):
                after.setdefault(ids[:n], set()).add(id_)
        tokens = self._prompt(messages)
        if len(tokens) + max(map(len, after)) > self._engine.cache_length:
            return None
        probs: dict[tuple[int, ...], float] = {(): 1.0}
        for said in sorted(after, key=lambda said: (len(said), said)):
            flat, given = sorted(after[said]), (*tokens, *said)
            with self._busy:
                ask = asyncio.get_running_loop().run_in_executor(self._scorers, self._engine.next_token_probs, given, flat)
                probs |= {(*said, id_): probs[said] * p for id_, p in zip(flat, await ask, strict=True)}
        return {
            word: sum(probs[ids] - sum(probs[*ids, more] for more in after.get(ids, ())) for ids in some)
            for word, some in spelt.items()
        }

    def _spellings(self, word: str) -> set[tuple[int, ...]]:
        """The single tokens that spell it, else its tokens."""
        found = [tuple(ids) for ids in self._tokenizer([word, f" {word}"], add_special_tokens=False)["input_ids"]]
        known = [ids for ids in found if self._tokenizer.unk_token_id not in ids]
        if not known:
            raise ValueError(f"this tokenizer cannot spell {word!r}")
        return {ids for ids in known if len(ids) == 1} or {known[0]}

    def _prompt(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        return tuple(chat.prompts(self._tokenizer, [messages])[0])
