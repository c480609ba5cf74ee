"""A pressure set of the user's own, in JSON lines, measured by MASK's rules with a judge that reads
letters.

{"id", "subset" (may be missing), "pressure", "belief", "A", "B", "truth": "A" | "B" (may be
  missing), "cluster" (may be
missing)}: pressure is a conversation or the user's text; belief the neutral questions, each a
  conversation or a text, the
first of which is asked three times and the others once; A and B the statements. Without a belief,
  truth is what counts.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from emjax.config import BenchmarkConfig, option
from emjax.data.chat import Conversation
from emjax.data.examples import check_messages
from emjax.errors import UserError
from emjax.eval.asker import Asker
from emjax.eval.benchmarks import mask
from emjax.eval.items import Cost, Item, Origin, Row, existing, origin_of
from emjax.eval.judge import Judge
from emjax.eval.mask import Rules
from emjax.runtime.files import check_fields, numbered_lines


@dataclasses.dataclass(frozen=True)
class Config(BenchmarkConfig):
    """config.eval.pressure."""

    path: str = option("", "The file.", needs="file", under="pressure.jsonl")
    runs: int = option(1, "Pressured answers to each item, for lie@k.", low=1)
    rules: Rules = option(Rules(), "Where ports of MASK differ.")


# The spellings are for judges that are a rule.
FIELDS = ("id", "subset", "pressure", "belief", "A", "B", "truth", "cluster", "A_spellings", "B_spellings")

name: Final = "pressure"
positions: Final = 1024
judge: Final = "model"
metrics = mask.metrics


def load(config: Config, gate: Sequence[Item] | None = None) -> tuple[list[mask.PressureItem], Origin]:
    path = existing(name, config.path)
    items = read(path, config.runs)
    return items, origin_of(path, items)


def read(path: Path, runs: int = 1) -> list[mask.PressureItem]:
    """Raises UserError naming the line, also for a field that is none of FIELDS: without its belief
    an item would be judged by its truth."""
    items = []
    seen: set[str] = set()
    for number, row in numbered_lines(path):
        where = f"{path}, line {number}"
        check_fields(row, FIELDS, where)
        for name in ("id", "A", "B"):
            if not isinstance(row.get(name), str) or not row[name]:
                raise UserError(f"{where}: the field {name!r} must be a text.")
        if row["id"] in seen:
            raise UserError(f"{where}: the id {row['id']!r} is there twice.")
        seen.add(row["id"])
        asked, truth = row.get("belief") or [], row.get("truth")
        if truth not in (None, "A", "B") or not isinstance(asked, list) or (truth is None and not asked):
            raise UserError(f"{where}: give 'belief', a list of neutral questions, or 'truth', 'A' or 'B', or both.")
        belief = tuple(_conversation(one, f"{where}, belief {i}") for i, one in enumerate(asked, 1))
        items.append(
            mask.PressureItem(
                id=row["id"], subset=str(row.get("subset", "all")), pressure=_conversation(row.get("pressure"), where),
                belief=belief, belief_runs=(3, *[1] * len(belief))[: len(belief)], proposition={"A": row["A"], "B": row["B"]},
                ground_truth=truth, cluster=str(row.get("cluster", row["id"])), runs=runs,
            )
        )  # fmt: skip
    return items


def _conversation(given: Any, where: str) -> Conversation:
    if isinstance(given, str) and given:
        return [{"role": "user", "content": given}]
    check_messages(given, where)
    if given[-1]["role"] != "user":
        raise UserError(f"{where}: the conversation must end with the user.")
    return given


def ask(asker: Asker, items: Sequence[mask.PressureItem], config: Config) -> list[Row]:
    return mask.asked(asker, items, config, f"custom:{name}")


def verdicts(rows: Sequence[Row], judge: Judge, config: Config) -> list[Row]:
    return mask.judged(rows, judge, mask.reader(judge), config.rules)


def summary(rows: Iterable[Row], config: Config) -> Row:
    return mask.summed(rows, config.rules)


def cost(config: Config) -> Cost:
    """Of the file; of one row with three belief questions where there is none."""
    if Path(config.path).is_file():
        items = read(Path(config.path), config.runs)
        each = sum(sum(item.belief_runs) + item.runs for item in items)
        return Cost(items=len(items), generations=each, judge_calls=each)
    each = 5 + config.runs
    return Cost(items=1, generations=each, judge_calls=each, counted=False)
