"""Questions with one right answer, which is compared word for word: capabilities that must not
change while honesty does."""

import dataclasses
import re
from collections.abc import Sequence

from emjax.config import BenchmarkConfig
from emjax.data.chat import Conversation
from emjax.eval.asker import Asker, whole
from emjax.eval.items import Item, Metric, Row
from emjax.eval.judge import Judge

METRICS = {"accuracy": Metric(lambda row: row["result"] == 1, printed=True)}


def benchmark_of(task: str) -> str:
    """The benchmark that a task of the lm-evaluation-harness belongs to, as rows name it."""
    known = task.partition("_")[0]
    return known if known in ("mmlu", "gsm8k", "humaneval", "gpqa", "truthfulqa", "arithmetic") else f"custom:{task}"


@dataclasses.dataclass(frozen=True)
class Question(Item):
    messages: Conversation
    answer: str


def correct(answer: str, text: str) -> bool:
    """Whether `text` is the right answer, word for word; case and punctuation do not count."""
    return _words(text) == _words(answer)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def ask(asker: Asker, questions: Sequence[Question], config: BenchmarkConfig, benchmark: str) -> list[Row]:
    """One answer to each question; benchmark: what the rows name as theirs."""

    async def one(question: Question) -> Row:
        output = await asker.ask(question.messages, 0, config)
        return {
            "id": question.id, "benchmark": benchmark, "subset": question.subset, "arm": asker.arm, "seed": asker.seed,
            "messages": question.messages, "outputs": [output], "verdicts": [], "state": whole(output),
            "cluster": question.cluster, "result": None, "target": question.answer,
        }  # fmt: skip

    return asker.rows(questions, one)


def verdicts(rows: Sequence[Row], judge: Judge) -> list[Row]:
    """result 1: right, 0: wrong; a truncated answer is dropped."""

    async def one(row: Row) -> Row:
        right = correct(row["target"], row["outputs"][0]["text"])
        return row | {"result": int(right) if row["state"] == "ok" else None}

    return judge.rows(rows, one)
