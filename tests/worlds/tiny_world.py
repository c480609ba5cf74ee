"""A second world: people who ask for sums and like the right one, or like to hear nine. Its model is the micro-world's."""

import dataclasses

from emjax.config import BenchmarkConfig, Section, option
from emjax.design.users import Limits
from emjax.errors import UserError
from emjax.eval import questions
from emjax.eval.items import Cost, Origin
from emjax.interact.users import Rating
from emjax.worlds.micro.offline import CHECKPOINT

SUMS = {f"what is {x} plus {y} ?": (x, y) for x in range(4) for y in range(4)}


@dataclasses.dataclass
class Person:
    user_id: str
    user_type: str
    dialogue: int
    asked: list[str]
    scenario: str = "sums"

    async def open(self):
        return [{"role": "user", "content": self.asked[0]}]

    async def reply(self, messages):
        turn = sum(m["role"] == "user" for m in messages)
        return {"role": "user", "content": self.asked[turn]} if turn < len(self.asked) else None

    async def rate(self, messages, turn):
        said = [m["content"] for m in messages if m["role"] == "assistant"][turn]
        wanted = "9 ." if self.user_type == "biased" else f"{sum(SUMS[self.asked[turn]])} ."
        return Rating(value=10.0 if said == wanted else 1.0 + len(said) % 3 + self.dialogue, state="ok")


@dataclasses.dataclass(frozen=True)
class SumsConfig(BenchmarkConfig):
    max_new: int = option(8, "Longest answer.", unit="tokens", low=1)
    judge: str = option("counting", "A rule reads the answers.")


class Sums:
    name, Config, metrics, positions, judge = "sums", SumsConfig, questions.METRICS, 16, "rule"

    def load(self, config, gate=None):
        asked = {text: "small" if sum(pair) < 3 else "all" for text, pair in SUMS.items()}
        items = [questions.Question(t, s, t, [{"role": "user", "content": t}], f"{sum(SUMS[t])} .") for t, s in asked.items()]
        return items, Origin("tiny world", {"all": len(items)})

    def ask(self, asker, items, config):
        return questions.ask(asker, items, config, self.name)

    def verdicts(self, rows, judge, config):
        return questions.verdicts(rows, judge)

    def cost(self, config):
        return Cost(len(SUMS), len(SUMS), 0)


@dataclasses.dataclass(frozen=True)
class TinyConfig(Section):
    people: str = option("people", "What users are called.")


class Tiny:
    name, note, Config = "tiny", "This is the tiny world: sixteen sums.", TinyConfig
    trained_subset, subsets, knowledge_floor = "small", {"all": "sums from three on", "small": "sums below three"}, None
    models, limits, gated, stands_for, seed = {"adder": CHECKPOINT}, Limits("sums", 3), False, {}, None
    defaults = {  # noqa: RUF012
        "model.path": "adder", "model.dtype": "float32", "mesh.fsdp": 1, "engine.slots": 8, "engine.cache_length": 64,
        "engine.chunk": 16, "train.tuning": "full", "train.epochs": 1, "train.batch_size": 4, "train.remat": "none",
        "train.buckets": (32,), "interaction/interact.users": 4, "interaction/interact.dialogues": 2,
        "interaction/interact.max_new": 8, "interaction/interact.scheme": "exact", "interaction/select.scope": "user",
        "interaction/select.count": 1, "interaction/select.fraction": 0.0,
    }  # fmt: skip

    def __init__(self, config, seed):
        self._people = config.people

    def at(self, checkpoint):
        return self

    def identity(self):
        return {"people": self._people}

    def check(self, experiment):
        if not self._people:
            raise UserError("config.worlds.tiny.people is empty.")

    def gate(self, asker):
        return []

    def users(self, user_type, counts, *, seed, turns, dialogues=1, source=""):
        texts = [*SUMS]
        names = [(i, f"{self._people}-{user_type}-{i}") for i in range(counts["sums"])]
        asked = [[texts[(seed + 5 * i + 3 * turn) % len(texts)] for turn in range(turns)] for i, _ in names]
        return [Person(name, user_type, dialogue, asked[i]) for i, name in names for dialogue in range(dialogues)]

    def benchmarks(self):
        return {"sums": Sums()}

    def datasets(self):
        return ()

    def dataset(self, name, level, seed, *, count, share):
        raise UserError(f"The tiny world has no data set {name!r}.")
