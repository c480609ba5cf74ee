"""The sampling engine: continuous batching over a fixed number of slots.

This file has the interface for callers: it turns requests and scores from generators, tasks and
threads into rows. rounds.py runs the rows, with the programs of programs.py.
"""

import asyncio
import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from emjax.data import chat
from emjax.errors import UserError
from emjax.sampling.processors import TOP_LOGPROBS
from emjax.sampling.requests import Request, Result
from emjax.sampling.rounds import Rounds
from emjax.sampling.rows import OnTokens, Row


class Engine(Rounds):
    """Samples from one model, `slots` rows at a time, each with `cache_length` positions.

    generate, submit and the scores may be used side by side, also from several threads: concurrent
    calls run together. On a mesh of several processes, requests enter on process 0 only, while the
    others `follow`. Rounds documents the arguments.
    """

    _driver: asyncio.Task[None] | None = None  # runs rounds while submitted requests are in flight

    # --- requests --------------------------------------------------------------------------------

    def _check(self, what: str, tokens: Sequence[int]) -> np.ndarray:
        return chat.check_ids(what, tokens, self.config.V)

    def _row(self, request: Request, deliver: Callable[[Any], None]) -> Row:
        tokens = self._check(f"Request {request.id!r}", request.tokens)
        if len(tokens) >= self.cache_length:
            raise UserError(
                f"Request {request.id!r}: its prompt of {len(tokens)} tokens leaves no room for a new token in "
                f"the engine's cache_length of {self.cache_length}. Shorten the prompt or increase cache_length."
            )
        limit = min(request.sampling.max_new, self.cache_length - len(tokens))
        return Row(self._find_lane(request.adapter), tokens[:-1], deliver, request, limit)

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yields each result as its row ends.

        Raises UserError, before anything runs, for a bad request.
        """
        done: collections.deque[Any] = collections.deque()
        rows = [self._row(request, done.append) for request in requests]
        # Longest first, so that few of the last steps run with empty slots.
        return self._results(sorted(rows, key=lambda row: -row.limit), done)

    def _results(self, rows: list[Row], done: collections.deque[Any]) -> Iterator[Any]:
        self._enter(rows)
        try:
            for _ in range(len(rows)):
                while not done:
                    self.step()
                result = done.popleft()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            for row in rows:
                row.cancelled = True  # has no effect on rows that have ended

    def _enter(self, rows: Iterable[Row]) -> None:
        if self._shared and jax.process_index():
            raise UserError(
                "The engine's mesh spans several processes: submit requests on process 0; the others call follow()."
            )
        self._inbox.extend(rows)

    async def submit(self, request: Request, *, on_tokens: OnTokens | None = None) -> Result:
        """Serves one request among all others in flight. Cancelling the caller frees its slot.

        on_tokens is called from the engine's thread after each window in which the row did not end.
        It must neither block nor raise.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def resolve(result: Result | BaseException) -> None:
            if future.done():
                return
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

        def deliver(result: Result | BaseException) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(resolve, result)

        row = self._row(request, deliver)
        row.on_tokens = on_tokens
        self._enter([row])
        if self._driver is None or self._driver.done() or self._driver.get_loop() is not loop:
            self._driver = loop.create_task(self._drive())
        try:
            return await future
        except asyncio.CancelledError:
            row.cancelled = True
            raise

    async def _drive(self) -> None:
        """Runs rounds while there is work. They run in a thread, so callers are not blocked."""
        while self._inbox or self._open or self._flights:
            await asyncio.to_thread(self.step)
            # Callers that were just served may submit their next request before slots are refilled.
            await asyncio.sleep(0)

    # --- several processes -----------------------------------------------------------------------

    def follow(self) -> None:
        """On every process but 0: runs what process 0 runs, until process 0 calls `close`."""
        self._closed = False
        while not self._closed:
            self.step()

    def close(self) -> None:
        """On process 0: lets the other processes return from `follow`.

        With one process it does nothing.
        """
        if self._shared:
            self._closed = True
            self.step()
            self._closed = False

    # --- scores ----------------------------------------------------------------------------------

    def _scored(self, what: str, adapter: str | None, asked: list[dict[str, Any]]) -> list[Row]:
        """Runs score rows, which draw no tokens. Returns the rows with their scores."""
        lane, done = self._find_lane(adapter), collections.deque[Any]()
        for one in asked:
            if len(one["tokens"]) > self.cache_length:
                raise UserError(
                    f"{what}: {len(one['tokens'])} tokens exceed the engine's cache_length of {self.cache_length}. "
                    "Shorten the text or increase cache_length."
                )
        rows = [Row(lane, deliver=done.append, **one) for one in asked]
        for _ in self._results(rows, done):
            pass
        return rows

    def score(
        self,
        prompt_tokens: Sequence[int],
        continuations: Sequence[Sequence[int]],
        *,
        adapter: str | None = None,
    ) -> list[float]:
        """The log-prob of each continuation after the prompt, summed over its tokens.

        An empty continuation scores 0. The prompt's whole blocks are computed once.
        """
        prompt = self._check("score", prompt_tokens)
        whole = [np.concatenate([prompt, self._check("score", c)]) for c in continuations if len(c)]
        asked = [{"tokens": x[:-1], "targets": x[1:], "read_from": len(prompt) - 1} for x in whole]
        rows = iter(self._scored("score", adapter, asked))
        return [sum(next(rows).logprobs) if len(c) else 0.0 for c in continuations]

    def prompt_logprobs(
        self, tokens: Sequence[int], *, top: int = 0, adapter: str | None = None
    ) -> tuple[tuple[float | None, ...], tuple[tuple[tuple[int, float], ...] | None, ...]]:
        """(log-prob of each token given those before it, the likeliest tokens at its position).

        The second holds the `top` likeliest (id, log-prob) pairs of each position. Both are as long
        as `tokens` and begin with None.
        """
        x = self._check("prompt_logprobs", tokens)
        if not 0 <= top <= TOP_LOGPROBS:
            raise UserError(f"prompt_logprobs: top = {top!r}: it must be an integer in [0, {TOP_LOGPROBS}].")
        asked = [{"tokens": x[:-1], "targets": x[1:], "top": top}] if len(x) > 1 else []
        for row in self._scored("prompt_logprobs", adapter, asked):
            return (None, *row.logprobs), (None, *(row.alternatives or [()] * len(row.logprobs)))
        return (None,), (None,)

    def next_token_probs(self, tokens: Sequence[int], ids: Sequence[int], *, adapter: str | None = None) -> list[float]:
        """The probability of each of `ids` as the next token.

        float32, from the softmax over the full vocabulary.
        """
        x, wanted = self._check("next_token_probs", tokens), self._check("next_token_probs", ids)
        asked = [{"tokens": x, "ids": tuple(wanted.tolist()), "read_from": len(x) - 1}]
        return self._scored("next_token_probs", adapter, asked)[0].probs
