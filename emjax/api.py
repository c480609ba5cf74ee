"""The one client for OpenAI-compatible chat endpoints. Simulated users, personas and judges use it.

Every call ends in exactly one state, and no answer is invented for a call that failed:

ok            a complete answer: its finish_reason is known to mean that
refusal       the endpoint or its content filter declined
length        cut at the token limit, or a reasoning model spent the limit on hidden reasoning
empty         no text
http_error    no valid answer after the retries: a bad status, a broken connection, a body that is
              not a completion, a finish_reason that is missing or unknown
timeout       no answer in time
schema_error  an answer that is not the requested JSON
budget        not sent, because the call could have exceeded the budget
pending       not sent, but written to a file for a batch run (`collect`)

Only `ok` is cached. After a kill or a failure, a new run asks for the missing answers alone.
`Reply.error` has the endpoint's own words.
"""

import asyncio
import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai

from emjax.config import Budget, Rates
from emjax.errors import UserError
from emjax.runtime.files import digest, dumps, loads, numbered_lines, read_lines, write_atomically
from emjax.runtime.ledger import Ledger
from emjax.runtime.numbers import finite, integer

# Every state but `ok`: a later run makes these calls again.
FAILED_ON_THE_WAY = ("refusal", "length", "empty", "http_error", "timeout", "schema_error", "budget", "pending")


# What endpoints give as finish_reason, in lower case, and the state that it means. Whatever is not
# here is an http_error: an unknown reason does not say that an answer is whole. Nor does null,
# which the protocol has for the parts of a stream alone.
FINISHED = {
    # OpenAI; Together; TGI; Anthropic; Cohere
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete"), "ok"),
    # OpenAI; Anthropic, Gemini and Cohere; Mistral; OpenAI's responses; others
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_output_tokens", "max_completion_tokens"), "length"),
    **dict.fromkeys(("max_length", "model_context_window_exceeded", "context_length_exceeded"), "length"),
    # OpenAI; Bedrock; Anthropic; Gemini; Zhipu; Cohere
    **dict.fromkeys(("content_filter", "content_filtered", "guardrail_intervened", "refusal", "safety"), "refusal"),
    **dict.fromkeys(
        ("image_safety", "prohibited_content", "image_prohibited_content", "recitation", "image_recitation"), "refusal"
    ),
    **dict.fromkeys(("blocklist", "spii", "sensitive", "error_toxic"), "refusal"),
}

# No retry helps where the money or the day's allowance is spent, though most endpoints answer 429,
# as for too many requests a minute.
_SPENT = re.compile(
    r"insufficient_quota|billing_hard_limit_reached|billing_not_active|exceeded_current_quota|credit balance is too low|"
    r"insufficient (?:credits|balance|funds)|requests?PerDay",
    re.IGNORECASE,
)
# A filter declined this one text.
_FLAGGED = re.compile(r"\b(?:content_filter|content_policy_violation|invalid_prompt|flagged_input)\b")
_NOT_TAKEN = re.compile(
    r"unsupported|not support|unrecognized|unknown[ _](?:name|parameter|field|argument)|extra_forbidden|not permitted|"
    r"deprecated|unexpected keyword|unavailable",
    re.IGNORECASE,
)
_LIMITS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


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
        http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._pace], "response": [self._last]})
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

    async def _last(self, response: Any) -> None:
        """Has the client not repeat a request that fails because the quota is spent."""
        if response.status_code == 429 and _SPENT.search((await response.aread()).decode(errors="replace")):
            response.headers["x-should-retry"] = "false"


class ChatClient:
    """Asks `model` at `base_url` (".../v1").

    api_key_env: the variable that holds the key; "" for a server without one.
    cache_dir: folder of the answers in state "ok"; None caches nothing.
    collect: nothing is sent. Calls that are not cached are written to this file in the Batch API's
    format; `replay` reads the answers.
    at: the section of the configuration that describes the endpoint, for error messages. nullable:
    the fields of a request that it has under their own names, None for one that is not sent.

    ledger: the whole run's cap on money, over all clients and restarts.

    `spent` counts prompt and completion tokens, calls, and answers from the cache. Raises UserError
    where every other call would fail too: the endpoint rejects the key, the path or the model (401,
    403, 404, 405), its quota is spent, or it does not take a field of the request. Also if a budget
    is set and a call has no token limit.
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
        at: str = "",
        nullable: Collection[str] = (),
        ledger: Ledger | None = None,
    ):
        self._at, self._nullable = at, nullable
        self.base_url, self.model, self.budget, self.rates = base_url, model, budget, rates
        self._env, self._cache, self._collect, self._ledger = api_key_env, cache_dir, collect, ledger
        self._collected = {row["custom_id"] for row in read_lines(collect)} if collect and collect.exists() else set()
        self._unanswered: dict[str, Reply] = {}  # of a batch: calls that failed in it
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
        if known := self._cached(key, body):
            self.spent["cached"] += 1
            return known
        if self._collect:
            if key not in self._collected:
                self._collected.add(key)
                line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
                with self._collect.open("a", encoding="utf-8") as file:
                    file.write(dumps(line) + "\n")
            return self._unanswered.get(key, Reply("", "pending"))
        session = await self._open()
        if key not in session.asking:  # identical concurrent calls share one request
            session.asking[key] = asyncio.create_task(self._ask(session, key, body))
        return await asyncio.shield(session.asking[key])

    def replay(self, answers: Path) -> Counter[str]:
        """Reads a batch's output file into the cache; returns the number of calls in each state.

        Collected calls without an answer count as "missing". A call that failed in the batch has
        its state and error whenever it is asked again. Raises UserError, with file and line, for an
        answer to a call that was not collected, and as the class says.
        """
        if not self._collect or not self._cache:
            raise ValueError("replay needs a client with `collect` and `cache_dir`")
        asked = {row["custom_id"]: row["body"] for row in read_lines(self._collect)}
        states: Counter[str] = Counter()
        for number, row in numbered_lines(answers):
            key = str(row.get("custom_id"))
            if key not in asked:
                raise UserError(
                    f"{answers}, line {number}: custom_id {key!r} is not in {self._collect}. Give that batch's file."
                )
            reply = self._batched(row, asked[key])
            self._keep(key, asked[key], reply)
            if reply.state != "ok":
                self._unanswered[key] = reply
            states[reply.state] += 1
        return states + Counter(missing=len(asked) - states.total())

    def _batched(self, row: dict[str, Any], body: dict[str, Any]) -> Reply:
        """The outcome of one line of a batch's output file."""
        response = row["response"] if isinstance(row.get("response"), dict) else {}
        status, answer = response.get("status_code"), response.get("body")
        if status == 200 and isinstance(answer, dict):
            return self._read(openai.types.chat.ChatCompletion.construct(**answer), body)
        wrong = answer or row.get("error")
        return self._failed(status, wrong, f"status {status}: {dumps(wrong)}", body)

    def _cached(self, key: str, body: dict[str, Any]) -> Reply | None:
        """The cached answer. One that an older version took for whole, and is not, is asked for
        again."""
        path = self._path(key)
        if not path or not path.exists():
            return None
        reply = Reply(**{**loads(path.read_bytes())["reply"], "cached": True})
        as_now = dataclasses.replace(reply, finish_reason=reply.finish_reason or "stop")
        return reply if _judged(as_now, None, body).state == "ok" else None

    def _path(self, key: str) -> Path | None:
        return self._cache / key[:2] / f"{key}.json" if self._cache else None

    def _keep(self, key: str, body: dict[str, Any], reply: Reply) -> None:
        path = self._path(key)
        if path and reply.state == "ok":
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = dumps({"request": body, "reply": dataclasses.asdict(reply)})
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
                limit = integer(body.get("max_completion_tokens") or body.get("max_tokens") or 0, "The token limit", low=0)
                most = Counter(prompt_tokens=len(dumps(body).encode()), completion_tokens=limit)
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
                return self._read(await create(model=self.model, messages=body["messages"], extra_body=rest), body)
        except (openai.APITimeoutError, TimeoutError) as error:
            return Reply("", "timeout", error=self._shown(f"{type(error).__name__}: {error}"))
        except (openai.OpenAIError, ValueError) as error:
            if isinstance(error, openai.APIStatusError):
                # Its own text leaves out bodies of other shapes than OpenAI's.
                text = error.response.text
                try:
                    answer = loads(text)
                except ValueError:
                    answer = text
                return self._failed(error.status_code, answer, f"status {error.status_code}: {' '.join(text.split())}", body)
            cause = f" ({_first_cause(error)})" if isinstance(error, openai.APIConnectionError) else ""
            return self._failed(None, None, f"{type(error).__name__}: {error}{cause}", body)

    def _shown(self, said: str) -> str:
        """An endpoint's words without the key."""
        key = os.environ.get(self._env, "") if self._env else ""
        return (said.replace(key, "***") if key else said)[:500]

    def _failed(self, status: Any, answer: Any, said: str, body: dict[str, Any]) -> Reply:
        """The outcome of a call that failed with this status. Raises UserError if every other call
        would fail, too."""
        said, words = self._shown(said), " ".join(_words(answer))
        where = f"{self._at}: " if self._at else ""
        if _FLAGGED.search(words):
            return Reply("", "refusal", error=said)
        if status == 402 or (status in (400, 403, 429) and _SPENT.search(words)):
            raise UserError(
                f"{where}{self.base_url} has no credit or quota left for {self.model!r}: {said}. Answers so far are kept: add "
                "credit there, or name another endpoint, and start the same command again."
            )
        if status in (401, 403, 404, 405):
            raise UserError(
                f"{where}{self.base_url} rejects {self.model!r}: {said}. Correct the address, the model or the key."
            )
        if status in (400, 422) and (name := _not_taken(words, body)):
            raise UserError(f"{where}{self.base_url} does not take the field {name!r}: {said}. {self._cure(name, body)}")
        return Reply("", "http_error", error=said)

    def _cure(self, name: str, body: dict[str, Any]) -> str:
        """What to set where the endpoint does not take a field of the request."""
        at, own = self._at, name in self._nullable
        if not at:
            return "Leave it out."
        if other := _LIMITS.get(name):
            if own:
                return f"Set {at}.{name}=None and {at}.{other}={body[name]}."
            return f"Set {at}.extra='{dumps({name: None, other: body[name]})}'."
        if name == "response_format":
            return f"Set {at}.structured=False."
        if name in ("logprobs", "top_logprobs"):
            return "Set config.interact.rating.readout='text'."
        return f"Set {at}.{name}=None." if own else f"Set {at}.extra='{dumps({name: None})}', so that it is not sent."

    def _read(self, done: Any, body: dict[str, Any]) -> Reply:
        """A completion as a Reply; anything of another shape is an http_error."""
        try:
            wrong = getattr(done, "error", None) or getattr((done.choices or [None])[0], "error", None)
            # Some gateways say 200 and put the error in the place of the answer, or beside it.
            if wrong:
                status = wrong.get("code") if isinstance(wrong, dict) else None
                return self._failed(status, wrong, f"status 200, error {dumps(wrong)}", body)
            choice = done.choices[0]
            text = choice.message.content or ""
            if not isinstance(text, str):
                raise TypeError(f"the content of its message is no text but {type(text).__name__}")
            reply = Reply(
                text, "ok", choice.finish_reason, model=done.model, usage=_usage(done.usage),
                logprobs=_logprobs(choice.logprobs),
                reasoning=getattr(choice.message, "reasoning_content", None) or getattr(choice.message, "reasoning", None),
            )  # fmt: skip
            return _judged(reply, choice.message.refusal, body)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            return Reply("", "http_error", error=self._shown(f"not a chat completion: {error}"))


def _judged(reply: Reply, refusal: str | None, body: dict[str, Any]) -> Reply:
    """The reply in its state."""
    reason = reply.finish_reason
    # "STOP"; Gemini's "content_filter: SAFETY"
    state = FINISHED.get(reason.lower().partition(":")[0].strip()) if isinstance(reason, str) else None
    error = None
    if refusal:
        state = "refusal"
    elif state is None:
        state, error = "http_error", f"finish_reason is {reason!r:.80}, which does not say whether the answer is whole"
    elif state == "ok" and not reply.text.strip():
        state = "empty"
    elif state == "ok" and "response_format" in body:
        try:
            jsonschema.validate(loads(reply.text), body["response_format"]["json_schema"]["schema"])
        except (ValueError, jsonschema.ValidationError) as wrong:
            state, error = "schema_error", str(wrong).partition("\n")[0][:200]
    return dataclasses.replace(reply, state=state, error=error)


def _usage(given: Any) -> dict[str, int] | None:
    """The counts of tokens; None unless both are there and plausible."""
    try:
        names = ("prompt_tokens", "completion_tokens")
        return {name: integer(getattr(given, name, None), name, low=0, high=10**9) for name in names}
    except UserError:
        return None


def _logprobs(given: Any) -> list[dict[str, Any]] | None:
    """{"token", "logprob", "top_logprobs"} of each token. Raises ValueError for log-probs that are
    none."""
    if not given or not given.content:
        return None
    tokens = [token.to_dict(warnings=False) for token in given.content]
    for token in tokens:
        # an alternative that is impossible
        others = [one for one in token.get("top_logprobs") or () if one.get("logprob") != -math.inf]
        for one in (token, *others):
            try:
                finite(one.get("logprob"), f"the log-prob of {one.get('token')!r:.40}", high=1e-3)
            except UserError as error:
                raise ValueError(error) from None
            if not isinstance(one.get("token"), str):
                raise ValueError(f"the token {one.get('token')!r:.40} is no text")
        token["top_logprobs"] = others
    return tokens


def _words(answer: Any) -> Iterator[str]:
    """All texts of an error's body, and its keys; not what it repeats of the request."""
    if isinstance(answer, dict):
        for name, value in answer.items():
            if name not in ("input", "url"):
                yield str(name)
                yield from _words(value)
    elif isinstance(answer, list):
        for one in answer:
            yield from _words(one)
    elif answer is not None:
        yield str(answer)


def _not_taken(words: str, body: dict[str, Any]) -> str | None:
    """The field of the request that the endpoint does not take, by its words; None if they are
    about something else."""
    about = {
        name: found.start()
        for name in body
        if name not in ("model", "messages") and (found := re.search(rf"(?<![\w-]){re.escape(name)}(?!\w)", words))
    }
    if _NOT_TAKEN.search(words):
        return min(about, key=about.__getitem__, default=None)
    # A limit may suit other prompts; a value that is out of range suits none.
    fixed = [name for name in about if name not in _LIMITS]
    return min(fixed, key=about.__getitem__, default=None) if re.search("must be|expected one of", words) else None


def _first_cause(error: BaseException) -> str:
    """The error at the beginning of a chain, such as "[Errno 111] Connection refused"."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    known = f"{os.strerror(error.errno)}, " if isinstance(error, OSError) and error.errno else ""
    return " ".join(f"{known}{type(error).__name__}: {error}".split())
