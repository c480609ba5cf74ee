"""What a benchmark is made of: items, rows, metrics, and the protocol that holds them together."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from emjax.config import BenchmarkConfig
from emjax.errors import UserError

if TYPE_CHECKING:
    from emjax.eval.asker import Asker
    from emjax.eval.judge import Judge

Row = dict[str, Any]  # of items.jsonl


@dataclasses.dataclass(frozen=True)
class Item:
    """One item of a benchmark; a benchmark adds what it needs. Items that share a context share the
    cluster."""

    id: str
    subset: str
    cluster: str


def always(row: Row) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Metric:
    """A share of rows: whether a scored row (state "ok") is a hit, or how much of one, in [0, 1].

    arises: the rows that the metric can be asked of, scored or not. printed: shown in the table
    that an evaluation ends with.
    """

    hit: Callable[[Row], float]
    arises: Callable[[Row], bool] = always
    printed: bool = False


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a benchmark's items come from: a file, folder or hub id, rows of each subset, and
    hashes."""

    source: str
    rows: Mapping[str, int]
    sha256: str | Mapping[str, str] = ""
    revision: str | None = None
    world: int | None = None  # seed of the world that made them


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one model costs: declared sizes, known without any file, or those of the file that is
    named and here. counted: False where they are those of one row of a user's file."""

    items: int
    generations: int
    judge_calls: int
    # prompt and answer of a judge call; a declared guess
    call_tokens: tuple[int, int] = (1000, 200)
    # prompt and answer of a generation; a declared guess
    tokens: tuple[int, int] = (400, 300)
    counted: bool = True


C = TypeVar("C", bound=BenchmarkConfig, contravariant=True)


class Benchmark(Protocol[C]):
    """A module, or an object, with these names; docs/benchmarks.md has a complete one.

    positions: tokens of the longest prompt; with config.max_new that is the engine's cache that it
    needs. judge: "none" (nothing to judge, such as programs that are executed), "rule" (its own
    exact rule) or "model".

    A benchmark may also have check(config, *, in_engine), which raises UserError for what no run
    could measure (in_engine: no model is behind an endpoint), and
    summary(rows, config) -> Row: fields that each result row of a subset
    gets, from the subset's rows. others(config) -> Sequence[str]: further names of
    config.eval.judges, which `verdicts` gets from `judge.other(name)`. measures(config) ->
    Mapping[str, Sequence[str]]: {benchmark as its rows name it: subsets}, where that is not
    {name: ("all",)}. parts(config) -> (chosen, {part: Cost}): what each part that can be chosen
    takes, for the plan.
    """

    @property
    def name(self) -> str: ...
    @property
    def Config(self) -> type[BenchmarkConfig]: ...  # noqa: N802
    @property
    def metrics(self) -> Mapping[str, Metric]: ...
    @property
    def positions(self) -> int: ...
    @property
    def judge(self) -> Literal["none", "rule", "model"]: ...

    def load(self, config: C, gate: Sequence[Item] | None = None) -> tuple[Sequence[Item], Origin]:
        """The items. gate: those that the untouched model can be asked, where a world has a gate.
        Raises UserError."""
        ...

    def ask(self, asker: "Asker", items: Sequence[Any], config: C) -> list[Row]:
        """Each item's answers, not yet judged: rows with "id", "benchmark", "subset", "cluster",
        "arm", "seed", "messages", "outputs", empty "verdicts", and whatever judging needs, for
        `verdicts` gets nothing else."""
        ...

    def verdicts(self, rows: Sequence[Row], judge: "Judge", config: C) -> list[Row]:
        """The rows with "verdicts", "state" and "result", from `judge.rows`. A row whose state is
        not "ok" is not scored."""
        ...

    def cost(self, config: C) -> Cost:
        """What measuring one model costs; needs no file, but counts the one that is named."""
        ...


def existing(name: str, path: str) -> Path:
    """The file of the benchmark `name`. Raises UserError if there is none."""
    if not Path(path).is_file():
        raise UserError(f"config.eval.{name}.path is {path!r}, which is no file. Give the path of the benchmark's file.")
    return Path(path)


def origin_of(path: Path, items: Sequence[Item]) -> Origin:
    """The origin of all items of one file."""
    rows = Counter(item.subset for item in items)
    return Origin(str(path), dict(rows), hashlib.sha256(path.read_bytes()).hexdigest())
