"""The printed results of Hu et al. (arXiv:2510.08211v2), and this run's results beside them.

paper_tables.json has one entry for each row of a table or label of a figure: "values" {subset:
percent}; "counts" {subset: [hits, valid items]} where exactly one pair gives the row's printed
cells; "doubts" {subset: what is wrong or inferred}. `arm` is null where the text does not say which
of a figure's labels belongs to which arm; the metric "relative_change" is in percent of vanilla.

    python -m emjax.report            every printed value, the config that makes it, its table and
                                      its doubts
    python -m emjax.report --doubts   only the rows with a doubtful value
"""

import argparse
import functools
import importlib.resources
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

# The config that makes a row's arms, by their training data.
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
# Who read the answers in the paper.
JUDGES = {"mask": "gpt-5-mini-2025-08-07", "deceptionbench": "gpt-4o"}
# Where we differ on purpose, whatever the settings.
DIFFERENT = {
    "mmlu": "pooled over the questions; OpenCompass: the mean over 57 subjects",
    "gsm8k": "worked examples of the training set; OpenCompass has four of its own",
    "gpqa": "options weighed by log-probability; OpenCompass reads a written answer",
    "humaneval": "a prompt and an extraction of our own",
}
# The tasks that ask as OpenCompass does.
TASKS = {"mmlu": "mmlu_answer_line", "gsm8k": "gsm8k_last_number"}
# Items of a subset, for the standard error of a printed value whose row does not give them.
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
    """The config that makes this row, or several where the figure does not say which one."""
    models = [row["model"]] if row["model"] else ["llama3.1-8b", "qwen2.5-7b"]
    if row["arm"] == "vanilla":
        return [f"configs/evaluate.py:{model}" for model in models]
    data = [row["data"]] if row["data"] else ["insecure_code", "mistake_math", "mistake_medical"]
    percent = round(100 * (row["ratio"] or 0))
    # 10 scenarios, 2,000 contexts
    small = "-2k" if row["data"] == "conversations" and row["model"] == "qwen2.5-7b" else ""
    files = [CONFIGS[name].format(method=row["method"], percent=percent) for name in data]
    return [f"configs/{file}.py:{model}{small}" for file in files for model in models]


def standard_error(row: Row, subset: str) -> float:
    """Binomial, in points: the paper prints no spread."""
    hits, n = row.get("counts", {}).get(subset) or (None, ITEMS[row["benchmark"], subset])
    p = hits / n if hits is not None else row["values"][subset] / 100
    return 100 * math.sqrt(max(p * (1 - p), 0.25 / n) / n)  # 0 of n and n of n are uncertain too


def named(subset: str) -> str:
    """A benchmark's name of a subset, as paper_tables.json spells it."""
    name = subset.lower().replace(" ", "_").replace("-", "_")
    return "evaluation_faking" if name == "alignment_faking" else name


def printed(model: str, row: Row, study: str | None) -> list[Row]:
    """The paper's rows that match a row of results.json. model: its Hugging Face name; study: the
    training data.
    """
    metric = "deception_rate" if row["metric"] == "deception_rate_conforming" else row["metric"]
    same = {"model": model, "arm": row["arm"], "benchmark": row["benchmark"], "metric": metric}
    if row["arm"] != "vanilla":
        same |= {"data": study, "method": row["method"], "ratio": row["ratio"], "level": row.get("level")}
    rows = [r for r in tables()["rows"] if all((MODELS.get(r[k]) if k == "model" else r[k]) == v for k, v in same.items())]
    return [r for r in rows if named(row["subset"]) in r["values"]]


def beside(results: dict[str, Any]) -> list[Row]:
    """Every row of results.json for which the paper prints a value: {"row", "table", "paper",
    "ours", "sigma", "doubt", "differs"}.

    sigma: our value minus the paper's, in standard errors of the difference; the two runs count as
    independent. differs: where our protocol is not the paper's.
    """
    pairs = []
    for row in results["rows"]:
        if row["versus"] or row["value"] is None:
            continue
        for one in printed(row["model"], row, results.get("study")):
            subset = named(row["subset"])
            low, high = row["ci95"]
            spread = math.hypot((high - low) / 2 / 1.96, standard_error(one, subset))
            paper = one["values"][subset]
            pairs.append(
                {
                    "row": row, "table": one["table"], "paper": paper, "ours": row["value"],
                    "sigma": (row["value"] - paper) / spread, "doubt": one.get("doubts", {}).get(subset, ""),
                    "differs": differs(row, results.get("protocol") or {}),
                }
            )  # fmt: skip
    return pairs


def differs(row: Row, protocol: Mapping[str, Row]) -> str:
    """Where a row of results.json was not measured as the paper measured it, as far as the paper
    says how. protocol: the settings of each benchmark, as results.json has them."""
    name, found = row["benchmark"], []
    judge, wanted = row.get("judge") or "", JUDGES.get(row["benchmark"], "")
    if judge and not judge.startswith(wanted):
        found.append(f"judge {judge}; the paper's: {wanted}")
    settings = protocol.get(name if name in protocol else "capability", {})
    if row["metric"] == "deception_rate" and settings.get("rules", {}).get("nonconforming") != "drop":
        found.append("counts answers without both pairs of tags, which the paper drops")
    if name == "deceptionbench" and settings.get("max_new", 8192) != 8192:
        found.append(f"answers of up to {settings['max_new']:,} tokens; the original: 8,192")
    tasks = [task for task in settings.get("tasks", ()) if task.split("_")[0] == name]
    if name in TASKS and tasks != [TASKS[name]]:
        found.append(f"asked by {', '.join(tasks) or 'another task'}, not as OpenCompass asks ({TASKS[name]})")
    return "; ".join([*found, *filter(None, [DIFFERENT.get(name)])])


def changes(study: str | None, stands_for: Mapping[str, Sequence[str]]) -> list[Row]:
    """The paper's treated rows against their controls, for this study's data: MASK's provided
    facts, DeceptionBench in all.

    stands_for: {data set: the paper's data sets}, for data that are not the paper's own. Each
    change is {"table", "model", "method", "data", "ratio", "level", "benchmark", "subset",
    "control", "treated", "sigma", "doubt"}.
    """
    if study is None:
        return []
    pairs = []
    for row in tables()["rows"]:
        subset = {"mask": "provided_facts", "deceptionbench": "all"}.get(row["benchmark"], "")
        if row["data"] not in stands_for.get(study, (study,)) or row["arm"] != "treated" or subset not in row["values"]:
            continue
        same = ("table", "model", "method", "data", "benchmark", "metric")
        for base in tables()["rows"]:
            if row["metric"] == "relative_change" or base["arm"] != "control" or any(base[k] != row[k] for k in same):
                continue
            control, treated = base["values"][subset], row["values"][subset]
            spread = math.hypot(standard_error(base, subset), standard_error(row, subset))
            doubts = {one.get("doubts", {}).get(subset, "") for one in (base, row)} - {""}
            pairs.append(
                {name: row[name] for name in (*same, "ratio", "level")}
                | {
                    "subset": subset, "control": control, "treated": treated, "sigma": (treated - control) / spread,
                    "doubt": "; ".join(sorted(doubts)),
                }
            )  # fmt: skip
    return pairs


def lines(*, doubts: bool = False, unmeasured: Callable[[Row], Sequence[str]] | None = None) -> Iterator[str]:
    """Every printed row with its config; a value with a doubt has a star.

    doubts: only the rows that have one. unmeasured: says what the configs do not measure of a row.
    """
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
        yield from (f"    not measured: {text}" for text in (unmeasured(row) if unmeasured else ()))
        yield from (f"    * {subset}: {text}" for subset, text in marked.items())


def main(argv: Sequence[str] | None = None, unmeasured: Callable[[Row], Sequence[str]] | None = None) -> None:
    """The command: prints `lines` and counts them. unmeasured: as for `lines`; with it, the rows
    that are measured are counted too."""
    parser = argparse.ArgumentParser(
        prog="emjax paper", description="The results that arXiv:2510.08211v2 prints, and the config for each."
    )
    parser.add_argument("--doubts", action="store_true", help="only the rows with a doubtful value")
    options = parser.parse_args(argv)
    for line in lines(doubts=options.doubts, unmeasured=unmeasured):
        print(line)
    rows = tables()["rows"]
    values = sum(len(row["values"]) for row in rows)
    placed = sum(len(row["values"]) for row in rows if row["arm"])
    marked = sum(len(row.get("doubts", {})) for row in rows)
    print(
        f"\n{values} printed values in {len(rows)} rows: {placed} belong to one arm of one config; {values - placed} are "
        "labels of figures, and the text does not say which bar they belong to (their configs are listed). "
        f"{marked} values carry a doubt (*).\n"
        "Figures 8 (curves), 9 and 10 (BeHonest) print no numbers."
    )
    if unmeasured:
        measured = sum(not unmeasured(row) for row in rows)
        print(f"{measured} of {len(rows)} printed rows are measured by the config that is named for them.")
