"""The benchmarks that a config names, with their judges: config.eval -> items.jsonl of one model."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emjax.api import ChatClient, limits
from emjax.errors import UserError
from emjax.eval import agreement, deceptionbench, humaneval, mask, openended, suite
from emjax.eval.capability import need_harness
from emjax.eval.judge import EngineChat, ModelJudge
from emjax.runtime.files import digest, plain, write_atomically, write_lines
from emjax.sampling import Engine

NAMES = ("mask", "deceptionbench", "mesa_and_mask", "pressure", "free_form", "admitting_unknown", "humaneval")
# States of items that another run may mend: what failed on the way, not what was said.
PASSING = ("refusal", "length", "empty", "http_error", "timeout", "schema_error", "budget", "pending")

NO_CAPABILITY = (
    "config.eval.capability needs models in the engine, but an arm is an endpoint. Leave its tasks empty, and measure the "
    "endpoint with the harness itself: lm_eval --model local-completions."
)


class Benchmarks:
    """Reads config.eval: benchmarks, their own fields, judge.*, capability.*. Raises UserError for what it cannot take.

    cache: folder of the judges' replies, which may be shared by everything. local: loads a checkpoint into an engine, for a
    judge without a base_url. `names` are the files that `run` writes, and `judges` says who judged each (None: nobody had to).
    Beside config.eval.judge those of judge.panel judge everything too; then there is a majority as well.
    """

    def __init__(self, config: Any, cache: Path, local: Callable[[str], tuple[Engine, Any]]):
        unknown = [name for name in config.benchmarks if name not in NAMES]
        if unknown or not config.benchmarks:
            raise UserError(f"config.eval.benchmarks is {tuple(config.benchmarks)}; choose of {', '.join(NAMES)}.")
        self.mask_rules = mask.Rules(**config.mask.rules)
        self.deception_rules = deceptionbench.Rules(**config.deceptionbench.rules)
        self.config = config
        self._cache, self._local = cache, local
        self._sheet = agreement.read_sheet(Path(config.judge.sheet)) if config.judge.sheet else None
        judge = config.judge
        known = {"model": judge.model, "base_url": judge.base_url, "api_key_env": judge.api_key_env}
        self._panel = [self._judge(**known)]
        self._panel += [self._judge(**known | _panelist(text)) for text in judge.panel]
        names = [panelist.name for panelist in self._panel]
        if len(set(names)) < len(names):
            raise UserError(f"config.eval.judge.panel names a judge twice: {', '.join(names)}.")
        # MASK's numeric propositions may have a judge of their own; one of a panel judges everything itself.
        self._numeric = self._judge(**known | {"model": judge.numeric_model}) if judge.numeric_model else None
        self.items: dict[str, list[Any]] = {}
        self.origin: dict[str, Any] = {}
        for name in dict.fromkeys(config.benchmarks):
            self.items[name], self.origin[name] = self._load(name)
        self.tasks = tuple(config.capability.tasks)
        if self.tasks:
            need_harness(f"config.eval.capability.tasks {self.tasks}")
        metrics = [metric for name in self.items for metric in suite.metrics_of(name)] + ["accuracy"] * bool(self.tasks)
        if config.metric not in metrics:
            raise UserError(
                f"config.eval.metric is {config.metric!r}, which none of {', '.join(self.items)} has; choose of "
                f"{', '.join(dict.fromkeys(metrics))}."
            )
        self.judges: dict[str, str | None] = {}
        for name in self.items:
            if name == "humaneval":
                self.judges[name] = None
                continue
            self.judges |= {_file(name, number): panelist.name for number, panelist in enumerate(self._panel)}
            if len(self._panel) > 1:
                self.judges[_file(name, "majority")] = f"majority of {len(self._panel)}"
        self.judges |= dict.fromkeys(self.tasks)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.judges)

    def _load(self, name: str) -> tuple[list[Any], dict[str, Any]]:
        """A benchmark's items, and where they are from."""
        c = self.config[name]
        if name == "mask":
            sizes = mask.SIZES if _published(c.rows, name) else None
            return mask.load(c.path, revision=c.revision, sizes=sizes, subsets=tuple(c.subsets), runs=c.runs)
        path = _existing(name, c.path)
        if name == "deceptionbench":
            return deceptionbench.load(path, rules=self.deception_rules, published=_published(c.rows, name))
        items: list[Any]
        if name == "mesa_and_mask":
            items = deceptionbench.load_mesa_and_mask(path)
        elif name == "pressure":
            items = mask.load_own(path, runs=c.runs)
        elif name == "humaneval":
            if not 1 <= max(c.ks) <= c.samples:
                raise UserError(f"config.eval.humaneval.ks is {tuple(c.ks)}; no k may pass its samples, {c.samples}.")
            items = humaneval.load(path)
        else:
            items = openended.load(path, c.samples)
        if not items:
            raise UserError(f"config.eval.{name}.path is {c.path!r}, a file without a row.")
        subsets = Counter(getattr(item, "subset", "all") for item in items)
        return items, {"source": str(path), "rows": dict(subsets), "sha256": digest(repr(items))}

    def _judge(self, model: str, base_url: str, api_key_env: str) -> ModelJudge:
        c = self.config.judge
        how: dict[str, Any] = {"structured": c.structured, "match": c.match, "sampling": dict(c.sampling)}
        if not base_url:
            if c.structured:
                raise UserError(
                    "config.eval.judge.base_url is empty, so the judge runs in the engine: set judge.structured to False."
                )
            return ModelJudge(model, EngineChat(*self._local(model)), **how)
        client = ChatClient(
            base_url, model, api_key_env=api_key_env, cache_dir=self._cache,
            collect=Path(c.collect) if c.collect else None, **limits(c, "config.eval.judge"),
        )  # fmt: skip
        for answers in c.replay:
            print(f"replayed {answers}: {dict(client.replay(Path(answers)))}", flush=True)
        return ModelJudge(model, client, **how)

    def identity(self) -> dict[str, Any]:
        """All that decides a verdict beside the model under test; how fast and for how much the judge is asked does not."""
        c = self.config.judge
        judge = {name: c[name] for name in ("base_url", "model", "numeric_model", "structured", "match")}
        judge |= {"panel": list(c.panel), "sampling": dict(c.sampling)}
        rules = {"mask": vars(self.mask_rules), "deceptionbench": vars(self.deception_rules)}
        items = {name: digest(repr(items)) for name, items in self.items.items()}
        how = {name: json.loads(self.config[name].to_json()) for name in self.items if name not in ("mask", "pressure")}
        for fields in how.values():  # the rows themselves are in `items`
            fields.pop("path")
            fields.pop("workers", None)
        capability = json.loads(self.config.capability.to_json()) if self.tasks else None
        return {"judge": judge, "rules": rules, "items": items, "benchmarks": how, "capability": capability}

    def run(self, asker: suite.Asker, directory: Path, arm: str) -> None:
        """Writes <name>.jsonl into `directory` for each of `names`. Raises UserError where more than config.eval.judge.failures
        items are without a verdict: called again, it asks for these alone."""
        for name, items in self.items.items():
            found = []
            for number, panelist in enumerate(self._panel if name != "humaneval" else self._panel[:1]):
                path = directory / f"{_file(name, number)}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                found.append(self._one(name, items, asker, panelist, number, arm, path))
                self._complete(name, arm, panelist.name, found[-1])
            if len(found) > 1:
                path = directory / f"{_file(name, 'majority')}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_lines(path, suite.majority(found))
        for task in self.tasks:
            self._capability(asker, task, directory, arm)

    def _one(
        self, name: str, items: list[Any], asker: suite.Asker, panelist: ModelJudge, number: int, arm: str, path: Path
    ) -> list[suite.Row]:
        c = self.config[name]
        where: dict[str, Any] = {"arm": arm, "path": path}
        benchmark = name if name in ("mask", "deceptionbench") else f"custom:{name}"
        if name in ("mask", "pressure"):
            judge = mask.MaskJudge(panelist, self._numeric if number == 0 else None)
            return suite.run_mask(asker, items, judge, benchmark=benchmark, rules=self.mask_rules, **where)
        seed = asker.settings.seed
        if name in ("deceptionbench", "mesa_and_mask"):
            how = suite.Settings(seed, c.temperature, c.max_new)
            rules = self.deception_rules
            return suite.run_deceptionbench(asker, items, panelist, benchmark=benchmark, rules=rules, how=how, **where)
        if name == "humaneval":
            how = suite.Settings(seed, c.temperature, c.max_new)
            return suite.run_humaneval(asker, items, samples=c.samples, ks=tuple(c.ks), how=how, workers=c.workers, **where)
        return suite.run_open(asker, items, panelist, benchmark=benchmark, scale=name, **where)

    def _complete(self, name: str, arm: str, judge: str, rows: Sequence[suite.Row]) -> None:
        passing = PASSING + tuple(f"target_{state}" for state in PASSING)
        missing = Counter(row["state"] for row in rows if row["state"] in passing)
        if missing.total() > self.config.judge.failures:
            told = ", ".join(f"{state} {count}" for state, count in sorted(missing.items()))
            who = f", judge {judge}" if len(self._panel) > 1 else ""
            raise UserError(
                f"{name}, arm {arm}{who}: {missing.total()} of {len(rows)} items are without a verdict ({told}). What is there "
                "is kept: start the same command again to ask for these alone, or set config.eval.judge.failures to how "
                "many may stay as they are, counted and reported."
            )

    def _capability(self, asker: suite.Asker, task: str, directory: Path, arm: str) -> None:
        from emjax.eval import harness  # needs the extra `capability`

        path = directory / f"{plain('config.eval.capability.tasks', task)}.jsonl"
        if path.exists():
            return
        if not isinstance(asker, suite.EngineAsker):
            raise UserError(NO_CAPABILITY)
        c = {field: value for field, value in self.config.capability.items() if field != "tasks"}
        c |= {"folder": Path(c["folder"]) if c["folder"] else None, "limit": c["limit"] or None}
        c["shots"] = None if c["shots"] < 0 else c["shots"]
        rows, measured = harness.run(asker.engine, asker.tokenizer, [task], arm=arm, seed=asker.settings.seed, **c)
        write_atomically(directory / f"{task}.measured.json", json.dumps(measured, indent=1, default=str))
        write_lines(path, rows)

    def agreement(self, arms: Sequence[Mapping[str, Sequence[suite.Row]]]) -> dict[str, Any]:
        """{benchmark: agreement.report(...)} of the judges, and of the people of config.eval.judge.sheet, over all arms'
        {name: rows}; empty where there is one judge and no sheet."""
        found = {}
        for benchmark in self.items:
            raters: dict[str, dict[str, str]] = {}
            clusters: dict[str, str] = {}
            for number, panelist in enumerate(self._panel):
                rows = [row for arm in arms for row in arm.get(_file(benchmark, number), ())]
                judged = agreement.judged(rows)
                raters[panelist.name] = {key: one["label"] for key, one in judged.items()}
                clusters |= {key: one["row"]["cluster"] for key, one in judged.items()}
            if self._sheet is not None:
                mine = {key: label for key, label in self._sheet.items() if key in clusters}
                raters |= {agreement.HUMAN: mine} if mine else {}
            raters = {name: labels for name, labels in raters.items() if labels}
            if len(raters) > 1:
                found[benchmark] = agreement.report(raters, clusters)
        return found


def headline(rows: Sequence[suite.Row], metric: str) -> dict[str, Any]:
    """{"benchmark", "subset", "metric", "judge"} of results.json's headline: the first benchmark that has the metric, all its
    subsets together, the first judge.
    """
    first = next(row for row in rows if row["metric"] == metric)
    subsets = {row["subset"] for row in rows if row["benchmark"] == first["benchmark"]}
    subset = "all" if "all" in subsets else first["subset"]
    return {"benchmark": first["benchmark"], "subset": subset, "metric": metric, "judge": first["judge"]}


def _file(benchmark: str, judge: int | str) -> str:
    """The first judge's rows are the benchmark's own; the others' stand apart."""
    return benchmark if judge == 0 else f"judges/{judge}/{benchmark}"


def _panelist(text: str) -> dict[str, str]:
    """ "MODEL", "MODEL@BASE_URL" or "MODEL@BASE_URL@API_KEY_ENV": what is left out is as in config.eval.judge."""
    return dict(zip(("model", "base_url", "api_key_env"), str(text).split("@", 2), strict=False))


def _published(rows: str, name: str) -> bool:
    if rows not in ("published", "any"):
        raise UserError(f"config.eval.{name}.rows is {rows!r}; choose published or any.")
    return rows == "published"


def _existing(name: str, path: str) -> Path:
    if not Path(path).is_file():
        raise UserError(f"config.eval.{name}.path is {path!r}, which is no file. Give the path of the benchmark's file.")
    return Path(path)
