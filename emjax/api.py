"""The one client for OpenAI-compatible chat endpoints. Simulated users, personas and judges use it.

Every call ends in exactly one state, and no answer is invented for a call that failed:

ok            a complete answer
refusal       the endpoint or its content filter declined
length        cut at the token limit, or a reasoning model spent the limit on hidden reasoning
empty         no text
http_error    no valid answer after the retries: a bad status, a broken connection, a body that is
              not a completion
timeout       no answer in time
schema_error  an answer that is not the requested JSON
budget        not sent, because the call could have exceeded the budget
pending       not sent, but written to a file for a batch run (`collect`)

Only `ok` is cached. After a kill or a failure, a new run asks for the missing answers alone.
"""

import asyncio
import dataclasses
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import openai

from emjax.config import Budget, Rates
from emjax.errors import UserError
from emjax.runtime.files import digest, read_lines, write_atomically
from emjax.runtime.ledger import Ledger

# Every state but `ok`: a later run makes these calls again.
FAILED_ON_THE_WAY = ("refusal", "length", "empty", "http_error", "timeout", "schema_error", "budget", "pending")


@dataclasses.dataclass(frozen=True)
class Reply:
    """The outcome of one call. `text` is unchanged, also if `state` is not "ok"."""

    text: str
    state: str
    finish_reason: str | None = None
    usage: dict[str, int] | None = None  # prompt_tokens, completion_tokens
    logprobs: list[dict[str, Any]] | None = None  # one dict per token: token, logprob, top_logprobs
    reasoning: str | None = None  # from servers that return it separately from the answer
    model: str | None = None  # the name that the endpoint reports
    error: str | None = None
    cached: bool = False


_BUDGET, _RATES = Budget(), Rates()  # the defaults: no limit, and the usual rates


class _Session:
    """The state of one event loop. A client may be used from several loops, one after another."""

    def __init__(self, base_url: str, key: str, rates: Rates):
        self.loop = asyncio.get_running_loop()
        self._gap, self._next = 60 / rates.per_minute if rates.per_minute else 0.0, 0.0
        self.slots = asyncio.Semaphore(rates.concurrent)
        self.settled = asyncio.Condition()  # notified when a call ends and frees its reservation
        self.reserved: Counter[str] = Counter()
        self.asking: dict[str, asyncio.Task[Reply]] = {}
        http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._pace]})
        self.client = openai.AsyncOpenAI(
            base_url=base_url, api_key=key, max_retries=rates.retries, timeout=rates.timeout, http_client=http
        )
        self.until_the_end = self._close_at_the_end()

    async def _close_at_the_end(self) -> AsyncIterator[None]:
        """A generator that asyncio.run closes with its loop; closing it closes the connections."""
        try:
            yield
        finally:
            await self.client.close()

    async def _pace(self, request: Any) -> None:
        """Delays every request, retries included, to keep to `Rates.per_minute`."""
        start = max(self._next, self.loop.time())
        self._next = start + self._gap
        await asyncio.sleep(start - self.loop.time())


class ChatClient:
    """Asks `model` at `base_url` (".../v1").

    api_key_env: the variable that holds the key; "" for a server without one.
    cache_dir: folder of the answers in state "ok"; None caches nothing.
    collect: nothing is sent. Calls that are not cached are written to this file in the Batch API's
    format; `replay` reads the answers.

    ledger: the whole run's cap on money, over all clients and restarts.

    `spent` counts prompt and completion tokens, calls, and answers from the cache. Raises UserError
    if the endpoint rejects the key, the path or the model (401, 403, 404), since every other call
    would fail too, and if a budget is set and a call has no token limit.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = "",
        cache_dir: Path | None = None,
        budget: Budget = _BUDGET,
        rates: Rates = _RATES,
        collect: Path | None = None,
        ledger: Ledger | None = None,
    ):
        self.base_url, self.model, self.budget, self.rates = base_url, model, budget, rates
        self._env, self._cache, self._collect, self._ledger = api_key_env, cache_dir, collect, ledger
        self._collected = {row["custom_id"] for row in read_lines(collect)} if collect and collect.exists() else set()
        self._session: _Session | None = None
        self.spent: Counter[str] = Counter(calls=0, cached=0, prompt_tokens=0, completion_tokens=0)

    async def chat(
        self, messages: list[dict[str, str]], *, schema: dict[str, Any] | None = None, run: int = 0, **sampling: Any
    ) -> Reply:
        """The answer to `messages`.

        schema: a JSON schema, for endpoints with structured output.
        run: distinguishes repeated samples of one prompt. It is part of the cache key and not sent.
        sampling: sent unchanged: temperature, max_tokens, seed, top_k and so on.
        """
        body = {"model": self.model, "messages": messages, **sampling}
        if schema is not None:
            named = {"name": "reply", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        key = digest({"base_url": self.base_url, "body": body, "run": run})
        path = self._path(key)
        if path and path.exists():
            self.spent["cached"] += 1
            return Reply(**{**json.loads(path.read_text(encoding="utf-8"))["reply"], "cached": True})
        if self._collect:
            if key not in self._collected:
                self._collected.add(key)
                line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
                with self._collect.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            return Reply("", "pending")
        session = await self._open()
        if key not in session.asking:  # identical concurrent calls share one request
            session.asking[key] = asyncio.create_task(self._ask(session, key, body))
        return await asyncio.shield(session.asking[key])

    def replay(self, answers: Path) -> Counter[str]:
        """Reads a batch's output file into the cache; returns the number of calls in each state.

        Collected calls without an answer count as "missing". Raises UserError, with file and line,
        for an answer to a call that was not collected.
        """
        if not self._collect or not self._cache:
            raise ValueError("replay needs a client with `collect` and `cache_dir`")
        asked = {row["custom_id"]: row["body"] for row in read_lines(self._collect)}
        states: Counter[str] = Counter()
        for number, row in enumerate(read_lines(answers), 1):
            key, response = str(row.get("custom_id")), row.get("response") or {}
            if key not in asked:
                raise UserError(
                    f"{answers}, line {number}: custom_id {key!r} is not in {self._collect}. Give that batch's file."
                )
            reply = Reply("", "http_error")
            if response.get("status_code") == 200:
                reply = _read(openai.types.chat.ChatCompletion.construct(**response["body"]), asked[key])
            self._keep(key, asked[key], reply)
            states[reply.state] += 1
        return states + Counter(missing=len(asked) - states.total())

    def _path(self, key: str) -> Path | None:
        return self._cache / key[:2] / f"{key}.json" if self._cache else None

    def _keep(self, key: str, body: dict[str, Any], reply: Reply) -> None:
        path = self._path(key)
        if path and reply.state == "ok":
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = json.dumps({"request": body, "reply": dataclasses.asdict(reply)}, ensure_ascii=False)
            write_atomically(path, kept, shared=True)

    async def _open(self) -> _Session:
        if self._session is None or self._session.loop is not asyncio.get_running_loop():
            if self._env and not os.environ.get(self._env):
                raise UserError(f"The environment variable {self._env} is not set. Put the key for {self.base_url} there.")
            self._session = _Session(self.base_url, os.environ[self._env] if self._env else "none", self.rates)
            await anext(self._session.until_the_end)
        return self._session

    async def _ask(self, session: _Session, key: str, body: dict[str, Any]) -> Reply:
        try:
            async with session.slots:
                # A tokenizer never produces more tokens than the text has bytes.
                limit = body.get("max_completion_tokens") or body.get("max_tokens") or 0
                most = Counter(prompt_tokens=len(json.dumps(body).encode()), completion_tokens=limit)
                if not limit and (self.budget.tokens or self.budget.usd or self._ledger):
                    raise UserError(
                        "A budget needs max_tokens or max_completion_tokens: without one, a single call has no bound."
                    )
                if not await self._reserve(session, most):
                    return Reply("", "budget")
                if (entry := self._ledger.reserve(self._cost(most)) if self._ledger else "") is None:
                    await self._release(session, most)
                    return Reply("", "budget")
                used = most  # the most that a lost answer may have cost
                try:
                    reply = await self._post(session, body)
                    used = Counter(reply.usage or ({} if reply.state == "http_error" else most))
                finally:
                    if self._ledger and entry:
                        self._ledger.settle(entry, self._cost(used))
                    self.spent.update(used)
                    self.spent["calls"] += 1
                    await self._release(session, most)
                self._keep(key, body, reply)
                return reply
        finally:
            del session.asking[key]

    @property
    def cost(self) -> float:
        """Spent so far, in USD. Cached answers are free."""
        return self._cost(self.spent)

    def _cost(self, used: Counter[str]) -> float:
        budget = self.budget
        return (used["prompt_tokens"] * budget.price_in + used["completion_tokens"] * budget.price_out) / 1e6

    def _affords(self, used: Counter[str]) -> bool:
        budget = self.budget
        within = not budget.tokens or used["prompt_tokens"] + used["completion_tokens"] <= budget.tokens
        return within and (not budget.usd or self._cost(used) <= budget.usd)

    async def _reserve(self, session: _Session, most: Counter[str]) -> bool:
        """Reserves a call's worst case; False if the budget cannot pay for it.

        If only the reservations of calls in flight exceed the budget, waits for their actual cost.
        """
        async with session.settled:
            while not self._affords(self.spent + session.reserved + most):
                if not self._affords(self.spent + most):
                    return False
                await session.settled.wait()
            session.reserved += most
            return True

    async def _release(self, session: _Session, most: Counter[str]) -> None:
        async with session.settled:
            session.reserved -= most
            session.settled.notify_all()

    async def _post(self, session: _Session, body: dict[str, Any]) -> Reply:
        rest = {name: value for name, value in body.items() if name not in ("model", "messages")}
        create = session.client.chat.completions.create
        try:
            async with asyncio.timeout(self.rates.deadline):
                return _read(await create(model=self.model, messages=body["messages"], extra_body=rest), body)
        except (openai.APITimeoutError, TimeoutError) as error:
            return Reply("", "timeout", error=type(error).__name__)
        except (openai.OpenAIError, ValueError) as error:
            said = f"{type(error).__name__}: {error}".replace(session.client.api_key, "***")[:500]
            if getattr(error, "code", None) in ("content_filter", "content_policy_violation"):
                return Reply("", "refusal", error=said)
            if getattr(error, "status_code", None) in (401, 403, 404):
                raise UserError(
                    f"{self.base_url} rejects {self.model!r}: {said}. Correct the address, the model or the key."
                ) from None
            return Reply("", "http_error", error=said)


def _read(done: Any, body: dict[str, Any]) -> Reply:
    """A completion as a Reply; anything that is not shaped like a completion is an http_error."""
    try:
        choice = done.choices[0]
        text, usage = choice.message.content or "", done.usage.to_dict() if done.usage else {}
        counts = {name: count for name in ("prompt_tokens", "completion_tokens") if isinstance(count := usage.get(name), int)}
        logprobs = choice.logprobs.content if choice.logprobs else None
        reply = Reply(
            text, "ok", choice.finish_reason, model=done.model, usage=counts if len(counts) == 2 else None,
            logprobs=[token.to_dict() for token in logprobs] if logprobs else None,
            reasoning=getattr(choice.message, "reasoning_content", None) or getattr(choice.message, "reasoning", None),
        )  # fmt: skip
        return dataclasses.replace(reply, state=_state(reply, choice.message.refusal, body))
    except (AttributeError, IndexError, TypeError) as error:
        return Reply("", "http_error", error=f"not a chat completion: {error}")


def _state(reply: Reply, refusal: str | None, body: dict[str, Any]) -> str:
    if refusal or reply.finish_reason == "content_filter":
        return "refusal"
    if reply.finish_reason == "length":
        return "length"
    if not reply.text.strip():
        return "empty"
    if "response_format" in body:
        try:
            jsonschema.validate(json.loads(reply.text), body["response_format"]["json_schema"]["schema"])
        except (ValueError, jsonschema.ValidationError):
            return "schema_error"
    return "ok"
