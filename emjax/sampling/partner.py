"""Chat partners: an endpoint (`emjax.api.ChatClient`), or a model in the JAX engine."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from emjax.api import Reply
from emjax.data import chat
from emjax.data.chat import Conversation
from emjax.runtime.files import digest, seed_of
from emjax.sampling import drawing
from emjax.sampling.engine import Engine
from emjax.sampling.requests import Request, Sampling


class Chat(Protocol):
    """What `emjax.api.ChatClient` and `EngineChat` have in common."""

    async def chat(
        self, messages: Conversation, *, schema: dict[str, Any] | None = None, run: int = 0, **sampling: Any
    ) -> Reply: ...


_DRAWN = ("temperature", "top_p", "top_k", "min_p")


class EngineChat:
    """A model in the JAX engine as a chat partner.

    seed: a request's seed is derived from it, the messages and `run`.

    busy: a context that each request holds while it is in the engine; several may hold it at a
    time.
    """

    def __init__(self, engine: Engine, tokenizer: Any, seed: int = 0, busy: AbstractContextManager[Any] | None = None):
        self._engine, self._tokenizer, self._seed = engine, tokenizer, seed
        self._busy = busy or nullcontext()
        # Each thread waits for one row; concurrent rows share a batch.
        self._scorers = ThreadPoolExecutor(max_workers=64)

    async def chat(
        self, messages: Conversation, *, schema: dict[str, Any] | None = None, run: int = 0, **sampling: Any
    ) -> Reply:
        """The answer to `messages`; its state is "too_long" if the prompt does not fit the cache.

        sampling: temperature and max_tokens (or max_completion_tokens); optionally top_p, top_k and
        min_p; from_model in place of these four. Raises ValueError for a schema and for any other
        sampling field.
        """
        if schema is not None:
            raise ValueError("the engine does not support structured output")
        key = digest([messages, run])
        how = _sampling(seed_of("chat", self._seed, key), drawing.fields(sampling, self._engine.generation))
        tokens = self._prompt(messages)
        if len(tokens) >= self._engine.cache_length:
            return Reply("", "too_long")
        with self._busy:
            result = await self._engine.submit(Request(key, tokens, how))
        usage = {"prompt_tokens": len(tokens), "completion_tokens": len(result.tokens)}
        state = {"eos": "ok", "stop": "ok", "length": "length"}[result.stop_reason]
        if state == "ok" and not result.text.strip():
            state = "empty"
        return Reply(result.text, state, result.stop_reason, usage)

    async def next_word(self, messages: Conversation, words: Sequence[str]) -> dict[str, float] | None:
        """{word: probability that the answer begins with it}; None if the prompt is too long.

        The probabilities are over the whole vocabulary. A word may be spelled with or without a
        leading space. For a word of several tokens (10, if the tokenizer splits digits), the
        probabilities of the tokens are multiplied. The probability that a word continues to a
        longer one (1 to 10) does not count for the shorter word. Raises ValueError for a word that
        the tokenizer cannot spell.
        """
        spelt = {word: self._spellings(word) for word in words}
        after: dict[tuple[int, ...], set[int]] = {}  # prefix -> the tokens that may follow it
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
            word: sum(probs[ids] - sum(probs[*ids, more] for more in after.get(ids, ())) for ids in spellings)
            for word, spellings in spelt.items()
        }

    def _spellings(self, word: str) -> set[tuple[int, ...]]:
        """The single tokens that spell the word, or else its token sequence."""
        spellings = [tuple(ids) for ids in chat.plain(self._tokenizer, [word, f" {word}"], special=False)]
        known = [ids for ids in spellings if self._tokenizer.unk_token_id not in ids]
        if not known:
            raise ValueError(f"this tokenizer cannot spell {word!r}")
        return {ids for ids in known if len(ids) == 1} or {known[0]}

    def _prompt(self, messages: Conversation) -> tuple[int, ...]:
        return tuple(chat.prompts(self._tokenizer, [messages])[0])


def _sampling(seed: int, fields: Mapping[str, Any]) -> Sampling:
    """A chat call's sampling fields, under an endpoint's names, for the engine."""
    unknown = fields.keys() - {*_DRAWN, "max_tokens", "max_completion_tokens"}
    if unknown:
        raise ValueError(f"the engine has no sampling field {', '.join(sorted(unknown))}")
    limit = fields.get("max_tokens") or fields.get("max_completion_tokens")
    if not limit or "temperature" not in fields:
        raise ValueError("the engine needs a temperature and max_tokens (or max_completion_tokens)")
    return Sampling(max_new=limit, seed=seed, **{name: fields[name] for name in _DRAWN if name in fields})
