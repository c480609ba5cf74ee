"""HumanEval (Chen et al. 2021, arXiv:2107.03374): programs that are executed in confinement against the problem's tests.

python -m emjax.eval.humaneval HumanEval.jsonl.gz          checks the machine with the problems' own solutions
"""

import argparse
import asyncio
import dataclasses
import gzip
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emjax.data.chat import Conversation
from emjax.errors import UserError

_FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
_UID = 61_000  # of confined programs where we are root; nobody else's, and one for each worker


@dataclasses.dataclass(frozen=True)
class Problem:
    id: str
    prompt: str  # imports, signature, docstring
    entry_point: str
    solution: str  # the canonical body
    test: str  # defines check(candidate)

    @property
    def messages(self) -> Conversation:
        asked = (
            "Complete this Python function. Answer with the whole function, with the imports that it needs, in one block of "
            f"code.\n\n```python\n{self.prompt.rstrip()}\n```"
        )
        return [{"role": "user", "content": asked}]


def load(path: Path) -> list[Problem]:
    """Problems of a JSON-lines file, gzipped or not, with the published fields. Raises UserError naming the line."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error}).") from None
        missing = [name for name in _FIELDS if not isinstance(row.get(name), str)]
        if missing:
            raise UserError(
                f"{path}, line {number}: the field {missing[0]!r} is missing. Give HumanEval.jsonl.gz as published."
            )
        problems.append(Problem(*(row[name] for name in _FIELDS)))
    return problems


def program(problem: Problem, answer: str) -> str:
    """The program that tests an answer: its first block of code, or all of it where no block is marked.

    Code that does not define the function is taken for the body that goes on after the prompt.
    """
    block = re.search(r"```[^\n]*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    code = block[1] if block else answer
    if not re.search(rf"^(?:async )?def {re.escape(problem.entry_point)}\b", code, re.MULTILINE):
        code = problem.prompt + code
    else:
        # What the prompt imports or defines beside the function belongs to the problem.
        code = f"{problem.prompt}    pass\n\n{code}"
    return f"{code}\n\n{problem.test}\n\ncheck({problem.entry_point})\n"


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k programs, drawn of n of which c pass, passes: 1 - C(n - c, k) / C(n, k).

    Raises ValueError for k > n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} in {n}")
    return 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1)) if n - c >= k else 1.0


class Executor:
    """Runs programs, `workers` at a time. Raises UserError where they could not be confined: there is no weaker mode."""

    def __init__(self, workers: int = 0, *, seconds: float = 5.0, memory: int = 2**30, disk: int = 2**24, processes: int = 8):
        if sys.platform != "linux":
            raise UserError(
                "HumanEval executes what a model wrote, confined by Linux namespaces. Run it on Linux, or leave it out."
            )
        workers = workers or os.cpu_count() or 1
        self._limits = {"seconds": seconds, "memory": memory, "disk": disk, "processes": processes}
        self._uids = [_UID + i if os.geteuid() == 0 else None for i in range(workers)]
        self._slots: asyncio.Queue[int | None] | None = None
        if self._confined("", self._uids[0]) != "passed":  # else every program would seem to fail
            raise UserError(f"Not even an empty program ends well within {self._limits}. Raise these limits.")

    async def check(self, problem: Problem, answer: str) -> str:
        """passed | failed | timeout | memory."""
        return await self.run(program(problem, answer))

    async def run(self, text: str) -> str:
        if self._slots is None:
            self._slots = asyncio.Queue()
            for uid in self._uids:
                self._slots.put_nowait(uid)
        uid = await self._slots.get()
        try:
            return await asyncio.to_thread(self._confined, text, uid)
        finally:
            self._slots.put_nowait(uid)

    def _confined(self, text: str, uid: int | None) -> str:
        script = str(Path(__file__).with_name("confine.py"))
        with tempfile.TemporaryDirectory(prefix="emjax-") as root:
            asked = self._limits | {
                "program": text.encode(errors="replace").decode(), "root": root, "uid": uid,
                "prefix": os.path.realpath(sys.base_prefix), "python": os.path.realpath(sys.executable),
            }  # fmt: skip
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, start_new_session=True, env={},
            )  # fmt: skip
            try:
                out, err = process.communicate(json.dumps(asked), timeout=self._limits["seconds"] + 30)
            finally:
                process.kill()  # with it goes the namespace
        if process.returncode or out not in ("passed", "failed", "timeout", "memory"):
            why = err.strip()[-300:] or f"exit code {process.returncode}"
            raise UserError(
                f"A program could not be confined ({why}), so it was not run. HumanEval needs Linux with user namespaces "
                "(kernel 5.14 or later; in a container they may be forbidden): allow them, or leave 'humaneval' out of "
                "config.eval.benchmarks."
            )
        return out


def main(argv: Sequence[str] | None = None) -> None:
    """Runs every problem's own solution, and a body that returns None: all of the first must pass, none of the second."""
    parser = argparse.ArgumentParser(prog="python -m emjax.eval.humaneval")
    parser.add_argument("problems", type=Path, help="HumanEval.jsonl.gz")
    problems = load(parser.parse_args(argv).problems)
    executor = Executor()

    async def passed(bodies: Sequence[str]) -> int:
        checks = [executor.check(problem, body) for problem, body in zip(problems, bodies, strict=True)]
        return (await asyncio.gather(*checks)).count("passed")

    async def both() -> dict[str, int]:
        right, none = [problem.solution for problem in problems], ["    return None\n"] * len(problems)
        return {"problems": len(problems), "canonical": await passed(right), "return None": await passed(none)}

    print(json.dumps(asyncio.run(both())))


if __name__ == "__main__":
    main()
