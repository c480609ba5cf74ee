"""What measuring costs: generations, judge calls, money, and the difference that the items can
show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from emjax.config import EvalConfig, EvaluationConfig, FinetuneConfig, InteractionConfig, JudgeConfig
from emjax.design.arms import arms
from emjax.eval.items import Benchmark, Cost
from emjax.eval.stats import detectable


class Totals(TypedDict):
    """The "cost" of results.json, over all models that are measured, without benchmarks whose size
    only a user's file says."""

    generations: int
    judge_calls: int
    usd: float | None  # None: an endpoint that is called has no price


def models(config: InteractionConfig | FinetuneConfig | EvaluationConfig) -> int:
    """How many models are measured: the untouched one, and each trained one after every round and
    at config.eval.at_steps.

    Of an evaluation: the arms with a model, and the steps in their folders of checkpoints, as far
    as these are here.
    """
    if isinstance(config, EvaluationConfig):
        folders = [Path(arm.checkpoints) for arm in config.arms.named().values() if arm.checkpoints]
        steps = [step for folder in folders if folder.is_dir() for step in folder.iterdir() if step.name.isdigit()]
        return len(config.arms.named()) + len(steps)
    trained = sum(arm.ratio is not None for arm in arms(config))
    rounds = config.rounds.count if isinstance(config, InteractionConfig) else 1
    return 1 + rounds * trained * (1 + len(config.eval.at_steps))


def evaluated(config: InteractionConfig | FinetuneConfig) -> str:
    """The plan's line on the models that are measured."""
    steps = len(config.eval.at_steps)
    on_the_way = (models(config) - 1) * steps // (1 + steps)
    extra = f" ({on_the_way} of them while they train, config.eval.at_steps)" if steps else ""
    return f"evaluate   {models(config)} models{extra} under pressure, and what they believe and can do without it"


def sampled(settings: EvalConfig, benchmarks: Mapping[str, Benchmark], models: int) -> tuple[int, int]:
    """(tokens that the engine reads, tokens that it draws) to measure `models` models."""
    counted = [asked.cost for asked in _asked(settings, benchmarks) if asked.cost.counted]
    read = sum(cost.generations * cost.tokens[0] for cost in counted)
    return models * read, models * sum(cost.generations * cost.tokens[1] for cost in counted)


def describe(config: EvaluationConfig) -> list[str]:
    """The plan's first line; `measured` has the others."""
    return [f"arms       {', '.join(config.arms.named())}"]


class _Read(NamedTuple):
    """What one judge reads of all models and benchmarks."""

    calls: int
    prompt: int  # tokens
    answer: int

    def usd(self, judge: JudgeConfig) -> float:
        return (self.prompt * judge.budget.price_in + self.answer * judge.budget.price_out) / 1e6


class _Asked(NamedTuple):
    """What one benchmark asks of one model, and who reads the answers. key: its name among the
    benchmarks in use."""

    key: str
    name: str
    cost: Cost
    judges: tuple[str, ...]

    @property
    def calls(self) -> int:
        return self.cost.judge_calls * len(self.judges)


def measured(settings: EvalConfig, benchmarks: Mapping[str, Benchmark], models: int) -> list[str]:
    """The plan's lines on what measuring `models` models takes. benchmarks: those that they are
    measured on, by name."""
    lines = []
    for asked in (every := _asked(settings, benchmarks)):
        cost, numbers = asked.cost, f"{asked.cost.generations} generations, {asked.calls} judge calls"
        if not cost.items:
            what = "its items are counted when they are read (not in the sum)"
        elif not cost.counted:
            what = f"a row of your file: {numbers} an arm (not in the sum)"
        else:
            what = (
                f"{cost.items} items; an arm: {numbers}; differences of about {detectable(cost.items):.1f} points or more can "
                "be seen (unpaired, near 50 %, power 80 %)"
            )
        lines += [f"{asked.name:10} {what}", *_parts(asked, settings, benchmarks[asked.key])]
    return [*lines, *(_line(name, settings.judges[name], read) for name, read in _reads(every, models).items())]


def _parts(asked: _Asked, settings: EvalConfig, benchmark: Benchmark) -> list[str]:
    """What each part of a benchmark would take of one model, chosen or not, where it has parts to
    choose from."""
    if not (parts := getattr(benchmark, "parts", None)):
        return []
    chosen, costs = parts(settings.sections.get(benchmark.name) or benchmark.Config())
    lines = []
    for name, cost in costs.items():
        prompt, answer = cost.call_tokens
        reads = _Read(cost.judge_calls, cost.judge_calls * prompt, cost.judge_calls * answer)
        usd = sum(reads.usd(settings.judges[judge]) for judge in asked.judges)
        lines.append(
            f"           {'+' if name in chosen else '-'} {name}: {cost.items} items; an arm: {cost.generations} generations, "
            f"{cost.judge_calls * len(asked.judges)} judge calls, about {usd:.2f} USD"
        )
    return [*lines, f"           + is measured, - is not: config.eval.{benchmark.name}.subsets"]


def totals(config: InteractionConfig | FinetuneConfig | EvaluationConfig, benchmarks: Mapping[str, Benchmark]) -> Totals:
    """The sums of `measured`, for results.json; also for a world's benchmarks, whose judge is exact
    and costs nothing."""
    judges, number = config.eval.judges, models(config)
    every = _asked(config.eval, benchmarks)
    reads = _reads(every, number)
    unpriced = any(_unpriced(judges[name], read) for name, read in reads.items())
    usd = sum(read.usd(judges[name]) for name, read in reads.items())
    return {
        "generations": number * sum(asked.cost.generations for asked in every if asked.cost.counted),
        "judge_calls": sum(read.calls for read in reads.values()),
        "usd": None if unpriced else round(usd, 2),
    }


class Endpoints(NamedTuple):
    """What judges at endpoints are asked."""

    calls: int
    usd: float
    unpriced: tuple[str, ...]


def endpoints(config: InteractionConfig | FinetuneConfig | EvaluationConfig, benchmarks: Mapping[str, Benchmark]) -> Endpoints:
    """Calls, money and judges without a price, over all models that are measured."""
    judges = config.eval.judges
    reads = _reads(_asked(config.eval, benchmarks), models(config))
    there = {name: read for name, read in reads.items() if judges[name].kind == "endpoint"}
    usd = sum(read.usd(judges[name]) for name, read in there.items())
    unpriced = tuple(judges[name].model for name, read in there.items() if _unpriced(judges[name], read))
    return Endpoints(sum(read.calls for read in there.values()), usd, unpriced)


def _asked(settings: EvalConfig, benchmarks: Mapping[str, Benchmark]) -> list[_Asked]:
    """What each benchmark asks. A model's answers are read by the benchmark's own judge and by the
    panel."""
    found = []
    for key, benchmark in benchmarks.items():
        section = settings.sections.get(benchmark.name) or benchmark.Config()
        judges = tuple(dict.fromkeys((section.judge, *settings.panel))) if benchmark.judge == "model" else ()
        found.append(_Asked(key, benchmark.name, benchmark.cost(section), judges))
    return found


def _reads(every: Sequence[_Asked], models: int) -> dict[str, _Read]:
    """What each judge that is called reads, by its name."""
    found: dict[str, _Read] = {}
    for asked in every:
        calls = asked.cost.judge_calls * models if asked.cost.counted else 0
        prompt, answer = asked.cost.call_tokens
        for name in asked.judges if calls else ():
            before = found.get(name, _Read(0, 0, 0))
            found[name] = _Read(before.calls + calls, before.prompt + calls * prompt, before.answer + calls * answer)
    return found


def _unpriced(judge: JudgeConfig, read: _Read) -> bool:
    return judge.kind == "endpoint" and not read.usd(judge)


def _line(name: str, judge: JudgeConfig, read: _Read) -> str:
    budget, usd, field = judge.budget, read.usd(judge), f"config.eval.judges.{name}.budget"
    who = {"rule": "the benchmark's rule", "engine": f"{judge.model} (the engine)"}.get(judge.kind, judge.model)
    if usd:
        money = f"about {usd:.2f} USD at {budget.price_in:g} and {budget.price_out:g} USD a million ({field})"
    else:
        money = f"no price given ({field})" if judge.kind == "endpoint" else "free"
    return f"judge      {name}: {read.calls} calls to {who}, about {read.prompt} + {read.answer} tokens: {money}"
