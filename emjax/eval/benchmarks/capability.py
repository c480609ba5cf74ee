"""Capability by the lm-evaluation-harness (Gao et al.): MMLU, GSM8K and the like, on a model in the
engine.

Needs the extra `capability`. A task's rows name its own benchmark (`mmlu`, `gsm8k`,
`custom:<task>`), and what decided its score beside the model is written to <task>.measured.json.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from emjax.config import BenchmarkConfig, Draw, as_dict, option
from emjax.errors import UserError
from emjax.eval import questions
from emjax.eval.asker import Asker, EngineAsker
from emjax.eval.items import Cost, Item, Metric, Origin, Row
from emjax.eval.judge import Judge
from emjax.runtime.files import plain

NO_ENGINE = (
    "config.eval.benchmarks holds 'capability', which needs models in the engine, but an arm is an endpoint. Leave it out, and "
    "measure the endpoint with the harness itself: lm_eval --model local-completions."
)


@dataclasses.dataclass(frozen=True)
class Config(BenchmarkConfig):
    """config.eval.capability. A task of the harness brings its own prompts, answer lengths and
    rules, so `draw`, `max_new` and `judge` do not apply."""

    tasks: tuple[str, ...] = option((), "Tasks or groups: mmlu, gsm8k, gpqa_diamond_zeroshot, truthfulqa_mc1, ...")
    folder: str = option("", "YAML files that define the tasks instead of the harness's own; then nothing is fetched.",
                         needs="folder")  # fmt: skip
    shots: int = option(-1, "Examples in the prompt; -1 takes the task's own number.", low=-1)
    limit: int = option(0, "Documents of each task; 0 takes all.", low=0)
    chat: bool = option(False, "Ask through the model's chat template.")
    metric: str = option("", "What a row's result is; empty takes the task's first.")
    answer_filter: str = option("", "How an answer is read; empty takes the task's first. gsm8k has strict-match and "
                                "flexible-extract.")  # fmt: skip

    def check(self) -> None:
        usual = BenchmarkConfig()
        if self.draw != Draw() or self.max_new != usual.max_new:
            field = "draw" if self.draw != Draw() else "max_new"
            raise UserError(f"{field} is set, but tasks of the lm-evaluation-harness bring their own. Leave it at its default.")
        if len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"tasks names one twice: {', '.join(self.tasks)}.")


name: Final = "capability"
positions: Final = 1024  # a longer context is cut on its left and counted
judge: Final = "none"
# of a harness's metric, which may be a share of a document (TruthfulQA's MC2)
metrics = {"accuracy": Metric(lambda row: next(iter(row["values"].values())), printed=True)}
_ROWS = 2  # their format: version 1 cut shares down to 0


def check(config: Config, *, in_engine: bool) -> None:
    """Raises UserError for what no run could measure. in_engine: whether all models are in the
    engine."""
    if not in_engine:
        raise UserError(NO_ENGINE)
    if not config.tasks:
        raise UserError("config.eval.capability.tasks is empty; name at least one task of the lm-evaluation-harness.")


def load(config: Config, gate: Sequence[Item] | None = None) -> tuple[list[Item], Origin]:
    """The tasks as items; the harness loads their documents when it runs."""
    check(config, in_engine=True)
    need_harness(f"config.eval.capability.tasks {config.tasks}")
    tasks = [plain("config.eval.capability.tasks", task) for task in config.tasks]
    source = config.folder or f"lm-evaluation-harness {importlib.metadata.version('lm_eval')}"
    return [Item(task, "all", task) for task in tasks], Origin(source, rows={})


def ask(asker: Asker, items: Sequence[Item], config: Config) -> list[Row]:
    """Rows that are judged already. Where several tasks belong to one benchmark, each of them is a
    subset."""
    if not isinstance(asker, EngineAsker):
        raise UserError(NO_ENGINE)
    many = Counter(questions.benchmark_of(item.id) for item in items)
    how = {field: value for field, value in as_dict(config).items() if field not in ("tasks", "draw", "max_new", "judge")}
    rows: list[Row] = []
    for item in items:
        what = {"task": item.id, "seed": asker.seed, "lm_eval": importlib.metadata.version("lm_eval"), "rows": _ROWS, **how}
        made = asker.once(what, functools.partial(_measured, asker, item.id, config))
        asker.notes[f"{item.id}.measured"] = made["measured"]
        for row in made["rows"]:
            shared = many[questions.benchmark_of(item.id)] > 1 and row["subset"] == "all"
            rows.append(row | {"arm": asker.arm} | ({"subset": item.id} if shared else {}))
    return rows


def _measured(asker: EngineAsker, task: str, config: Config) -> Row:
    from emjax.eval import harness

    rows, measured = harness.run(
        asker.engine,
        asker.tokenizer,
        [task],
        arm=asker.arm,
        seed=asker.seed,
        folder=Path(config.folder) if config.folder else None,
        shots=None if config.shots < 0 else config.shots,
        limit=config.limit or None,
        chat=config.chat,
        metric=config.metric,
        answer_filter=config.answer_filter,
    )
    return {"rows": rows, "measured": measured}


def verdicts(rows: Sequence[Row], judge: Judge, config: Config) -> list[Row]:
    return list(rows)


def measures(config: Config) -> dict[str, tuple[str, ...]]:
    return {questions.benchmark_of(task): ("all",) for task in config.tasks}


# Documents of the tasks that the configs name, and the tokens of a document's prompt and answer.
_KNOWN = {
    "mmlu_answer_line": (14_042, (200, 250)),
    "gsm8k_last_number": (1_319, (900, 150)),
    "gpqa_diamond_zeroshot": (198, (300, 4)),
}


def cost(config: Config) -> Cost:
    """Not counted where a task is named whose size only the harness knows."""
    if not config.tasks or config.folder or not set(config.tasks) <= _KNOWN.keys():
        return Cost(items=0, generations=0, judge_calls=0, counted=False)
    sizes = [(min(n, config.limit or n), tokens) for n, tokens in map(_KNOWN.__getitem__, config.tasks)]
    items = sum(n for n, _ in sizes)
    mean = (sum(n * read for n, (read, _) in sizes) // items, sum(n * drawn for n, (_, drawn) in sizes) // items)
    return Cost(items=items, generations=items, judge_calls=0, tokens=mean)


def need_harness(asked: str) -> None:
    """Raises UserError if the lm-evaluation-harness, the extra `capability`, is not installed.
    asked: what needs it."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            f"{asked} needs the lm-evaluation-harness, which is not installed: .venv/bin/pip install -e '.[capability]' (with "
            "-c requirements/run-py312.txt, or py311, to keep the pins)."
        )
