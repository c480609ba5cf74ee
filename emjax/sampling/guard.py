"""Middleware in front of the server's endpoints.

It handles the key, limits, time-outs, disconnects, the drain and counts.
"""

import asyncio
import dataclasses
import hmac
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RETRY_SECONDS = {429: "1", 503: "10"}  # a decode window; a restart


@dataclasses.dataclass(frozen=True)
class Limits:
    queue: int = 256  # sequences that wait for a slot
    body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0  # for a client to send its body
    write_seconds: float = 60.0  # for a client to take what has been sent
    logprobs: int = 2**19  # in one answer; writing more would hold up all clients


def refuse(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error response in OpenAI's format."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    headers = {"retry-after": RETRY_SECONDS[status]} if status in RETRY_SECONDS else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    # The client chose the field's name, so it may not be valid text.
    said = {"message": message, "type": kind, "param": param, "code": code}
    body = {"error": {k: v and v[:2000].encode(errors="backslashreplace").decode() for k, v in said.items()}}
    return JSONResponse(body, status, headers)


class Guard:
    """ASGI middleware around the whole app.

    The tasks that a request started (scope["state"]["tasks"]) end with it, however it ends.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Limits, api_key: str | None, registry: CollectorRegistry, paths: frozenset[str]
    ):
        self.draining = False
        self.active = 0  # requests being answered
        self._app = app
        self._limits = limits
        self._key = None if api_key is None else f"Bearer {api_key}".encode()
        self._paths = paths
        self._requests = Counter("emjax_http_requests", "Answered requests.", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "emjax_http_request_seconds",
            "From the request's head to the last byte of its answer.",
            ["path"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 499  # 499: the client left before the answer
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            async with asyncio.timeout(self._limits.write_seconds):
                await send(message)

        self.active += 1
        try:
            await self._admit(scope, receive, answer)
        except TimeoutError:
            pass  # the client has stopped reading, so nobody would see an error
        finally:
            self.active -= 1
            self._requests.labels(path, status).inc()
            self._seconds.labels(path).observe(time.monotonic() - start)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None
        given = dict(scope["headers"]).get(b"authorization", b"")
        if self._key is not None and scope["path"] != "/health" and not hmac.compare_digest(given, self._key):
            refusal = refuse(401, "The API key is missing or wrong; send it as `Authorization: Bearer KEY`.")
        if refusal is None and self.draining and scope["path"] != "/metrics":
            refusal = refuse(503, "The server is shutting down and accepts no new requests.")
        body = bytearray()
        if refusal is None:
            try:
                async with asyncio.timeout(self._limits.body_seconds):
                    while True:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            return
                        body += message.get("body", b"")
                        if len(body) > self._limits.body_bytes:
                            refusal = refuse(413, f"The body exceeds {self._limits.body_bytes} bytes.")
                            break
                        if not message.get("more_body", False):
                            break
            except TimeoutError:
                refusal = refuse(408, f"The body did not arrive within {self._limits.body_seconds:g} s.")
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._run(scope, bytes(body), receive, send)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Runs the app until it has answered or the client has disconnected."""
        tasks: set[asyncio.Task[Any]] = set()
        scope.setdefault("state", {})["tasks"] = tasks
        unread = True

        async def replay() -> Message:
            nonlocal unread
            if unread:
                unread = False
                return {"type": "http.request", "body": body, "more_body": False}
            # A disconnect cancels the app, so the app need not watch for one.
            await asyncio.Event().wait()
            raise AssertionError

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        work = asyncio.ensure_future(self._app(scope, replay, send))
        watch = asyncio.create_task(gone())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (started := [work, watch, *tasks]):
                task.cancel()
            await asyncio.gather(*started, return_exceptions=True)
