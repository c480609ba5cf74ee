"""An engine behind OpenAI's HTTP interface: an ASGI app whose clients share the engine's slots."""

import asyncio
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any

import fastapi
import prometheus_client
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.exceptions import HTTPException

from emjax.data import chat
from emjax.errors import UserError
from emjax.models import LanguageModel
from emjax.sampling.engine import Engine
from emjax.sampling.guard import Guard, Limits, refuse
from emjax.sampling.requests import Request, Result, Sampling
from emjax.sampling.schema import Chat, Completion, Detokenize, Message, Sampled, Tokenize
from emjax.sampling.text import Pieces, Stream, Text

_FINISH = {"eos": "stop", "stop": "stop", "length": "length"}
_FAILED = "The server failed while serving this request; its log has the reason."
_log = logging.getLogger("emjax.server")

Pairs = tuple[tuple[int, float], ...]


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.answer = refuse(status, message, param=param, code=code)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A stretch of one row: ids, their log-probs, and each token's likeliest alternatives.

    Alternatives are empty unless requested.
    """

    tokens: Sequence[int]
    logprobs: Sequence[float | None]
    top: Sequence[Pairs | None]


class Service:
    """The endpoints' logic.

    `models` maps the served names to the engine's adapters (None = its own model).
    """

    def __init__(self, engine: Engine, lm: LanguageModel, models: dict[str, str | None], limits: Limits):
        self.engine = engine
        self.models = models
        self.sequences = 0  # in slots or waiting for one
        self._tokenizer = lm.tokenizer
        self._eos_ids = lm.eos_ids
        self._pieces = Pieces(lm.tokenizer)
        self._limits = limits
        self._most = engine.slots + limits.queue
        self._started = int(time.time())
        # One thread each: long texts and long prompts are processed in turn, and neither blocks the
        # event loop.
        self._encoding = concurrent.futures.ThreadPoolExecutor(1, "encode")
        self._scoring = concurrent.futures.ThreadPoolExecutor(1, "score")

    # --- from requests to rows -------------------------------------------------------------------

    def adapter(self, model: str) -> str | None:
        if model not in self.models:
            known = ", ".join(self.models)
            raise Refused(
                404, f"There is no model {model!r} here; this server has: {known}.", param="model", code="model_not_found"
            )
        return self.models[model]

    async def encode(self, make: Callable[[], list[list[int]]], *, param: str) -> list[list[int]]:
        """Makes token ids in a thread.

        Refuses text that cannot be encoded, empty prompts and ids beyond the vocabulary.
        """
        try:
            prompts = await asyncio.get_running_loop().run_in_executor(self._encoding, make)
        except UserError as error:
            raise Refused(400, str(error), param=param) from error
        for tokens in prompts:
            if not tokens:
                raise Refused(400, f"{param}: is empty; give at least one token.", param=param)
            if max(tokens) >= self.engine.config.V:
                raise Refused(400, f"{param}: token ids must be in [0, {self.engine.config.V}).", param=param)
        return prompts

    def chat_prompt(self, messages: Sequence[Message], *, continues: bool) -> list[list[int]]:
        conversation = [message.plain for message in messages]
        if continues:
            return [chat.continued(self._tokenizer, conversation, self._eos_ids)]
        return chat.prompts(self._tokenizer, [conversation])

    def room(self, tokens: Sequence[int], wanted: int | None, *, param: str) -> int:
        """The number of new tokens for the prompt: as requested, or all that fit."""
        length = self.engine.cache_length
        new = max(1, length - len(tokens)) if wanted is None else wanted
        if len(tokens) + new > length:
            message = f"{param}: {len(tokens)} tokens and {new} new tokens exceed this server's context length of {length}."
            raise Refused(400, message, param=param, code="context_length_exceeded")
        return new

    def rows(self, body: Sampled, tokens: Sequence[int], new: int, top: int) -> list[Request]:
        """One request per choice.

        The first choice uses the given seed, each other choice its own hash of the seed.
        """
        seed = secrets.randbits(63) if body.seed is None else body.seed
        made = []
        for i in range(body.n):
            own = seed if i == 0 else int.from_bytes(hashlib.sha256(f"{seed}/{i}".encode()).digest()[:8])
            sampling = Sampling(
                temperature=body.temperature, top_k=body.top_k, top_p=body.top_p, min_p=body.min_p, seed=own,
                top_logprobs=top, max_new=new, stop=body.stops,
            )  # fmt: skip
            made.append(Request(uuid.uuid4().hex, tuple(tokens), sampling, self.adapter(body.model)))
        return made

    def start(self, tasks: set[asyncio.Task[Any]], jobs: Sequence[Callable[[], Coroutine[Any, Any, Any]]]) -> list[Any]:
        """Starts all jobs, one sequence each, or refuses them all.

        `tasks` belong to the request and are cancelled when it ends.
        """
        if len(jobs) > self._most:
            raise Refused(400, f"The request is for {len(jobs)} sequences; this server accepts at most {self._most} at once.")
        if self.sequences + len(jobs) > self._most:
            raise Refused(429, f"{self.sequences} sequences are already running or waiting; try again later.")
        self.sequences += len(jobs)
        started = [asyncio.create_task(job()) for job in jobs]
        for task in started:
            task.add_done_callback(self._one_less)
        tasks.update(started)
        return started

    def _one_less(self, task: asyncio.Task[Any]) -> None:
        self.sequences -= 1

    def bound(self, tokens: int, top: int) -> None:
        if tokens * (1 + top) > self._limits.logprobs:
            message = f"logprobs: the answer could have {tokens * (1 + top)} values; the limit is {self._limits.logprobs}."
            raise Refused(400, f"{message} Send fewer prompts at a time.", param="logprobs")

    async def score(self, tokens: list[int], top: int, adapter: str | None) -> Drawn:
        def run() -> Drawn:
            return Drawn(tokens, *self.engine.prompt_logprobs(tokens, top=top, adapter=adapter))

        return await asyncio.get_running_loop().run_in_executor(self._scoring, run)

    # --- /v1/completions -------------------------------------------------------------------------

    async def completions(self, body: Completion, tasks: set[asyncio.Task[Any]]) -> Response:
        adapter = self.adapter(body.model)
        prompts = await self.encode(lambda: self._prompts(body), param="prompt")
        for tokens in prompts:
            self.room(tokens, body.max_tokens, param="prompt")
        top, total = body.logprobs or 0, sum(map(len, prompts))
        rows = [row for tokens in prompts for row in self.rows(body, tokens, body.max_tokens, top)] if body.max_tokens else []
        if body.logprobs is not None:
            self.bound((total if body.echo else 0) + len(rows) * body.max_tokens, top)
        head = _head("cmpl", "text_completion", body.model)
        if body.stream:
            return self._stream(
                body, head, rows, total, tasks,
                lambda text, drawn, offsets: {"text": text, "logprobs": self._legacy(body, drawn, offsets)},
            )  # fmt: skip

        def serving(i: int) -> Callable[[], Coroutine[Any, Any, tuple[Drawn | None, Result | None]]]:
            async def serve() -> tuple[Drawn | None, Result | None]:
                """The prompt's log-probs, once for all its choices, and the engine's result."""
                wanted = body.echo and body.logprobs is not None and i % body.n == 0
                score = self.score(prompts[i // body.n], top, adapter) if wanted else _nothing()
                return await asyncio.gather(score, self.engine.submit(rows[i]) if rows else _nothing())

            return serve

        done = await asyncio.gather(*self.start(tasks, [serving(i) for i in range(len(prompts) * body.n)]))
        results = [result or Result("", (), "", (), (), "length") for _, result in done]
        scores = [score for score, _ in done[:: body.n]]
        before = [score or Drawn(tokens, (), ()) if body.echo else None for score, tokens in zip(scores, prompts, strict=True)]
        choices = [self._completion_choice(i, body, before[i // body.n], result) for i, result in enumerate(results)]
        usage = _usage(total, sum(len(result.tokens) for result in results))
        return JSONResponse(head | {"choices": choices, "usage": usage})

    def _prompts(self, body: Completion) -> list[list[int]]:
        if isinstance(body.prompt, str) or isinstance(body.prompt[0], str):
            texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
            return chat.plain(self._tokenizer, texts, special=body.add_special_tokens)  # type: ignore[arg-type]
        return [body.prompt] if isinstance(body.prompt[0], int) else body.prompt  # type: ignore[list-item, return-value]

    def _completion_choice(self, index: int, body: Completion, before: Drawn | None, result: Result) -> dict[str, Any]:
        drawn = Drawn(result.tokens, result.logprobs, result.top_logprobs)
        _, offsets = Text(self._pieces).add(result.tokens)
        # A stop string may have cut off the text.
        offsets = [min(offset, len(result.text)) for offset in offsets]
        text, logprobs = result.text, self._legacy(body, drawn, offsets)
        if before is not None:
            echoed, of_prompt = Text(self._pieces, special=True).add(before.tokens)
            echoed += self._pieces.between.decode() if result.text else ""
            text = echoed + text
            if logprobs is not None:
                first = self._legacy(body, before, of_prompt) or {}
                logprobs["text_offset"] = [len(echoed) + offset for offset in offsets]
                logprobs = {name: first[name] + logprobs[name] for name in logprobs}
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": _FINISH[result.stop_reason]}

    def _legacy(self, body: Completion, drawn: Drawn, offsets: list[int]) -> dict[str, list[Any]] | None:
        """The four arrays, with one entry per token.

        Of alternatives with the same text, only the likeliest is kept.
        """
        if body.logprobs is None:
            return None
        tops: list[dict[str, float] | None] = []
        for i, (token, logprob) in enumerate(zip(drawn.tokens, drawn.logprobs, strict=True)):
            top: dict[str, float] = {}
            if logprob is not None and body.logprobs:
                for id_, value in (*(drawn.top[i] or ()), (token, logprob)):
                    top.setdefault(self._pieces.show(id_), value)
            tops.append(top or None)
        return {
            "tokens": [self._pieces.show(token) for token in drawn.tokens],
            "token_logprobs": list(drawn.logprobs),
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    # --- /v1/chat/completions --------------------------------------------------------------------

    async def chat(self, body: Chat, tasks: set[asyncio.Task[Any]]) -> Response:
        self.adapter(body.model)
        (tokens,) = await self.encode(lambda: self.chat_prompt(body.messages, continues=body.continues), param="messages")
        new = self.room(tokens, body.max_completion_tokens or body.max_tokens, param="messages")
        rows = self.rows(body, tokens, new, body.top_logprobs)
        if body.logprobs:
            self.bound(body.n * new, body.top_logprobs)
        head = _head("chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion", body.model)
        if body.stream:
            return self._stream(
                body, head, rows, len(tokens), tasks,
                lambda text, drawn, _: {"delta": {"content": text}, "logprobs": self._chat_logprobs(body, drawn)},
                opening={"delta": {"role": "assistant", "content": ""}},
            )  # fmt: skip
        results = await asyncio.gather(*self.start(tasks, [functools.partial(self.engine.submit, row) for row in rows]))
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": result.text, "refusal": None},
                "logprobs": self._chat_logprobs(body, Drawn(result.tokens, result.logprobs, result.top_logprobs)),
                "finish_reason": _FINISH[result.stop_reason],
            }
            for i, result in enumerate(results)
        ]
        usage = _usage(len(tokens), sum(len(result.tokens) for result in results))
        return JSONResponse(head | {"choices": choices, "usage": usage})

    def _chat_logprobs(self, body: Chat, drawn: Drawn) -> dict[str, Any] | None:
        if not body.logprobs:
            return None

        def entry(token: int, logprob: float | None) -> dict[str, Any]:
            return {"token": self._pieces.show(token), "logprob": logprob, "bytes": list(self._pieces[token])}

        content = [
            entry(token, logprob) | {"top_logprobs": [entry(*pair) for pair in (drawn.top[i] if drawn.top else None) or ()]}
            for i, (token, logprob) in enumerate(zip(drawn.tokens, drawn.logprobs, strict=True))
        ]
        return {"content": content, "refusal": None}

    # --- streams ---------------------------------------------------------------------------------

    def _stream(
        self,
        body: Completion | Chat,
        head: dict[str, Any],
        rows: Sequence[Request],
        prompt_tokens: int,
        tasks: set[asyncio.Task[Any]],
        chunk: Callable[[str, Drawn, list[int]], dict[str, Any]],
        opening: dict[str, Any] | None = None,
    ) -> Response:
        """Server-sent events: each window's tokens as they arrive.

        chunk: (text, tokens, their offsets in the text) -> choice. A slow reader delays only
        itself: its rows continue, and their output waits here.
        """
        loop = asyncio.get_running_loop()
        # The rows' lengths bound it.
        news: asyncio.Queue[tuple[int, Drawn | asyncio.Task[Result]]] = asyncio.Queue()

        def serving(i: int) -> Callable[[], Coroutine[Any, Any, Result]]:
            def tell(tokens: Sequence[int], logprobs: Sequence[float], top: Sequence[Pairs]) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(news.put_nowait, (i, Drawn(tokens, logprobs, top)))

            return functools.partial(self.engine.submit, rows[i], on_tokens=tell)

        for i, task in enumerate(self.start(tasks, [serving(i) for i in range(len(rows))])):
            task.add_done_callback(lambda task, i=i: news.put_nowait((i, task)))

        def event(choices: list[dict[str, Any]], **more: Any) -> str:
            return f"data: {json.dumps(head | {'choices': choices} | more, ensure_ascii=False)}\n\n"

        async def events() -> AsyncIterator[str]:
            streams = [Stream(self._pieces, row.sampling.stop) for row in rows]
            going = len(rows)
            if opening is not None:
                yield event([{"index": i, **opening, "logprobs": None, "finish_reason": None} for i in range(going)])
            while going:
                i, new = await news.get()
                stream, reason = streams[i], None
                if isinstance(new, Drawn):
                    text, offsets = stream.add(new.tokens)
                else:
                    going -= 1
                    try:
                        result = new.result()
                    except Exception as error:
                        _log.error("a row failed while its text was being streamed", exc_info=error)
                        yield f"data: {json.dumps({'error': {'message': _FAILED, 'type': 'server_error'}})}\n\n"
                        return
                    text, reason, told = result.text[stream.sent :], _FINISH[result.stop_reason], stream.tokens
                    new = Drawn(result.tokens[told:], result.logprobs[told:], result.top_logprobs[told:])
                    offsets = [min(offset, len(result.text)) for offset in stream.add(new.tokens)[1]]
                if text or reason or body.logprobs not in (None, False):
                    yield event([{"index": i, **chunk(text, new, offsets), "finish_reason": reason}])
            if body.stream_options is not None and body.stream_options.include_usage:
                yield event([], usage=_usage(prompt_tokens, sum(stream.tokens for stream in streams)))
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})

    # --- models and tokenizers -------------------------------------------------------------------

    def model_card(self, name: str) -> dict[str, Any]:
        length = self.engine.cache_length
        return {"id": name, "object": "model", "created": self._started, "owned_by": "emjax", "max_model_len": length}

    def tokenizer_info(self) -> dict[str, Any]:
        tokenizer = self._tokenizer
        return {
            "tokenizer_class": type(tokenizer).__name__,
            "vocab_size": len(tokenizer),
            "model_max_length": self.engine.cache_length,
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
            "unk_token": tokenizer.unk_token,
            "eos_token_ids": list(self._eos_ids),
            "chat_template": tokenizer.chat_template,
        }

    async def tokenize(self, body: Tokenize) -> dict[str, Any]:
        def make() -> list[list[int]]:
            if body.messages is not None:
                return self.chat_prompt(body.messages, continues=body.messages[-1].role == "assistant")
            return chat.plain(self._tokenizer, [body.prompt or ""], special=body.add_special_tokens)

        param = "prompt" if body.messages is None else "messages"
        tokens = [] if body.prompt == "" else (await self.encode(make, param=param))[0]
        return {"tokens": tokens, "count": len(tokens), "max_model_len": self.engine.cache_length}

    async def detokenize(self, body: Detokenize) -> dict[str, str]:
        return {"prompt": Text(self._pieces, special=True).add(body.tokens)[0]}

    def collect(self) -> Iterator[Metric]:
        """The engine's current counts, for Prometheus."""
        for name, value in dataclasses.asdict(self.engine.stats).items():
            if name == "slots":
                yield GaugeMetricFamily("emjax_slots", "Sequences decoded at a time.", value)
            else:
                yield CounterMetricFamily(f"emjax_engine_{name}", "See emjax.sampling.Stats.", value)
        yield GaugeMetricFamily("emjax_sequences", "Sequences in slots or waiting for one.", self.sequences)


async def _nothing() -> None:
    return None


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(prompt: int, new: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


async def _refusal(request: fastapi.Request, error: Exception) -> Response:
    """Turns an exception into an answer.

    For an invalid body, names one field without its value, which may not be valid text.
    """
    if isinstance(error, Refused):
        return error.answer
    if isinstance(error, HTTPException):
        return refuse(error.status_code, str(error.detail))
    if not isinstance(error, RequestValidationError):
        return refuse(500, _FAILED)
    # Of the forms that a field may take, choose the one that matches furthest.
    first = max(error.errors(), key=lambda e: len(e["loc"]))
    if first["type"] == "json_invalid":
        return refuse(400, f"The body is not JSON: {first['ctx']['error']}.")
    message = first["msg"].removeprefix("Value error, ")
    # Parts with brackets are names of such forms.
    where = [str(part) for part in first["loc"][1:] if "[" not in str(part)]
    if first["type"] == "value_error" and not where:
        return refuse(400, message, param=message.partition(":")[0])
    return refuse(400, ": ".join((".".join(where) or "the body", message)), param=where[0] if where else None)


def make_app(
    engine: Engine, lm: LanguageModel, models: dict[str, str | None], *, limits: Limits, api_key: str | None = None
) -> Guard:
    """The ASGI app.

    `lm` is the model that the engine was made of; `models` maps served names to the engine's
    adapters.
    """
    service = Service(engine, lm, models, limits)
    app = fastapi.FastAPI(title="emjax", docs_url=None, redoc_url=None)
    registry = prometheus_client.CollectorRegistry()
    registry.register(service)  # type: ignore[arg-type]

    @app.post("/v1/completions")
    async def completions(body: Completion, request: fastapi.Request) -> Response:
        return await service.completions(body, request.state.tasks)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: Chat, request: fastapi.Request) -> Response:
        return await service.chat(body, request.state.tasks)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [service.model_card(name) for name in service.models]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        service.adapter(name)
        return service.model_card(name)

    @app.post("/tokenize")
    async def tokenize(body: Tokenize) -> dict[str, Any]:
        return await service.tokenize(body)

    @app.post("/detokenize")
    async def detokenize(body: Detokenize) -> dict[str, str]:
        return await service.detokenize(body)

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        return service.tokenizer_info()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(prometheus_client.generate_latest(registry), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    for kind in (RequestValidationError, Refused, HTTPException, Exception):
        app.add_exception_handler(kind, _refusal)
    paths = frozenset(route.path for route in app.routes if isinstance(route, fastapi.routing.APIRoute))
    return Guard(app, limits=limits, api_key=api_key, registry=registry, paths=paths)
