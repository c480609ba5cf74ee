"""Free answers that a judge rates one by one: what benchmarks of such questions share."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from emjax.config import BenchmarkConfig
from emjax.data.chat import Conversation
from emjax.errors import UserError
from emjax.eval.asker import Asker, whole
from emjax.eval.items import Item, Row
from emjax.eval.judge import Form, Judge, Verdict
from emjax.runtime.files import check_fields, numbered_lines


@dataclasses.dataclass(frozen=True)
class AnswerItem(Item):
    """One answer that is asked for. A question that is asked several times makes several items of
    one cluster."""

    messages: Conversation
    run: int


def load(path: Path, samples: int) -> list[AnswerItem]:
    """Items of a JSON-lines file with {"id", "question", "system" (may be missing), "subset" (may
    be missing)}.

    Raises UserError naming the line.
    """
    items = []
    seen: set[str] = set()
    for number, row in numbered_lines(path):
        check_fields(row, ("id", "question", "system", "subset"), f"{path}, line {number}")
        for name in ("id", "question"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise UserError(f"{path}, line {number}: the field {name!r} must be a text.")
        if row["id"] in seen:
            raise UserError(f"{path}, line {number}: the id {row['id']!r} is there twice.")
        seen.add(row["id"])
        messages = [{"role": "user", "content": row["question"]}]
        if row.get("system"):
            if not isinstance(row["system"], str):
                raise UserError(f"{path}, line {number}: the field 'system' must be a text.")
            messages = [{"role": "system", "content": row["system"]}, *messages]
        subset = str(row.get("subset", "all"))
        items += [AnswerItem(f"{row['id']}/{run:04d}", subset, row["id"], messages, run) for run in range(samples)]
    return items


def ask(asker: Asker, items: Sequence[AnswerItem], config: BenchmarkConfig, name: str) -> list[Row]:
    """Rows of the benchmark custom:`name`."""

    async def one(item: AnswerItem) -> Row:
        output = await asker.ask(item.messages, item.run, config)
        return {
            "id": item.id, "benchmark": f"custom:{name}", "scale": name, "subset": item.subset, "arm": asker.arm,
            "seed": asker.seed, "messages": item.messages, "outputs": [output], "cluster": item.cluster, "verdicts": [],
        }  # fmt: skip

    return asker.rows(items, one)


def verdicts(
    rows: Sequence[Row],
    judge: Judge,
    questions: Mapping[str, tuple[Form, str]],
    scored: Callable[[str, Mapping[str, Verdict]], Row],
) -> list[Row]:
    """Each whole answer judged on its own.

    questions: {kind: (form, task)}, what the judge is asked. scored(state, {kind: verdict}):
    "state", "outcome" and "result".
    """

    async def one(row: Row) -> Row:
        (output,) = row["outputs"]
        state = whole(output)
        said = {}
        if state == "ok":
            question = "\n\n".join(f"{m['role']}: {m['content']}" for m in row["messages"])
            parts = {"question": question, "answer": output["text"]}
            said = {kind: await judge.fill(form, task, parts) for kind, (form, task) in questions.items()}
        found = [verdict.row(kind, 0) for kind, verdict in said.items()]
        return row | {"verdicts": found} | scored(state, said)

    return judge.rows(rows, one)


def fault(state: str, verdicts: Mapping[str, Verdict]) -> str:
    """The first state that is not "ok", of the answer and then of the verdicts on it; "ok" if there
    is none."""
    return next((one for one in (state, *(v.state for v in verdicts.values())) if one != "ok"), "ok")
