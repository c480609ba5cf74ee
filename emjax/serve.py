"""An OpenAI-compatible server.

python -m emjax.serve --model PATH [--adapter PATH] [--host 127.0.0.1] [--port 8000]
"""

import argparse
import asyncio
import ipaddress
import os
import socket
import sys
import time
from pathlib import Path
from types import FrameType

import uvicorn

from emjax import models
from emjax.errors import UserError
from emjax.models import peft, sharding
from emjax.sampling import Engine, Request, Sampling
from emjax.sampling.guard import Guard, Limits
from emjax.sampling.server import make_app

LONGEST = 4096  # positions per slot, unless the model has fewer or --cache_length is given


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m emjax.serve", description="Serve a checkpoint through OpenAI's HTTP interface."
    )
    add = parser.add_argument
    add("--model", required=True, help="Hugging Face directory or hub id; also its served name")
    add("--adapter", action="append", default=[], metavar="[NAME=]PATH", help="PEFT directory, served as NAME; may be repeated")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000, help="0 = any free port")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--slots", type=int, default=32, help="sequences decoded at a time (default %(default)s)")
    add("--cache_length", type=int, help=f"maximum tokens of prompt and answer (default: the model's, at most {LONGEST})")
    add("--queue", type=int, default=Limits.queue, help="sequences that may wait for a slot (default %(default)s)")
    add("--mesh", default="1x1x1", metavar="DATAxFSDPxTENSOR", help="devices to spread the model over (default %(default)s)")
    add(
        "--drain_seconds",
        type=float,
        default=30.0,
        help="how long running requests may last after SIGTERM (default %(default)s)",
    )
    add("--api_key_env", default="EMJAX_API_KEY", help="environment variable that holds the API key (default %(default)s)")
    return parser.parse_args(argv)


def listen(host: str, port: int, api_key: str | None) -> socket.socket:
    """A listening socket.

    Raises UserError if other machines can reach the address and there is no API key.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: a port must be in [0, 65535].")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False  # a name may resolve to any address
    if not local and api_key is None:
        raise UserError(
            f"--host {host}: other machines could reach the server there, and it has no API key. Set the environment variable "
            "that --api_key_env names (EMJAX_API_KEY), or bind 127.0.0.1."
        )
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: the server cannot listen there ({error}).") from error


class Server(uvicorn.Server):
    """A uvicorn server that drains.

    On SIGTERM or SIGINT it accepts no new requests (503), gives running ones a bounded time to end,
    and exits with status 0. A second signal stops it at once.
    """

    def __init__(self, app: Guard, drain_seconds: float):
        # Requests still running after the drain are cut off; uvicorn need not wait any longer.
        super().__init__(uvicorn.Config(app, lifespan="off", timeout_keep_alive=30, timeout_graceful_shutdown=1))
        self._guard = app
        self._drain_seconds = drain_seconds
        self._deadline = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._guard.draining:
            self.should_exit = self.force_exit = True
        self._guard.draining = True
        self._deadline = min(self._deadline, time.monotonic() + self._drain_seconds)

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second."""
        if self._guard.draining and (self._guard.active == 0 or time.monotonic() > self._deadline):
            self.should_exit = True
        return await super().on_tick(counter)


def serve(options: argparse.Namespace) -> None:
    api_key = os.environ.get(options.api_key_env) or None
    sock = listen(options.host, options.port, api_key)  # before loading, which may take minutes
    try:
        mesh = None
        if options.mesh != "1x1x1":
            parts = options.mesh.split("x")
            if len(parts) != 3 or not all(part.isdecimal() for part in parts):
                raise UserError(f"--mesh {options.mesh}: give three whole numbers such as 1x1x8.")
            mesh = sharding.make_mesh(*map(int, parts))
        lm = models.load(options.model, dtype=options.dtype, mesh=mesh)
        length = options.cache_length or min(lm.config.max_position, LONGEST)
        engine = Engine(lm, slots=options.slots, cache_length=length, mesh=mesh)
        names: dict[str, str | None] = {options.model: None}
        for given in options.adapter:
            name, _, path = given.rpartition("=")
            name = name or Path(path).name
            if name in names:
                raise UserError(f"--adapter {given}: the name {name!r} is taken; give another one as NAME=PATH.")
            engine.set_adapter(name, models.load_adapter(path, lm.config, base=lm.source))
            peft.own_template(path, lm.tokenizer, lm.eos_ids, use=False)
            names[name] = name
        # Compiles before anyone waits.
        next(engine.generate([Request("warm-up", (lm.eos_ids[0],), Sampling(max_new=2))]))
        app = make_app(engine, lm, names, limits=Limits(queue=options.queue), api_key=api_key)
        host, port = sock.getsockname()[:2]
        print(f"serving {', '.join(names)} at http://{f'[{host}]' if ':' in host else host}:{port}/v1", flush=True)
        asyncio.run(Server(app, options.drain_seconds).serve(sockets=[sock]))
    finally:
        sock.close()


def main(argv: list[str]) -> int:
    """Returns 0, or 2 after one printed paragraph if the user can fix the problem."""
    try:
        serve(parse(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
