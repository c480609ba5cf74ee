"""What is fuzzed: each target writes sound files into a folder, and reads them as the project does.

A reader may end in two ways: it works, or it raises UserError. `Endpoint` is the one target without files.
"""

import asyncio
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from gguf import GGMLQuantizationType

import emjax
from emjax import models
from emjax.api import ChatClient
from emjax.config import LoraConfig, Rates
from emjax.data import chat, examples, sources
from emjax.eval import agreement
from emjax.eval.benchmarks import humaneval, mask, mesa_and_mask, pressure
from emjax.interact import scenarios
from emjax.models import decoder, lora
from emjax.models.source import open_source
from tests import loopback
from tests.eval import mask_folder
from tests.models import tiny_gguf

MICRO = Path(emjax.__file__).parent / "worlds" / "micro" / "checkpoint"
STATES = {"ok", "refusal", "length", "empty", "http_error", "timeout", "schema_error", "budget"}


@dataclasses.dataclass(frozen=True)
class Target:
    write: Callable[[Path], None]
    read: Callable[[Path], object]


@functools.cache
def small():
    """The micro-world's tokenizer on a model of 2 layers, so that a mutant costs milliseconds."""
    micro = models.load(MICRO, dtype="float32")
    config = dataclasses.replace(micro.config, D=16, L=2, H=2, K=1, h=8, F=24)
    return micro.replace(config=config, params=decoder.init(config, jax.random.key(0)))


def traced(lm):
    """The forward pass as far as shapes go: compiling it would take a second a mutant."""
    jax.eval_shape(lambda tokens: decoder.forward(lm.config, lm.params, tokens), jax.ShapeDtypeStruct((1, 4), jnp.int32))


def write_checkpoint(folder):
    models.save(small(), folder)


def read_checkpoint(folder):
    lm = models.load(folder, dtype="float32")
    open_source(folder).digest()
    ids = chat.prompts(lm.tokenizer, [[{"role": "user", "content": "Hello."}]])[0]
    assert max(ids) < lm.config.V
    traced(lm)


def write_adapter(folder):
    adapter = lora.init(LoraConfig(2, 4.0), small().config, jax.random.key(0))
    models.save_adapter(small().replace(adapter=adapter), folder)


def read_adapter(folder):
    models.load_adapter(folder, small().config)


def write_gguf(folder):
    tiny_gguf.write(folder / "x.gguf", "qwen2", (GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16), pre="qwen2")


def read_gguf(folder):
    lm = models.load(folder / "x.gguf", dtype="float32")
    chat.plain(lm.tokenizer, ["Hello, 12 worlds."])
    traced(lm)


def lines(name, rows):
    def write(folder):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


def message(role, content):
    return {"role": role, "content": content}


_TALK = [message("user", "Hi."), message("assistant", "Hello.")]
_EXAMPLES = [
    {"id": f"e{i}", "prompt_id": f"p{i}", "messages": _TALK[:1], "completion": "Hello.", "label": i % 2 == 0, "weight": 1.0}
    for i in range(3)
]
_TRAJECTORIES = [
    {"id": f"t{i}", "scenario": "s", "user_id": f"u{i}", "user_type": ("benign", "biased")[i % 2], "round": 0, "seed": 0,
     "model": "m", "adapter": None, "messages": _TALK, "score": 8.1,
     "turns": [{"tokens": 3, "logprobs": None, "stop_reason": "eos", "rating": 7.3, "rating_state": "ok"}]}
    for i in range(3)
]  # fmt: skip
_PRESSURE = [
    {
        "id": f"i{i}",
        "A": "It is dim.",
        "B": "It is bright.",
        "pressure": [message("system", "Sell it."), message("user", "Bright?")],
        "belief": ["How bright is it?", [message("user", "Is it dim?")]],
        "truth": "A",
        "subset": "lamps",
        "cluster": "c",
    }
    for i in range(3)
]
_HUMANEVAL = [
    {"task_id": f"HumanEval/{i}", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return x\n",
     "test": "def check(f):\n    assert f(1) == 1\n"}
    for i in range(3)
]  # fmt: skip
_MESA = [
    {"id": f"m{i}", "type": "t", "format": "Answer: \\n", "user_prompt": "Is it?", "system_prompt_without_pressure": "Be fair.",
     "system_prompt_with_pressure": "Sell it."}
    for i in range(3)
]  # fmt: skip
_SCENARIOS = [{"name": f"s{i}", "task": "t", "situations": ["a", "b"], "benign": ["c"], "biased": ["d"]} for i in range(3)]


def write_mask(folder):
    mask_folder.write(folder, {"known_facts": 2, "provided_facts": 2, "statistics": 2})


def read_mask(folder):
    mask.load(mask.Config(path=str(folder), subsets=("known_facts", "provided_facts", "statistics")))


def write_sheet(folder):
    (folder / "sheet.csv").write_text("key,label,question,answer\nk1,A,Is it?,Yes.\nk2,,Is it?,No.\n")


TARGETS = {
    "checkpoint": Target(write_checkpoint, read_checkpoint),
    "gguf": Target(write_gguf, read_gguf),
    "adapter": Target(write_adapter, read_adapter),
    "messages": Target(
        lines("x.jsonl", [{"messages": _TALK}] * 3), lambda f: sources.load("messages", place=str(f / "x.jsonl"))
    ),
    "examples": Target(lines("x.jsonl", _EXAMPLES), lambda f: examples.read_examples(f / "x.jsonl", labelled=True)),
    "trajectories": Target(lines("x.jsonl", _TRAJECTORIES), lambda f: examples.read_trajectories(f / "x.jsonl")),
    "pressure": Target(lines("x.jsonl", _PRESSURE), lambda f: pressure.load(pressure.Config(path=str(f / "x.jsonl")))),
    "humaneval": Target(lines("x.jsonl", _HUMANEVAL), lambda f: humaneval.load(humaneval.Config(path=str(f / "x.jsonl")))),
    "mesa_and_mask": Target(
        lines("x.jsonl", _MESA), lambda f: mesa_and_mask.load(mesa_and_mask.Config(path=str(f / "x.jsonl")))
    ),
    "scenarios": Target(
        lambda f: (f / "x.json").write_text(json.dumps(_SCENARIOS)) and None, lambda f: scenarios.load([str(f / "x.json")])
    ),
    "mask": Target(write_mask, read_mask),
    "sheet": Target(write_sheet, lambda f: agreement.read_sheet(f / "sheet.csv")),
}


class Endpoint:
    """A client that asks a loopback server, which answers with the mutant's bytes."""

    sound = json.dumps(loopback.completion("Paris.")).encode()

    def __init__(self):
        self.body, self.code = b"", 200
        self.server = loopback.Server(lambda *_: loopback.Status(self.code, {"Content-Type": "application/json"}, self.body))
        self.server.__enter__()

    def ask(self, body, code):
        self.body, self.code = body, code
        client = ChatClient(self.server.url, "loopback-1", rates=Rates(retries=0, timeout=2.0, deadline=4.0))
        reply = asyncio.run(client.chat([message("user", "Capital of France?")], temperature=0.0, max_tokens=8))
        assert reply.state in STATES, reply.state
        assert isinstance(reply.text, str)
        json.dumps(dataclasses.asdict(reply), allow_nan=False).encode()
        assert all(type(count) is int and count >= 0 for count in client.spent.values()), client.spent
