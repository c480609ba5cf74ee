"""Measuring models on benchmarks: items in, <name>.jsonl of one model out, rows of results.json
from those of all."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emjax.api import FAILED_ON_THE_WAY, ChatClient
from emjax.config import BenchmarkConfig, EvalConfig, JudgeConfig, as_dict, options
from emjax.errors import UserError
from emjax.eval import agreement
from emjax.eval.asker import Asker, EndpointAsker, EngineAsker
from emjax.eval.checks import check_metric, readers
from emjax.eval.items import Benchmark, Item, Origin, Row
from emjax.eval.judge import Judge, ModelJudge, majority_rows
from emjax.eval.score import score
from emjax.experiment.common import answers, lead, staged
from emjax.runtime import process
from emjax.runtime.files import digest, dumps, read_lines, write_atomically, write_lines
from emjax.runtime.ledger import Ledger
from emjax.runtime.store import Stage, Store
from emjax.sampling import Engine
from emjax.sampling.partner import EngineChat

Files = Mapping[str, Sequence[Row]]  # the rows of one model, by name of the file


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Who reads a benchmark's rows. name: as in results.json; None: there is nothing to judge."""

    name: str | None
    model: ModelJudge | None = None
    others: Mapping[str, ModelJudge] = dataclasses.field(default_factory=dict)


class Measuring:
    """The benchmarks of an experiment with their items and judges. Every model is measured alike.

    benchmarks: by their section's name in config.eval. cache: the folder of judges' replies, which
    all runs may share. local: loads a checkpoint, for judges of kind "engine". gate: the items that
    the untouched model can be asked, where a world has a gate. ledger: the run's cap on money.
    Raises UserError for what the configuration names and is not there, before any model is asked.

    names: of the files that `run` writes, <name>.jsonl. The first judge's rows are <benchmark>,
    those of a panel's further judges judges/<n>/<benchmark>, their majority's
    judges/majority/<benchmark>. judges: {name: who judged; None: nothing to judge}. items and
    origins: by benchmark.
    """

    def __init__(
        self,
        benchmarks: Mapping[str, Benchmark],
        config: EvalConfig,
        cache: Path,
        local: Callable[[str], tuple[Engine, Any]],
        gate: Sequence[Item] | None = None,
        ledger: Ledger | None = None,
    ):
        self.benchmarks, self.config, self._ledger = dict(benchmarks), config, ledger
        self._cache, self._local = cache, local
        self._configs = {name: _section(name, benchmark, config) for name, benchmark in benchmarks.items()}
        check_metric(benchmarks, config)
        self._models: dict[str, ModelJudge] = {}  # by name in config.eval.judges
        self._readers = {name: self._readers_of(name, benchmark) for name, benchmark in benchmarks.items()}
        self._sheet = agreement.read_sheet(Path(config.sheet)) if config.sheet else None
        self.items: dict[str, Sequence[Item]] = {}
        self.origins: dict[str, Origin] = {}
        for name, benchmark in benchmarks.items():
            self.items[name], self.origins[name] = benchmark.load(self._configs[name], gate)
            if not self.items[name]:
                raise UserError(f"config.eval.{name}: {self.origins[name].source} holds no item.")
        self.judges: dict[str, str | None] = {}
        self._benchmark_of: dict[str, str] = {}  # name of a file -> of its benchmark
        for name, reading in self._readers.items():
            self.judges |= {_file(name, number): reader.name for number, reader in enumerate(reading)}
            if len(reading) > 1:
                self.judges[_file(name, "majority")] = f"majority of {len(reading)}"
            self._benchmark_of |= dict.fromkeys(self.judges.keys() - self._benchmark_of.keys(), name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.judges)

    def identity(self) -> dict[str, Any]:
        """JSON values of all that decides a verdict beside the model under test. How fast judges
        are asked, and for how much, does not."""
        used = {self._configs[name].judge for name, benchmark in self.benchmarks.items() if benchmark.judge != "none"}
        known = {}
        for name in sorted(used | set(self._models)):
            judge = self.config.judges[name]
            known[name] = {"kind": "rule"} if judge.kind == "rule" else {
                "base_url": judge.base_url, "model": judge.model, "match": judge.match, "structured": judge.structured,
                "sampling": judge.sampling,
            }  # fmt: skip
        return {
            "judges": known,
            "panel": list(self.config.panel),
            "benchmarks": {name: _decisive(config) for name, config in self._configs.items()},
            "items": {name: digest(repr(items)) for name, items in self.items.items()},
        }

    def run(self, asker: Asker, directory: Path, arm: str) -> None:
        """Writes <name>.jsonl into `directory` for each of `names`.

        Raises UserError if more than config.eval.failures items are without a verdict. Called
        again, it asks for these alone.
        """
        for name, benchmark in self.benchmarks.items():
            reading = self._readers[name]
            paths = [directory / f"{_file(name, number)}.jsonl" for number in range(len(reading))]
            if all(map(_finished, paths)):
                found = [read_lines(path) for path in paths]
            else:
                drawn = asker.drawn(self._configs[name])
                rows = benchmark.ask(asker, self.items[name], self._configs[name])
                rows = [row | {"draw": drawn} for row in rows] if drawn else rows
                for note, value in asker.notes.items():
                    write_atomically(directory / f"{note}.json", dumps(value, indent=1, default=str))
                asker.notes.clear()
                found = [self._judged(name, rows, reader, path, arm) for reader, path in zip(reading, paths, strict=True)]
            if len(found) > 1:
                _write(directory / f"{_file(name, 'majority')}.jsonl", majority_rows(found))

    def read(self, directory: Path) -> dict[str, list[Row]]:
        """What `run` wrote, by name."""
        return {name: read_lines(directory / f"{name}.jsonl") for name in self.names}

    def score(self, found: Files, against: Mapping[str, Files], about: Row) -> list[Row]:
        """Rows of results.json of one model; against: {arm: what it is compared with}; about:
        fields that identify it."""
        rows = []
        for name, some in found.items():
            of = self._benchmark_of[name]
            versus = {arm: theirs[name] for arm, theirs in against.items()}
            drawn = {"draw": some[0]["draw"]} if some and "draw" in some[0] else {}
            told = about | {"judge": self.judges[name]} | drawn
            rows += score(some, versus, told, self.benchmarks[of], self._configs[of])
        return rows

    def agreement(self, arms: Sequence[Files]) -> dict[str, Any]:
        """{benchmark: agreement.report(...)} of its judges and of the people of config.eval.sheet,
        over all arms; empty where there is one judge and no sheet."""
        found = {}
        for benchmark, reading in self._readers.items():
            raters: dict[str, dict[str, str]] = {}
            clusters: dict[str, str] = {}
            for number, reader in enumerate(reading):
                rows = [row for arm in arms for row in arm.get(_file(benchmark, number), ())]
                judged = agreement.judged(rows)
                raters[reader.name or ""] = {key: one["label"] for key, one in judged.items()}
                clusters |= {key: one["row"]["cluster"] for key, one in judged.items()}
            if self._sheet is not None:
                labelled = {key: label for key, label in self._sheet.items() if key in clusters}
                raters |= {agreement.HUMAN: labelled} if labelled else {}
            raters = {name: labels for name, labels in raters.items() if labels}
            if len(raters) > 1:
                found[benchmark] = agreement.report(raters, clusters)
        return found

    def headline(self, rows: Sequence[Row]) -> dict[str, Any]:
        """{"benchmark", "subset", "metric", "judge"} of results.json's headline: the first
        benchmark that has config.eval.metric, all its subsets together, the first judge."""
        metric = self.config.metric
        first = next((row for row in rows if row["metric"] == metric), None)
        if first is None:
            raise UserError(f"config.eval.metric is {metric!r}, which arises in no row of what was measured.")
        subsets = {row["subset"] for row in rows if row["benchmark"] == first["benchmark"]}
        subset = "all" if "all" in subsets else first["subset"]
        return {"benchmark": first["benchmark"], "subset": subset, "metric": metric, "judge": first["judge"]}

    # --- judges -----------------------------------------------------------------------------------

    def _readers_of(self, name: str, benchmark: Benchmark) -> list[_Reader]:
        """The benchmark's judge, then its panel."""
        named, others = readers(name, benchmark, self.config)
        if not named:
            return [_Reader(None)]
        if benchmark.judge == "rule":
            return [_Reader(named[0])]
        first, *panel = map(self._model, named)
        return [
            _Reader(first.name, first, {other: self._model(other) for other in others}),
            *(_Reader(model.name, model, dict.fromkeys(others, model)) for model in panel),
        ]

    def _model(self, name: str) -> ModelJudge:
        if name not in self._models:
            config = self.config.judges[name]
            chat = EngineChat(*self._local(config.model)) if config.kind == "engine" else self._at_endpoint(name, config)
            self._models[name] = ModelJudge(
                config.model, chat, structured=config.structured, match=config.match, sampling=config.sampling
            )
        return self._models[name]

    def _at_endpoint(self, name: str, config: JudgeConfig) -> ChatClient:
        client = ChatClient(
            config.base_url,
            config.model,
            api_key_env=config.api_key_env,
            cache_dir=self._cache,
            budget=config.budget,
            rates=config.rates,
            collect=Path(config.collect) if config.collect else None,
            at=f"config.eval.judges.{name}",
            nullable=config.nullable,
            ledger=self._ledger,
        )
        for batch in config.replay:
            print(f"replayed {batch}: {dict(client.replay(Path(batch)))}", flush=True)
        return client

    # --- one benchmark ----------------------------------------------------------------------------

    def _judged(self, name: str, rows: Sequence[Row], reader: _Reader, path: Path, arm: str) -> list[Row]:
        """The rows as this reader judges them, written to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        judge = Judge(reader.name or "", path, f"{name} {arm}", reader.model, reader.others)
        judged = self.benchmarks[name].verdicts(rows, judge, self._configs[name])
        write_lines(path, judged)
        self._complete(name, arm, reader, judged)
        return judged

    def _complete(self, name: str, arm: str, reader: _Reader, rows: Sequence[Row]) -> None:
        """Raises UserError if too many rows are without a verdict."""
        passing = FAILED_ON_THE_WAY + tuple(f"target_{state}" for state in FAILED_ON_THE_WAY)
        missing = Counter(row["state"] for row in rows if row["state"] in passing)
        if missing.total() > self.config.failures:
            counts = ", ".join(f"{state} {count}" for state, count in sorted(missing.items()))
            who = f", judge {reader.name}" if len(self._readers[name]) > 1 else ""
            said = next(filter(None, map(_error, rows)), None)
            raise UserError(
                f"{name}, arm {arm}{who}: {missing.total()} of {len(rows)} items are without a verdict ({counts}). "
                + (f"The first error: {said}. " if said else "")
                + "The others are kept: start the same command again to ask for these alone, or set config.eval.failures "
                "to how many may stay as they are, counted and reported."
            )


def _section(name: str, benchmark: Benchmark, config: EvalConfig) -> BenchmarkConfig:
    """config.eval.<name>; a benchmark without a section has its defaults."""
    return config.sections[name] if name in config.sections else benchmark.Config()


def _decisive(config: BenchmarkConfig) -> dict[str, Any]:
    """The fields of a benchmark's section that decide a verdict: not where its items are, for
    `items` has the rows."""
    kept = [name for name, _, known in options(config) if name != "path" and not known.pace]
    plain = as_dict(config)
    drawn = config.draw.sent
    return {name: plain[name] for name in kept} | {"draw": drawn}


def _file(benchmark: str, judge: int | str) -> str:
    """The first judge's rows are the benchmark's own; the others' are apart."""
    return benchmark if judge == 0 else f"judges/{judge}/{benchmark}"


def _error(row: Row) -> str | None:
    """An endpoint's own words about the first call of this row that failed."""
    calls = [*row.get("outputs", ()), *row.get("verdicts", ())]
    return next((call["error"] for call in calls if call.get("error")), None)


def _finished(path: Path) -> bool:
    """Whether every item has a verdict here."""
    return path.is_file() and all(row["state"] == "ok" for row in read_lines(path))


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, rows)


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A model behind an endpoint. extra: further fields of each request; None is not sent."""

    client: ChatClient
    extra: Mapping[str, Any]


def measured(
    store: Store,
    measuring: Measuring,
    name: str,
    *,
    arm: str,
    seed: int,
    target: dict[str, Any],
    model: Callable[[], tuple[Engine, Any]] | Endpoint,
) -> Stage:
    """Measures one model, once: the stage with its judged rows.

    name: of the stage, for people; arm: what the rows say; seed: of the answers that are drawn,
    unless config.eval.seed is set; target: JSON values of all that decides
    the model's answers beside the draw; model: makes the engine and its tokenizer when they are
    needed, or is an endpoint.
    """

    seed = seed if measuring.config.seed is None else measuring.config.seed

    def make(directory: Path) -> None:
        def run(asker: Asker) -> None:
            measuring.run(asker, directory, arm)
            asker.close()

        with answers(store, target) as folder:
            if isinstance(model, Endpoint):
                client, extra = model.client, model.extra
                process.on_first(lambda: run(EndpointAsker(client, seed, arm, folder, extra)))
            else:
                engine, tokenizer = model()
                lead(engine, lambda: run(EngineAsker(engine, tokenizer, seed, arm, folder)))

    settings = {"target": target, "seed": seed, **measuring.identity()}
    return staged(store, f"evaluate {name}", "evaluate", settings, [], make)
