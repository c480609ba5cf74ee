"""What no measuring could take: a metric that nothing has, a judge that cannot read. Needs no file,
no model, no network."""

from collections.abc import Mapping

from emjax.config import EvalConfig, JudgeConfig
from emjax.errors import UserError
from emjax.eval.items import Benchmark

_SHOWN = 20  # metrics that an error lists; HumanEval alone has 200


def check_metric(benchmarks: Mapping[str, Benchmark], config: EvalConfig) -> None:
    """Raises UserError if no benchmark has config.eval.metric."""
    known = list(dict.fromkeys(metric for benchmark in benchmarks.values() for metric in benchmark.metrics))
    if config.metric not in known:
        choices = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
        raise UserError(
            f"config.eval.metric is {config.metric!r}, which none of {', '.join(benchmarks)} has; choose of {choices}."
        )


def readers(name: str, benchmark: Benchmark, config: EvalConfig) -> tuple[list[str], tuple[str, ...]]:
    """Who reads a benchmark's rows, as names of config.eval.judges.

    Returns ([its judge, then its panel], further judges that its verdicts ask for); ([], ()) where
    nothing is judged. Raises UserError for a judge that does not exist, or is of the wrong kind, or
    lacks a field, and for one that is named twice.
    """
    section = config.sections[name] if name in config.sections else benchmark.Config()
    field, chosen = f"config.eval.{name}.judge", section.judge
    if benchmark.judge == "none":
        return [], ()
    if benchmark.judge == "rule":
        if _known(field, chosen, config).kind != "rule":
            raise UserError(
                f"{field} is {chosen!r}, a model, but {name} reads answers by its own rule: name a judge of config.eval."
                "judges whose kind is 'rule'."
            )
        return [chosen], ()
    others = tuple(getattr(benchmark, "others", lambda config: ())(section))
    named = [chosen, *config.panel]
    for where, one in (
        (field, chosen),
        *((f"config.eval.{name}", other) for other in others),
        *(("config.eval.panel", further) for further in config.panel),
    ):
        _check_model(where, one, config)
    models = [config.judges[one].model for one in named]
    if len(set(models)) < len(models):
        raise UserError(f"config.eval.panel and {field} name a model twice: {', '.join(models)}.")
    return named, others


def _known(field: str, name: str, config: EvalConfig) -> JudgeConfig:
    if name not in config.judges:
        raise UserError(f"{field} names the judge {name!r}; config.eval.judges has {', '.join(config.judges)}.")
    return config.judges[name]


def _check_model(field: str, name: str, config: EvalConfig) -> None:
    """Raises UserError unless the judge is a model that can be asked."""
    judge, where = _known(field, name, config), f"config.eval.judges.{name}"
    if judge.kind == "rule":
        raise UserError(
            f"{field} names {name!r}, a rule, but answers are read by a model: name a judge of config.eval.judges whose "
            "kind is 'endpoint' or 'engine'."
        )
    if not judge.model:
        raise UserError(f"{where}.model is empty; name the model that judges.")
    if judge.kind == "engine":
        for field in ("temperature", "max_tokens"):
            if getattr(judge, field) is None:
                raise UserError(f"{where}.{field} is None; a judge in the engine needs one.")
        if other := set(judge.sampling) - {"temperature", "top_p", "max_tokens"}:
            raise UserError(f"{where}.{min(other)} is set, but the engine does not have it: leave it out.")
    if judge.replay and not judge.collect:
        raise UserError(f"{where}.replay is set, but {where}.collect, the file of the batch's calls, is empty: give it too.")
