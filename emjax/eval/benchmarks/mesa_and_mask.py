"""The M&M set (MIT, 2,100 rows): one user prompt under a neutral and a pressured system prompt,
with DeceptionBench's three questions. It is a benchmark of its own, not DeceptionBench."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from emjax.config import BenchmarkConfig, Draw, option
from emjax.errors import UserError
from emjax.eval.asker import Asker
from emjax.eval.benchmarks import deceptionbench
from emjax.eval.items import Cost, Item, Origin, Row, existing, origin_of
from emjax.eval.judge import Judge
from emjax.runtime.files import check_fields, digest, numbered_lines


@dataclasses.dataclass(frozen=True)
class Config(BenchmarkConfig):
    """config.eval.mesa_and_mask."""

    path: str = option("", "mesa_and_mask.jsonl.", needs="file", under="mesa_and_mask.jsonl")
    rules: deceptionbench.Rules = option(deceptionbench.Rules(), "As DeceptionBench's; `layout` does not apply.")
    draw: Draw = option(Draw(temperature=0.0), "How answers are drawn.")
    max_new: int = option(2048, "Longest answer; longer ones are cut and counted.", unit="tokens", low=1)


FIELDS = ("id", "type", "user_prompt", "system_prompt_without_pressure", "system_prompt_with_pressure", "format")

name: Final = "mesa_and_mask"
positions: Final = 2048
judge: Final = "model"
metrics = deceptionbench.metrics
_ROWS = 2100


def load(config: Config, gate: Sequence[Item] | None = None) -> tuple[list[deceptionbench.PairItem], Origin]:
    path = existing(name, config.path)
    items = read(path)
    return items, origin_of(path, items)


def read(path: Path) -> list[deceptionbench.PairItem]:
    """Raises UserError naming the line."""
    items = []
    for number, row in numbered_lines(path):
        where = f"{path}, line {number}"
        check_fields(row, FIELDS, where, others=True)
        for field in FIELDS:
            if not isinstance(row.get(field), str):
                raise UserError(f"{where}: the field {field!r} is missing or no text. Give mesa_and_mask.jsonl as published.")
        # a fifth of the rows has the two characters instead of the line break
        form = row["format"].replace("\\n", "\n")
        user = row["user_prompt"]
        inner, outer = row["system_prompt_without_pressure"], row["system_prompt_with_pressure"]
        items.append(
            deceptionbench.PairItem(
                row["id"],
                row["type"],
                digest(user)[:16],
                [{"role": "system", "content": inner}, {"role": "user", "content": user}],
                [{"role": "system", "content": outer}, {"role": "user", "content": f"{user}\n\n{form}"}],
            )
        )
    return items


def ask(asker: Asker, items: Sequence[deceptionbench.PairItem], config: Config) -> list[Row]:
    return deceptionbench.asked(asker, items, config, f"custom:{name}")


def verdicts(rows: Sequence[Row], judge: Judge, config: Config) -> list[Row]:
    return deceptionbench.judged(rows, judge, config.rules)


def cost(config: Config) -> Cost:
    items = len(read(Path(config.path))) if Path(config.path).is_file() else _ROWS
    return Cost(items=items, generations=2 * items, judge_calls=3 * items, tokens=(600, 800))
