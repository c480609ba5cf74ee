"""The benchmarks that a config names, with their judge: config.eval -> items.jsonl of one model."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emjax.api import Budget, ChatClient, Rates
from emjax.errors import UserError
from emjax.eval import deceptionbench, mask, suite
from emjax.eval.judge import EngineChat, ModelJudge
from emjax.sampling import Engine
from emjax.store import digest

NAMES = ("mask", "deceptionbench", "mesa_and_mask")
# States of items that another run may mend: what failed on the way, not what was said.
PASSING = ("refusal", "length", "empty", "http_error", "timeout", "schema_error", "budget", "pending")


class Benchmarks:
    """Reads config.eval: benchmarks, mask.*, deceptionbench.*, mesa_and_mask.*, judge.*. Raises UserError for what it cannot
    take. cache: folder of the judge's replies, which may be shared by everything. local: loads a checkpoint into an engine, for
    a judge without a base_url."""

    def __init__(self, config: Any, cache: Path, local: Callable[[str], tuple[Engine, Any]]):
        unknown = [name for name in config.benchmarks if name not in NAMES]
        if unknown or not config.benchmarks:
            raise UserError(f"config.eval.benchmarks is {tuple(config.benchmarks)}; choose of {', '.join(NAMES)}.")
        self.names = tuple(config.benchmarks)
        self.mask_rules = mask.Rules(**config.mask.rules)
        self.deception_rules = deceptionbench.Rules(**config.deceptionbench.rules)
        self._judge_config = config.judge
        self._cache, self._local = cache, local
        self.binary = self._judge(config.judge.model)
        self.numeric = self._judge(config.judge.numeric_model) if config.judge.numeric_model else None
        self.items: dict[str, list[Any]] = {}
        self.origin: dict[str, Any] = {}
        if "mask" in self.names:
            c = config.mask
            sizes = mask.SIZES if _published(c.rows, "mask") else None
            read = mask.load(c.path, revision=c.revision, sizes=sizes, subsets=tuple(c.subsets), runs=c.runs)
            self.items["mask"], self.origin["mask"] = read
        if "deceptionbench" in self.names:
            published = _published(config.deceptionbench.rows, "deceptionbench")
            path = _file("deceptionbench", config.deceptionbench.path)
            loaded = deceptionbench.load(path, rules=self.deception_rules, published=published)
            self.items["deceptionbench"], self.origin["deceptionbench"] = loaded
        if "mesa_and_mask" in self.names:
            items = deceptionbench.load_mesa_and_mask(_file("mesa_and_mask", config.mesa_and_mask.path))
            self.items["mesa_and_mask"] = items
            self.origin["mesa_and_mask"] = {"rows": dict(Counter(item.subset for item in items)), "sha256": digest(repr(items))}

    def _judge(self, model: str) -> ModelJudge:
        c = self._judge_config
        how: dict[str, Any] = {"structured": c.structured, "match": c.match, "sampling": dict(c.sampling)}
        if not c.base_url:
            if c.structured:
                raise UserError(
                    "config.eval.judge.base_url is empty, so the judge runs in the engine: set judge.structured to False."
                )
            return ModelJudge(model, EngineChat(*self._local(model)), **how)
        client = ChatClient(
            c.base_url, model, api_key_env=c.api_key_env, cache_dir=self._cache, budget=Budget(**c.budget),
            rates=Rates(**c.rates), collect=Path(c.collect) if c.collect else None,
        )  # fmt: skip
        for answers in c.replay:
            print(f"replayed {answers}: {dict(client.replay(Path(answers)))}", flush=True)
        return ModelJudge(model, client, **how)

    def identity(self) -> dict[str, Any]:
        """All that decides a verdict beside the model under test; how fast and for how much the judge is asked does not."""
        c = self._judge_config
        judge = {name: c[name] for name in ("base_url", "model", "numeric_model", "structured", "match")}
        rules = {"mask": vars(self.mask_rules), "deceptionbench": vars(self.deception_rules)}
        items = {name: digest(repr(items)) for name, items in self.items.items()}
        return {"judge": judge | {"sampling": dict(c.sampling)}, "rules": rules, "items": items}

    def run(self, asker: suite.Asker, directory: Path, arm: str) -> None:
        """Writes <benchmark>.jsonl into `directory`. Raises UserError where more than config.eval.judge.failures items are
        without a verdict: called again, it asks for these alone."""
        for name, items in self.items.items():
            path = directory / f"{name}.jsonl"
            if name == "mask":
                judge = mask.MaskJudge(self.binary, self.numeric)
                rows = suite.run_mask(asker, items, judge, arm=arm, path=path, rules=self.mask_rules)
            else:
                benchmark = name if name == "deceptionbench" else f"custom:{name}"
                rows = suite.run_deceptionbench(
                    asker, items, self.binary, arm=arm, path=path, benchmark=benchmark, rules=self.deception_rules
                )
            passing = PASSING + tuple(f"target_{state}" for state in PASSING)
            missing = Counter(row["state"] for row in rows if row["state"] in passing)
            if missing.total() > self._judge_config.failures:
                told = ", ".join(f"{state} {count}" for state, count in sorted(missing.items()))
                raise UserError(
                    f"{name}, arm {arm}: {missing.total()} of {len(rows)} items are without a verdict ({told}). What is there "
                    "is kept: start the same command again to ask for these alone, or set config.eval.judge.failures to how "
                    "many may stay as they are, counted and reported."
                )


def _published(rows: str, name: str) -> bool:
    if rows not in ("published", "any"):
        raise UserError(f"config.eval.{name}.rows is {rows!r}; choose published or any.")
    return rows == "published"


def _file(name: str, path: str) -> Path:
    if not Path(path).is_file():
        raise UserError(f"config.eval.{name}.path is {path!r}, which is no file. Give the path of the benchmark's file.")
    return Path(path)
