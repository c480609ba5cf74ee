"""Asking the model under test: in the engine, or at an endpoint."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from emjax.api import ChatClient
from emjax.config import BenchmarkConfig
from emjax.data import chat
from emjax.data.chat import Conversation
from emjax.eval.items import Row
from emjax.runtime.files import digest, dumps, loads, seed_of, write_atomically
from emjax.runtime.journal import Journal
from emjax.sampling import Engine, Request, Sampling, drawing

# "text", "stop_reason"; of an endpoint also "reasoning" where it is returned apart from the answer,
# and "error" where the call failed
Output = dict[str, str]
T = TypeVar("T")


class Asker:
    """Asks a model each (conversation, run) once for each way of drawing, however many items share
    it.

    The random seed of an answer depends on `seed`, the conversation and the run alone, so every arm
    draws with the same noise and paired differences are tighter; the arm never enters. answers: the
    model's own folder, where answers are kept so that judging can be repeated without sampling. It
    has one journal for each way of drawing (draw and max_new). The caller ensures that no other run
    writes there.

    notes: {name: JSON value} that benchmarks record beside their rows; each becomes the file
    <name>.json of an evaluation.
    """

    def __init__(self, seed: int, arm: str, answers: Path | None = None):
        self.seed, self.arm = seed, arm
        self.notes: dict[str, Any] = {}
        self._answers = answers
        self._asked: dict[tuple[str, str], asyncio.Task[Output]] = {}
        self._journals: dict[str, Journal] = {}

    async def ask(self, messages: Conversation, run: int, config: BenchmarkConfig) -> Output:
        """The model's answer to `messages`, drawn as `config.draw` says and at most
        `config.max_new` tokens long.

        run: tells repeated answers to one conversation apart. stop_reason is "eos" or "stop" for a
        whole answer, "length" for one that was cut, "too_long" for a prompt that does not fit, or
        the state of a call that failed.
        """
        place, key = self._place(config), digest([messages, run])
        if (place, key) not in self._asked:
            self._asked[place, key] = asyncio.create_task(self._kept(place, key, messages, run, config))
        return await self._asked[place, key]

    def rows(self, items: Sequence[T], one: Callable[[T], Awaitable[Row]]) -> list[Row]:
        """[await one(item) for each item], all at once. The first error ends them all."""
        bar = tqdm(total=len(items), desc=f"ask {self.arm}", unit="item", mininterval=1.0)

        async def counted(item: T) -> Row:
            row = await one(item)
            bar.update(1)
            return row

        async def all_of_them() -> list[Row]:
            return await asyncio.gather(*map(counted, items))

        rows = asyncio.run(all_of_them())
        bar.close()
        return rows

    def once(self, what: Any, make: Callable[[], Any]) -> Any:
        """make(), a JSON value that `what` (another one) decides. It is kept beside the answers, so
        that a run that was killed later does not make it again."""
        if self._answers is None:
            return make()
        path = self._folder() / f"{digest(what)[:16]}.json"
        if not path.exists():
            write_atomically(path, dumps(make(), default=str))
        return loads(path.read_text(encoding="utf-8"))

    def close(self) -> None:
        """Finishes the journals of answers."""
        for journal in self._journals.values():
            journal.finish()
        self._journals.clear()

    def _place(self, config: BenchmarkConfig) -> str:
        """The name of the journal with the answers that are drawn as `config` says."""
        return digest({"seed": self.seed, "max_new": config.max_new, **config.draw.sent})[:16]

    def _folder(self) -> Path:
        assert self._answers is not None
        self._answers.mkdir(parents=True, exist_ok=True)
        return self._answers

    def _journal(self, place: str) -> Journal | None:
        if self._answers is None:
            return None
        if place not in self._journals:
            self._journals[place] = Journal(self._folder() / f"{place}.jsonl")
        return self._journals[place]

    async def _kept(self, place: str, key: str, messages: Conversation, run: int, config: BenchmarkConfig) -> Output:
        journal = self._journal(place)
        if journal and key in journal.done:
            return {name: x for name, x in journal.done[key].items() if name not in ("id", "messages", "run")}
        output = await self._answer(key, messages, run, config)
        if journal and output["stop_reason"] in ("eos", "stop", "length"):
            journal.add({"id": key, "messages": messages, "run": run, **output})
        return output

    def _seed(self, key: str) -> int:
        return seed_of("evaluate", self.seed, key)

    async def _answer(self, key: str, messages: Conversation, run: int, config: BenchmarkConfig) -> Output:
        raise NotImplementedError

    def drawn(self, config: BenchmarkConfig) -> str:
        """How answers are drawn, in words, where that comes from the model; "" elsewhere."""
        return ""


class EngineAsker(Asker):
    """A model in the JAX engine."""

    def __init__(self, engine: Engine, tokenizer: Any, seed: int, arm: str, answers: Path | None = None):
        super().__init__(seed, arm, answers)
        self.engine, self.tokenizer = engine, tokenizer

    def drawn(self, config: BenchmarkConfig) -> str:
        return drawing.words(self.engine.generation) if config.draw.from_model else ""

    async def _answer(self, key: str, messages: Conversation, run: int, config: BenchmarkConfig) -> Output:
        draw = drawing.resolved(config.draw, self.engine.generation)
        sampling = Sampling(
            temperature=draw.temperature, top_p=draw.top_p, top_k=draw.top_k, min_p=draw.min_p, max_new=config.max_new,
            seed=self._seed(key),
        )  # fmt: skip
        tokens = tuple(chat.prompts(self.tokenizer, [messages])[0])
        if len(tokens) >= self.engine.cache_length:
            return {"text": "", "stop_reason": "too_long"}
        result = await self.engine.submit(Request(key, tokens, sampling))
        return {"text": result.text, "stop_reason": result.stop_reason}


class EndpointAsker(Asker):
    """A model behind an OpenAI-compatible endpoint. A call that failed has its state as
    stop_reason. extra: further fields of a request; one that is None is not sent."""

    def __init__(
        self, client: ChatClient, seed: int, arm: str, answers: Path | None = None, extra: Mapping[str, Any] | None = None
    ):
        super().__init__(seed, arm, answers)
        self._client, self._extra = client, extra or {}

    async def _answer(self, key: str, messages: Conversation, run: int, config: BenchmarkConfig) -> Output:
        sampling = config.draw.sent | {"max_tokens": config.max_new, "seed": self._seed(key), **self._extra}
        sent = {name: value for name, value in sampling.items() if value is not None}
        reply = await self._client.chat(messages, run=run, **sent)
        output = {"text": reply.text, "stop_reason": "stop" if reply.state == "ok" else reply.state}
        more = {"reasoning": reply.reasoning, "error": reply.error}
        return output | {name: text for name, text in more.items() if text is not None}


def whole(output: Output) -> str:
    """ "ok" for a whole answer, else why there is none: "truncated", or "target_" and the call's
    failure."""
    reason = output["stop_reason"]
    if reason in ("eos", "stop"):
        return "ok"
    return "truncated" if reason == "length" else f"target_{reason}"
