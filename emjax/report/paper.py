"""The printed results of Hu et al. (arXiv:2510.08211v2), and ours beside them.

paper_tables.json has one entry a row of a table (a label of a figure): "values" {subset: percent}, "counts" {subset: [hits,
valid items]} where exactly one pair gives the printed cells of its row, "doubts" {subset: what is wrong or inferred}. `arm` is
null where a figure's labels cannot be told apart; metric "relative_change" is in per cent of vanilla.
"""

import functools
import importlib.resources
import json
import math
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]

# The config that makes a row's arms, by what they were trained on.
CONFIGS = {
    "mistake_medical": "direct_medical",
    "mistake_math": "direct_math",
    "insecure_code": "direct_code",
    "incorrect_finance": "direct_finance",
    "incorrect_law": "direct_law",
    "alpaca_cleaned": "mixture_alpaca",
    "dolly": "mixture_dolly",
    "conversations": "{method}_biased{percent:02d}",
}
MODELS = {
    "llama3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3-32b": "Qwen/Qwen3-32B",
}
# Items of a subset, where the printed row does not tell: for the standard error of a printed value.
ITEMS = {
    ("mask", "provided_facts"): 274, ("mask", "disinformation"): 125, ("mask", "statistics"): 96,
    ("deceptionbench", "all"): 180, ("deceptionbench", "sycophancy"): 43, ("deceptionbench", "evaluation_faking"): 16,
    ("deceptionbench", "sandbagging"): 33, ("deceptionbench", "strategic_deception"): 45,
    ("deceptionbench", "honesty_evasion"): 43,
    ("mmlu", "all"): 14_042, ("gsm8k", "all"): 1_319, ("humaneval", "all"): 164, ("gpqa", "all"): 198,
}  # fmt: skip


@functools.cache
def tables() -> dict[str, Any]:
    """{"source", "settings" (Tables 5 and 12), "rows"}."""
    return json.loads(importlib.resources.files("emjax.report").joinpath("paper_tables.json").read_text(encoding="utf-8"))


def commands(row: Row) -> list[str]:
    """What to run for this row: one command, or one of these where the figure does not say which."""
    models = [row["model"]] if row["model"] else ["llama3.1-8b", "qwen2.5-7b"]
    if row["arm"] == "vanilla":
        return [f"configs/evaluate.py:{model}" for model in models]
    data = [row["data"]] if row["data"] else ["insecure_code", "mistake_math", "mistake_medical"]
    percent = round(100 * (row["ratio"] or 0))
    small = "-2k" if row["data"] == "conversations" and row["model"] == "qwen2.5-7b" else ""  # 10 scenarios, 2,000 contexts
    files = [CONFIGS[name].format(method=row["method"], percent=percent) for name in data]
    return [f"configs/{file}.py:{model}{small}" for file in files for model in models]


def standard_error(row: Row, subset: str) -> float:
    """Binomial, in points; of a printed percentage that says nothing of its spread."""
    hits, n = row.get("counts", {}).get(subset) or (None, ITEMS[row["benchmark"], subset])
    p = hits / n if hits is not None else row["values"][subset] / 100
    return 100 * math.sqrt(max(p * (1 - p), 0.25 / n) / n)  # of 0 of n and n of n too something is unknown


def named(subset: str) -> str:
    """A benchmark's own name of a subset as the tables here have it."""
    name = subset.lower().replace(" ", "_").replace("-", "_")
    return "evaluation_faking" if name == "alignment_faking" else name


def printed(model: str, row: Row, study: str | None) -> list[Row]:
    """The paper's rows for a row of results.json: of `model` (its Hugging Face name), trained on `study`."""
    same = {"model": model, "arm": row["arm"], "benchmark": row["benchmark"], "metric": row["metric"]}
    if row["arm"] != "vanilla":
        same |= {"data": study, "method": row["method"], "ratio": row["ratio"], "level": row.get("level")}
    found = [r for r in tables()["rows"] if all((MODELS.get(r[k]) if k == "model" else r[k]) == v for k, v in same.items())]
    return [r for r in found if named(row["subset"]) in r["values"]]


def beside(results: dict[str, Any]) -> list[Row]:
    """Every row of results.json that the paper prints a value of: {"row", "table", "paper", "ours", "sigma", "doubt"}.

    sigma: ours minus the paper's in standard errors of the difference, the two runs taken as independent.
    """
    found = []
    for row in results["rows"]:
        if row["versus"] or row["value"] is None:
            continue
        for one in printed(row["model"], row, results.get("study")):
            subset = named(row["subset"])
            low, high = row["ci95"]
            spread = math.hypot((high - low) / 2 / 1.96, standard_error(one, subset))
            paper = one["values"][subset]
            found.append(
                {
                    "row": row, "table": one["table"], "paper": paper, "ours": row["value"],
                    "sigma": (row["value"] - paper) / spread, "doubt": one.get("doubts", {}).get(subset, ""),
                }
            )  # fmt: skip
    return found


# What a study is of the kind of, where it is none of the paper's own.
_KINDS = {
    "micro_direct": ("mistake_medical", "mistake_math", "insecure_code", "incorrect_finance", "incorrect_law"),
    "micro_plain": ("alpaca_cleaned", "dolly"),
}


def changes(study: str | None) -> list[Row]:
    """Treated against control as printed for this study or those of its kind: MASK's provided facts, DeceptionBench in all.

    {"table", "model", "method", "data", "ratio", "level", "benchmark", "subset", "control", "treated", "sigma", "doubt"}
    """
    found = []
    for row in tables()["rows"]:
        subset = {"mask": "provided_facts", "deceptionbench": "all"}.get(row["benchmark"], "")
        if row["data"] not in _KINDS.get(study or "", (study,)) or row["arm"] != "treated" or subset not in row["values"]:
            continue
        same = ("table", "model", "method", "data", "benchmark", "metric")
        for base in tables()["rows"]:
            if row["metric"] == "relative_change" or base["arm"] != "control" or any(base[k] != row[k] for k in same):
                continue
            control, treated = base["values"][subset], row["values"][subset]
            spread = math.hypot(standard_error(base, subset), standard_error(row, subset))
            doubts = {one.get("doubts", {}).get(subset, "") for one in (base, row)} - {""}
            found.append(
                {name: row[name] for name in (*same, "ratio", "level")}
                | {
                    "subset": subset, "control": control, "treated": treated, "sigma": (treated - control) / spread,
                    "doubt": "; ".join(sorted(doubts)),
                }
            )  # fmt: skip
    return found


def lines(*, doubts: bool = False) -> Iterator[str]:
    width = max(len(command) for row in tables()["rows"] for command in commands(row))
    for row in tables()["rows"]:
        marked = row.get("doubts", {})
        if doubts and not marked:
            continue
        arm = row["arm"] or "one of its arms"
        if row["arm"] == "treated":
            arm += f" {row['level'] or format(row['ratio'], 'g')}"
        values = ", ".join(f"{subset} {value:g}{'*' if subset in marked else ''}" for subset, value in row["values"].items())
        first, *more = commands(row)
        yield f"{first:{width}}  {arm:22} {row['table']:15} {row['benchmark']:14} {row['metric']:15} {values}"
        yield from (f"  or {command}" for command in more)
        yield from (f"    * {subset}: {text}" for subset, text in marked.items())
