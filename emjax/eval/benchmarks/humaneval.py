"""HumanEval (Chen et al. 2021, arXiv:2107.03374): programs that are executed in confinement against
the problem's tests.

python -m emjax.eval.benchmarks.humaneval HumanEval.jsonl.gz          checks the machine with the
                                                                      problems' own solutions
"""

import argparse
import asyncio
import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from emjax.config import BenchmarkConfig, Draw, option
from emjax.data.chat import Conversation
from emjax.errors import UserError
from emjax.eval import code
from emjax.eval.asker import Asker, whole
from emjax.eval.executor import Executor
from emjax.eval.items import Cost, Item, Metric, Origin, Row, existing, origin_of
from emjax.eval.judge import Judge
from emjax.runtime.files import check_fields, dumps, numbered_lines

_FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
_PROBLEMS = 164
_MOST = 200  # programs a problem


@dataclasses.dataclass(frozen=True)
class Config(BenchmarkConfig):
    """config.eval.humaneval."""

    path: str = option("", "HumanEval.jsonl.gz.", needs="file", under="HumanEval.jsonl.gz")
    samples: int = option(1, "Programs for each problem.", low=1, high=_MOST)
    ks: tuple[int, ...] = option((1,), "The k of pass@k; pass@1 is called accuracy.", low=1)
    draw: Draw = option(Draw(temperature=0.0), "How programs are drawn; a temperature of 0.8 is usual for k > 1.")
    max_new: int = option(1024, "Longest answer; longer ones are cut and counted.", unit="tokens", low=1)
    workers: int = option(0, "Programs that run at once; 0: one a core.", low=0, pace=True)

    def check(self) -> None:
        if not self.ks or max(self.ks) > self.samples:
            raise UserError(f"ks is {self.ks}; give at least one k, and none above samples ({self.samples}).")


@dataclasses.dataclass(frozen=True)
class Problem(Item):
    prompt: str  # imports, signature, docstring
    entry_point: str
    solution: str  # the canonical body
    test: str  # defines check(candidate)

    @property
    def published(self) -> dict[str, str]:
        """What `program` needs."""
        return {"prompt": self.prompt, "entry_point": self.entry_point, "test": self.test}

    @property
    def messages(self) -> Conversation:
        asked = (
            "Complete this Python function. Answer with the whole function, with the imports that it needs, in one block of "
            f"code.\n\n```python\n{self.prompt.rstrip()}\n```"
        )
        return [{"role": "user", "content": asked}]


name: Final = "humaneval"
positions: Final = 1024
judge: Final = "none"  # programs are executed


def _pass_at(k: int) -> Metric:
    return Metric(lambda row: pass_at_k(row["samples"], row["passed"], k), arises=lambda row: k in row["ks"], printed=k == 1)


metrics: dict[str, Metric] = {"accuracy": _pass_at(1)} | {f"pass@{k}": _pass_at(k) for k in range(2, _MOST + 1)}


def load(config: Config, gate: Sequence[Item] | None = None) -> tuple[list[Problem], Origin]:
    path = existing(name, config.path)
    problems = read(path)
    return problems, origin_of(path, problems)


def read(path: Path) -> list[Problem]:
    """Problems of a JSON-lines file, gzipped or not, with the published fields. Raises UserError
    naming the line."""
    problems = []
    for number, row in numbered_lines(path):
        check_fields(row, _FIELDS, f"{path}, line {number}", others=True)
        missing = [field for field in _FIELDS if not isinstance(row.get(field), str)]
        if missing:
            raise UserError(
                f"{path}, line {number}: the field {missing[0]!r} is missing. Give HumanEval.jsonl.gz as published."
            )
        task, *published = (row[field] for field in _FIELDS)
        problems.append(Problem(task, "all", task, *published))
    return problems


def ask(asker: Asker, items: Sequence[Problem], config: Config) -> list[Row]:
    # a machine that cannot confine programs is refused before anything is generated
    Executor(config.workers)

    async def one(problem: Problem) -> Row:
        runs = range(config.samples)
        outputs = await asyncio.gather(*(asker.ask(problem.messages, run, config) for run in runs))
        return {
            "id": problem.id, "benchmark": name, "subset": problem.subset, "arm": asker.arm, "seed": asker.seed,
            "messages": problem.messages, "outputs": outputs, "verdicts": [], "cluster": problem.cluster,
            "problem": problem.published,
        }  # fmt: skip

    return asker.rows(items, one)


def verdicts(rows: Sequence[Row], judge: Judge, config: Config) -> list[Row]:
    """Executes the programs. `passed` of `samples` programs pass; result is 1 or 0 where all agree,
    else null.

    An answer without a program, or a truncated one, fails like any other; `outcomes` counts those
    that passed, failed, or ran out of time or memory, and `cut` the truncated ones. A call that
    failed is a state.
    """
    executor = Executor(config.workers)

    async def one(row: Row) -> Row:
        outputs, problem = row["outputs"], row["problem"]
        faults = [state for state in map(whole, outputs) if state not in ("ok", "truncated")]
        programs = [] if faults else [program(problem, output["text"]) for output in outputs]
        outcomes = await asyncio.gather(*map(executor.run, programs))
        passed, samples = outcomes.count("passed"), len(outputs)
        return row | {
            "state": faults[0] if faults else "ok", "samples": samples, "passed": passed, "ks": list(config.ks),
            "outcomes": dict(Counter(outcomes)), "cut": sum(output["stop_reason"] == "length" for output in outputs),
            "result": None if faults or 0 < passed < samples else int(passed == samples),
        }  # fmt: skip

    return judge.rows(rows, one)


def cost(config: Config) -> Cost:
    items = len(read(Path(config.path))) if Path(config.path).is_file() else _PROBLEMS
    return Cost(items=items, generations=items * config.samples, judge_calls=0, tokens=(250, 250))


def program(problem: Mapping[str, str], answer: str) -> str:
    """The program that tests an answer: of its blocks of code the one that defines the function, or
    all of it where no block is marked. Reasoning in <think> is no part of it.

    Code that does not define the function is taken for the body that goes on after the prompt.
    """
    answer = code.without_reasoning(answer)
    found, name = code.blocks(answer), problem["entry_point"]
    whole = code.defining(found or [answer], name)
    if whole is None:
        bodies = [block for block in found if block.lstrip("\n")[:1] in (" ", "\t")]
        text = problem["prompt"] + (bodies or found or [answer])[0]
    else:
        # What the prompt imports or defines beside the function belongs to the problem.
        text = f"{problem['prompt']}    pass\n\n{whole}"
    return code.future_first(f"{text}\n\n{problem['test']}\n\ncheck({name})\n")


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k programs, drawn of n of which c pass, passes: 1 - C(n - c, k) / C(n,
    k).

    Raises ValueError for k > n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} in {n}")
    return 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1)) if n - c >= k else 1.0


def main(argv: Sequence[str] | None = None) -> None:
    """Runs every problem's own solution, and a body that returns None: all of the first must pass,
    none of the second."""
    parser = argparse.ArgumentParser(prog="python -m emjax.eval.benchmarks.humaneval")
    parser.add_argument("problems", type=Path, help="HumanEval.jsonl.gz")
    problems = read(parser.parse_args(argv).problems)
    executor = Executor()

    async def count_passed(bodies: Sequence[str]) -> int:
        checks = [executor.run(program(problem.published, body)) for problem, body in zip(problems, bodies, strict=True)]
        return (await asyncio.gather(*checks)).count("passed")

    async def both() -> dict[str, int]:
        right, none = [problem.solution for problem in problems], ["    return None\n"] * len(problems)
        return {"problems": len(problems), "canonical": await count_passed(right), "return None": await count_passed(none)}

    print(dumps(asyncio.run(both())))


if __name__ == "__main__":
    main()
