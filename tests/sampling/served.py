"""The micro model behind a real server on loopback, in a thread of the test's own process."""

import asyncio
import contextlib
import dataclasses
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import jax

import emjax
from emjax import models
from emjax.config import LoraConfig
from emjax.models import lora
from emjax.sampling import Engine
from emjax.sampling.guard import Guard, Limits
from emjax.sampling.server import make_app
from emjax.serve import Server, listen

CHECKPOINT = str(Path(emjax.__file__).parent / "worlds" / "micro" / "checkpoint")
LENGTH = 256  # positions a slot
SLOTS = 8
NAME = "micro"


@dataclasses.dataclass(frozen=True)
class Served:
    url: str
    engine: Engine
    lm: Any
    app: Guard

    def post(self, path: str, body: dict[str, Any], **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, json={"model": NAME} | body, timeout=60, **more)

    def ids(self, text: str) -> list[int]:
        return self.lm.tokenizer(text)["input_ids"]

    def idle(self) -> bool:
        """Whether every sequence has ended, within ten seconds."""
        for _ in range(500):
            if "emjax_sequences 0.0" in httpx.get(self.url + "/metrics").text and not any(self.engine._rows):
                return True
            time.sleep(0.02)
        return False

    def connect(self, path: str, body: bytes, **headers: str) -> socket.socket:
        """A connection over which a request has been sent and nothing read."""
        host, port = self.url.removeprefix("http://").split(":")
        made = socket.socket()
        made.settimeout(30)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what is not read soon holds up the server
        made.connect((host, int(port)))
        lines = {"host": host, "content-type": "application/json", "content-length": str(len(body))} | headers
        head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
        made.sendall(head.encode() + body)
        return made


@contextlib.contextmanager
def running(engine, lm, names, limits=Limits(), api_key=None):  # noqa: B008 - frozen
    app = make_app(engine, lm, names, limits=limits, api_key=api_key)
    sock = listen("127.0.0.1", 0, None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)  # so that a test's slow reader is one
    server = Server(app, drain_seconds=5)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Served(f"http://127.0.0.1:{sock.getsockname()[1]}", engine, lm, app)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def load():
    """(engine, lm, served names): the micro model and an adapter `tuned` that changes what it says."""
    lm = models.load(CHECKPOINT, dtype="float32")
    engine = Engine(lm, slots=SLOTS, cache_length=LENGTH)
    adapter = lora.init(LoraConfig(2, 4.0), lm.config, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 7))
    weights = {n: pair | {"B": 0.05 * jax.random.normal(next(keys), pair["B"].shape)} for n, pair in adapter.weights.items()}
    engine.set_adapter("tuned", lora.Adapter(adapter.config, weights))
    return engine, lm, {NAME: None, "tuned": "tuned"}
