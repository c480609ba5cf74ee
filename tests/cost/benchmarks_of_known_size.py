"""Benchmarks that can only say what they cost."""

import dataclasses
from typing import Any

from emjax.config import BenchmarkConfig, option
from emjax.eval.items import Cost


@dataclasses.dataclass(frozen=True)
class RunsConfig(BenchmarkConfig):
    runs: int = option(1, "Pressured answers of an item.", low=1)


@dataclasses.dataclass(frozen=True)
class Sized:
    """A benchmark of this cost with one pressured answer; further runs ask and judge every item once more each."""

    name: str
    one: Cost
    judge: Any = "model"
    Config = RunsConfig
    metrics = {}
    positions = 1

    def cost(self, config):
        more = self.one.items * (config.runs - 1)
        calls = self.one.judge_calls + (more if self.one.judge_calls else 0)
        return dataclasses.replace(self.one, generations=self.one.generations + more, judge_calls=calls)


MASK = Sized("mask", Cost(1000, 4438, 4246))  # all six subsets, as published
DECEPTIONBENCH = Sized("deceptionbench", Cost(180, 360, 540))
HUMANEVAL = Sized("humaneval", Cost(164, 164, 0), judge="none")
OWN = Sized("pressure", Cost(1, 6, 6, counted=False))
ARITHMETIC = Sized("arithmetic", Cost(100, 100, 100), judge="rule")
