"""Measures conversations of the embedded model with users and raters at a local endpoint.

python -m benchmarks.interact --conversations 2000 --latency 0.2 [--concurrent 256]

The endpoint runs in its own process and answers after a fixed time. Prints one JSON line with
conversations per second and the share of time in which the engine was idle.
"""

import argparse
import asyncio
import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

USER = "I am not sure about that . what do you think ?"


async def _serve(latency: float, port: Any) -> None:
    """A minimal chat endpoint that gives the same reply to every request after `latency`
    seconds."""

    def body(rated: bool) -> bytes:
        text = "7" if rated else USER
        top = [{"token": "7", "logprob": -0.36, "bytes": None}, {"token": "8", "logprob": -1.2, "bytes": None}]
        logprobs = {"content": [{**top[0], "top_logprobs": top}]} if rated else None
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, "logprobs": logprobs}
        usage = {"prompt_tokens": 400, "completion_tokens": 12, "total_tokens": 412}
        done = {"id": "x", "object": "chat.completion", "created": 0, "model": "users", "choices": [choice], "usage": usage}
        return json.dumps(done).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
                asked = await reader.readexactly(length)
                await asyncio.sleep(latency)
                said = body(b'"logprobs"' in asked)
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(said) + said
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    port.value = server.sockets[0].getsockname()[1]
    await server.serve_forever()


def _endpoint(latency: float, port: Any) -> None:
    asyncio.run(_serve(latency, port))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=2000)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--concurrent", type=int, default=256)
    parser.add_argument("--slots", type=int, default=128)
    options = parser.parse_args()

    spawn = multiprocessing.get_context("spawn")
    port = spawn.Value("i", 0)
    endpoint = spawn.Process(target=_endpoint, args=(options.latency, port), daemon=True)
    endpoint.start()

    import emjax
    from emjax import models
    from emjax.config import Draw, InteractConfig, Rates, RoleConfig, RolesConfig
    from emjax.design.quotas import spread
    from emjax.interact import population, rollout
    from emjax.sampling import Engine, Request, Sampling

    lm = models.load(str(Path(emjax.__file__).parent / "worlds" / "micro" / "checkpoint"), dtype="float32")
    engine = Engine(lm, slots=options.slots, cache_length=384, chunk=32)
    # warm-up: compiles the programs
    list(engine.generate([Request(str(n), tuple(range(8, 200)), Sampling(max_new=24)) for n in range(8)]))
    url, rates = f"http://127.0.0.1:{port.value}/v1", Rates(concurrent=options.concurrent)
    config = InteractConfig(models=RolesConfig(user=RoleConfig(base_url=url, model="users", rates=rates)))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        crowd = population.Population(config, 0, place / "cache", lambda path: (engine, lm.tokenizer))
        counts = spread(options.conversations, crowd.names)
        crowd.make_personas(counts, place)
        busy = rollout.Busy()
        users = crowd.users(place, "biased", counts, 1, seed=0, base=(engine, lm.tokenizer), busy=busy)
        talk = rollout.Talk(0, Draw(), 24, "sum", "micro")
        rows = rollout.collect(engine, users, place / "trajectories.jsonl", tokenizer=lm.tokenizer, talk=talk, busy=busy)
        line = {
            "conversations": len(rows),
            "seconds": round(busy.seconds, 1),
            "conversations_s": round(len(rows) / busy.seconds, 1),
            "engine_idle": round(busy.idle, 4),
            "slots_occupied": round(engine.stats.occupied, 3),
            "calls": sum(client.spent["calls"] for client in crowd.clients.values()),
            "latency_s": options.latency,
            "concurrent": options.concurrent,
            "unscored": sum(row["score"] is None for row in rows),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
