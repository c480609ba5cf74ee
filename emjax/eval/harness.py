"""Capability by the lm-evaluation-harness (Gao et al.), on a model in the JAX engine, in this
process.

Needs the extra `capability`. Tasks are the harness's own, or YAML files in a folder of the user's,
which may point to local data; then nothing is fetched. What decides a score beside the model
(template, stop strings, token limits, shots) is recorded with it.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM

from emjax.data.chat import SETTINGS, plain, text
from emjax.errors import UserError
from emjax.eval import questions
from emjax.runtime.files import digest, dumps
from emjax.runtime.numbers import finite
from emjax.sampling import Engine, Request, Sampling

OWN = Path(__file__).parent / "tasks"  # beside the harness's own: as OpenCompass asks


class EngineLM(TemplateLM):
    """The engine as a model of the harness. `counts` says how often a context was cut to fit, and
    an answer at its limit."""

    def __init__(self, engine: Engine, tokenizer: Any, seed: int = 0):
        super().__init__()
        self.tokenizer, self.counts = tokenizer, Counter[str](context_cut=0, answer_cut=0)
        self.stops: set[tuple[str, ...]] = set()
        self.limits: set[int] = set()
        self._engine, self._seed = engine, seed

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Without a generation prompt, the trailing assistant message is continued."""
        if not add_generation_prompt and chat_history[-1]["role"] != "assistant":
            raise UserError(f"The harness asks to continue a message of the role {chat_history[-1]['role']!r}.")
        return text(self.tokenizer, chat_history, continues=not add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return plain(self.tokenizer, [string], special=add_special_tokens is not False)[0]

    def _cut(self, tokens: list[int], room: int) -> tuple[int, ...]:
        """The end of a context that leaves `room` positions in the engine's cache."""
        most = self._engine.cache_length - room
        if most < 1:
            raise UserError(f"The engine's cache of {self._engine.cache_length} has no room for {room} tokens and a context.")
        self.counts["context_cut"] += len(tokens) > most
        return tuple(tokens[-most:])

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Sum of log-probs of each continuation, and whether greedy decoding would have
        written it."""
        # continuations of one context go together
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, (_, context, continuation) in enumerate(requests):
            groups[self._cut(context, len(continuation))].append(i)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        longest = [max(len(requests[i][2]) for i in some) for some in groups.values()]
        greedy = self._written([*zip(groups, [Sampling(temperature=0.0, max_new=n) for n in longest], strict=True)])
        for (prompt, some), written in zip(groups.items(), greedy, strict=True):
            continuations = [requests[i][2] for i in some]
            for i, score in zip(some, self._engine.score(prompt, continuations), strict=True):
                length = len(requests[i][2])
                found[i] = score, list(written.tokens[:length]) == requests[i][2]
        return found

    def _written(self, requests: Sequence[tuple[Sequence[int], Sampling]]) -> list[Any]:
        made = [Request(str(i), tuple(context), sampling) for i, (context, sampling) in enumerate(requests)]
        results = {result.id: result for result in self._engine.generate(made)}
        return [results[request.id] for request in made]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        asked = []
        for request in requests:
            context, given = request.args
            how = dict(given)
            stop, limit = how.pop("until", ()), int(how.pop("max_gen_toks", 256))
            stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
            hot = how.pop("do_sample", False)
            temperature = float(how.pop("temperature", 1.0)) if hot else 0.0 * how.pop("temperature", 0.0)
            sampling = Sampling(
                temperature=temperature, max_new=limit, stop=stop, seed=self._seed, top_p=float(how.pop("top_p", 1.0))
            )
            if how:
                raise UserError(f"The task asks for generation settings that the engine has not: {how}.")
            self.stops.add(stop)
            self.limits.add(limit)
            asked.append((self._cut(self.tok_encode(context) or [self.prefix_token_id], limit), sampling))
        results = self._written(asked)
        self.counts["answer_cut"] += sum(result.stop_reason == "length" for result in results)
        return [result.text for result in results]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("perplexity of whole documents; no capability suite here asks for it")


def _share(sample: dict[str, Any], name: str, task: str) -> float:
    """A document's value of a metric. Raises UserError unless it is a number from 0 to 1:
    perplexity and BLEU are no shares of documents."""
    value = sample[name]
    value = value.item() if hasattr(value, "item") else value
    try:
        return finite(float(value) if isinstance(value, bool) else value, name, low=0, high=1)
    except UserError as error:
        raise UserError(f"Task {task}, document {sample['doc_id']}: its metric {error} {_others(sample, name)}") from None


def _others(sample: dict[str, Any], name: str) -> str:
    others = [metric for metric in sample["metrics"] if metric != name]
    return f"Set config.eval.capability.metric to another of its metrics: {', '.join(others) or 'it has none'}."


def run(
    engine: Engine, tokenizer: Any, tasks: Sequence[str], *, arm: str, seed: int = 0,
    folder: Path | None = None, shots: int | None = None, limit: int | None = None, chat: bool = False, metric: str = "",
    answer_filter: str = "",
) -> tuple[list[dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """Rows as in items.jsonl, one a document, and what was measured with: {"metrics", "settings"}.
    "values" of a row is {metric: a share from 0 to 1}; "result" is 1 or 0 where the share is, else
    null.

    tasks: names of tasks or groups; folder: YAML files that define them instead of the harness's
    own, with their data beside them: then the hub is not asked. metric and answer_filter choose
    what a row's result is, else a task's first: gsm8k has the filters "strict-match" and
    "flexible-extract". Of several tasks each is a subset. Raises UserError for a task, a metric or
    a filter that does not exist, and for a metric that is no share of a document or of which less
    is better.
    """
    if folder:
        # read when these libraries are imported
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder or OWN), include_defaults=not folder)
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise UserError(
            f"The harness knows no task {', '.join(unknown)}. Correct the name, or give the folder of its YAML file."
        )
    lm = EngineLM(engine, tokenizer, seed)
    found = lm_eval.simple_evaluate(
        lm, tasks=list(tasks), task_manager=manager, num_fewshot=shots, limit=limit, apply_chat_template=chat,
        bootstrap_iters=0, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
    )  # fmt: skip
    rows = []
    for task, samples in sorted(found["samples"].items()):
        filters = list(dict.fromkeys(sample["filter"] for sample in samples))
        wanted = answer_filter or filters[0]
        chosen = [sample for sample in samples if sample["filter"] == wanted]
        better = found["higher_is_better"].get(task, {})
        usual = sorted(chosen[0]["metrics"], key=lambda one: not better.get(one, True)) if chosen else [""]
        name = metric or usual[0]  # the first of which more is better
        if not chosen or name not in chosen[0]:
            raise UserError(f"Task {task} has the filters {filters} and the metrics {samples[0]['metrics']}; choose of these.")
        if not better.get(name, True):
            raise UserError(
                f"Task {task}: less is better of its metric {name!r}, so it is no accuracy. {_others(chosen[0], name)}"
            )
        for sample in chosen:
            share = _share(sample, name, task)
            rows.append(
                {
                    "id": f"{task}/{sample['doc_id']}", "benchmark": questions.benchmark_of(task), "arm": arm,
                    "subset": task if len(found["samples"]) > 1 else "all",
                    "seed": seed,
                    "messages": [{"role": "user", "content": str(sample["arguments"][0][0])}],
                    "outputs": [{"text": dumps(sample["filtered_resps"]), "stop_reason": "stop"}],
                    "verdicts": [], "state": "ok", "cluster": f"{task}/{sample['doc_id']}",
                    "result": int(share) if share in (0, 1) else None, "values": {name: share},
                    "target": str(sample["target"]),
                }
            )  # fmt: skip
    template = lm.chat_template(True) if chat else None
    settings = {
        "lm_eval": found["lm_eval_version"], "versions": found["versions"], "shots": found["n-shot"], "chat": chat,
        "template_sha256": digest(template) if template else None, "template_settings": SETTINGS if chat else None,
        "stop": sorted(lm.stops), "max_gen_toks": sorted(lm.limits),
        "cache_length": engine.cache_length, "metric": metric or "first", "filter": answer_filter or "first", **lm.counts,
    }  # fmt: skip
    return rows, {"metrics": found["results"], "settings": settings}
