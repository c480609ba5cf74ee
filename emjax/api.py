"""The one client for OpenAI-compatible chat endpoints: simulated users, personas and judges speak through it.

Every call ends in exactly one state, and nothing is made up for a call that failed:

ok            a whole answer
refusal       the endpoint or its content filter declined
length        cut at the token limit; also a reasoning model that spent the limit on hidden reasoning
empty         no text
http_error    no valid answer after the retries: a status, a cut connection, a body that is not a completion
timeout       no answer in time
schema_error  an answer that is not the JSON that was asked for
budget        not asked, because it could have passed the budget
pending       not asked, but written down for a batch run (`collect`)

Only `ok` is cached, so a run that was killed or that met failures asks again for what is missing and nothing else.
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

from emjax.errors import UserError
from emjax.runtime.files import digest, read_lines, write_atomically


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one client may spend; 0 is no limit. Cached replies are free. Prices are in USD per million tokens."""

    tokens: int = 0  # prompt and completion together
    usd: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        if self.usd and not (self.price_in or self.price_out):
            raise UserError(
                f"budget.usd is {self.usd:g}, which is never reached without prices: give budget.price_in and price_out too."
            )

    def cost(self, used: Counter[str]) -> float:
        """USD for prompt_tokens and completion_tokens."""
        return (used["prompt_tokens"] * self.price_in + used["completion_tokens"] * self.price_out) / 1e6

    def allows(self, used: Counter[str]) -> bool:
        within = not self.tokens or used["prompt_tokens"] + used["completion_tokens"] <= self.tokens
        return within and (not self.usd or self.cost(used) <= self.usd)


@dataclasses.dataclass(frozen=True)
class Rates:
    """How hard an endpoint may be pressed, and how patiently."""

    concurrent: int = 16  # calls under way, waiting for a retry included
    per_minute: float = 0.0  # requests, retries included; 0 = as fast as they are answered
    retries: int = 6  # of connection errors, timeouts, 408, 409, 429 and 5xx; Retry-After up to two minutes is honoured
    timeout: float = 120.0  # seconds without a byte, one request
    deadline: float = 900.0  # seconds, one call with all its retries

    def __post_init__(self) -> None:
        if self.concurrent < 1:
            raise UserError(f"rates.concurrent is {self.concurrent}; with less than 1 no call would ever be made.")


def limits(part: Any, where: str) -> dict[str, Any]:
    """The budget and rates of a part of a config, for a ChatClient. Raises UserError that names the field below `where`."""
    try:
        return {"budget": Budget(**part.budget), "rates": Rates(**part.rates)}
    except UserError as error:
        raise UserError(f"{where}.{error}") from error


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came of one call. `text` is as it came, also where `state` is not "ok"."""

    text: str
    state: str
    finish_reason: str | None = None
    usage: dict[str, int] | None = None  # prompt_tokens, completion_tokens
    logprobs: list[dict[str, Any]] | None = None  # a dict a token: token, logprob, top_logprobs
    reasoning: str | None = None  # of servers that return it apart from the answer
    model: str | None = None  # as the endpoint names itself
    error: str | None = None
    cached: bool = False


class _Session:
    """What belongs to one event loop: a client may be used from several, one after the other."""

    def __init__(self, base_url: str, key: str, rates: Rates):
        self.loop = asyncio.get_running_loop()
        self._gap, self._next = 60 / rates.per_minute if rates.per_minute else 0.0, 0.0
        self.slots = asyncio.Semaphore(rates.concurrent)
        self.settled = asyncio.Condition()  # a call ended: what it had reserved of the budget is free
        self.reserved: Counter[str] = Counter()
        self.asking: dict[str, asyncio.Task[Reply]] = {}
        http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._pace]})
        self.client = openai.AsyncOpenAI(
            base_url=base_url, api_key=key, max_retries=rates.retries, timeout=rates.timeout, http_client=http
        )
        self.until_the_end = self._close_at_the_end()

    async def _close_at_the_end(self) -> AsyncIterator[None]:
        """A generator that asyncio.run closes with its loop, and with it the open connections."""
        try:
            yield
        finally:
            await self.client.close()

    async def _pace(self, request: Any) -> None:
        """Called before every request, so that retries are paced too."""
        start = max(self._next, self.loop.time())
        self._next = start + self._gap
        await asyncio.sleep(start - self.loop.time())


class ChatClient:
    """Asks `model` at `base_url` (".../v1"). `api_key_env` names the variable that holds the key; "" for a server without one.

    `spent` counts tokens, calls and answers from the cache. With `collect` nothing is sent: what is not in the cache is
    written to that file in the Batch API's format, and `replay` takes in the answers. Raises UserError where the endpoint
    refuses the key or does not know the path or the model (401, 403, 404): no item could succeed.
    """

    def __init__(
        self, base_url: str, model: str, *, api_key_env: str = "", cache_dir: Path | None = None, budget: Budget = Budget(),
        rates: Rates = Rates(), collect: Path | None = None,
    ):  # fmt: skip
        self.base_url, self.model, self.budget, self.rates = base_url, model, budget, rates
        self._env, self._cache, self._collect = api_key_env, cache_dir, collect
        self._collected = {row["custom_id"] for row in read_lines(collect)} if collect and collect.exists() else set()
        self._session: _Session | None = None
        self.spent: Counter[str] = Counter(calls=0, cached=0, prompt_tokens=0, completion_tokens=0)

    async def chat(
        self, messages: list[dict[str, str]], *, schema: dict[str, Any] | None = None, run: int = 0, **sampling: Any
    ) -> Reply:
        """The answer to `messages`. `sampling` goes into the request as it is: temperature, max_tokens, seed, top_k, ...

        schema: a JSON schema, for endpoints with structured output. run: tells repeated samples of one prompt apart; it is
        part of the cache's key and never sent.
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
        if key not in session.asking:  # two equal calls at once are one
            session.asking[key] = asyncio.create_task(self._ask(session, key, body))
        return await asyncio.shield(session.asking[key])

    def replay(self, answers: Path) -> Counter[str]:
        """Takes a batch's output file into the cache; returns how many of the collected calls ended in each state."""
        if not self._collect or not self._cache:
            raise ValueError("replay needs a client with `collect` and `cache_dir`")
        asked = {row["custom_id"]: row["body"] for row in read_lines(self._collect)}
        states: Counter[str] = Counter()
        for number, row in enumerate(read_lines(answers), 1):
            key, response = str(row.get("custom_id")), row.get("response") or {}
            if key not in asked:
                raise UserError(
                    f"{answers}, line {number}: custom_id {key!r} is not in {self._collect}. Give this batch's file."
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
                raise UserError(f"The environment variable {self._env} is not set: put the key of {self.base_url} there.")
            self._session = _Session(self.base_url, os.environ[self._env] if self._env else "none", self.rates)
            await anext(self._session.until_the_end)
        return self._session

    async def _ask(self, session: _Session, key: str, body: dict[str, Any]) -> Reply:
        try:
            async with session.slots:
                # No tokenizer makes more tokens than there are bytes.
                limit = body.get("max_completion_tokens") or body.get("max_tokens") or 0
                most = Counter(prompt_tokens=len(json.dumps(body).encode()), completion_tokens=limit)
                if not limit and (self.budget.tokens or self.budget.usd):
                    raise UserError("A budget needs max_tokens (or max_completion_tokens): one call would have no bound.")
                if not await self._reserve(session, most):
                    return Reply("", "budget")
                used = most  # what a lost answer may have cost
                try:
                    reply = await self._post(session, body)
                    used = Counter(reply.usage or ({} if reply.state == "http_error" else most))
                finally:
                    async with session.settled:
                        session.reserved -= most
                        self.spent.update(used)
                        self.spent["calls"] += 1
                        session.settled.notify_all()
                self._keep(key, body, reply)
                return reply
        finally:
            del session.asking[key]

    async def _reserve(self, session: _Session, most: Counter[str]) -> bool:
        """Sets a call's worst case aside; where only calls under way stand against it, waits for what they really cost."""
        async with session.settled:
            while not self.budget.allows(self.spent + session.reserved + most):
                if not self.budget.allows(self.spent + most):
                    return False
                await session.settled.wait()
            session.reserved += most
            return True

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
                raise UserError(f"{self.base_url} refuses {self.model!r}: {said}. Correct address, model or key.") from None
            return Reply("", "http_error", error=said)


def _read(done: Any, body: dict[str, Any]) -> Reply:
    """A completion as a Reply; whatever lacks the shape of one is an http_error."""
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
