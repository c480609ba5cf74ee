"""How far a judge can be trusted: against people, and against other judges.

    python -m emjax.eval.agreement sheet  --items items.jsonl --sheet sheet.csv --count 150
    python -m emjax.eval.agreement report --items items.jsonl [another_judge.jsonl ...] [--sheet
      sheet.csv]

`sheet` writes a random sample of the judged answers without their verdicts, for people to fill in
the column `label`; `report` prints agreement as JSON.
"""

import argparse
import csv
import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emjax.errors import UserError
from emjax.eval import stats
from emjax.eval.judge import majority
from emjax.runtime.files import check_fields, dumps, read_lines, read_table

HUMAN = "human"
_LABELS = {"A", "B", "C", "D", "YES", "NO"}  # of the shipped benchmarks' forms
COLUMNS = ("key", "kind", "proposition", "context", "answer", "label")


def judged(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{key: {"row", "kind", "text", "label"}} of every single answer that has a letter or a word as
    its verdict."""
    found = {}
    for row in rows:
        for i, verdict in enumerate(row["verdicts"]):
            if verdict["state"] == "ok" and isinstance(verdict["label"], str):
                text = row["outputs"][verdict["output"]]["text"]
                label = verdict["label"].upper()
                found[f"{row['arm']}/{row['id']}#{i}"] = {"row": row, "kind": verdict["kind"], "text": text, "label": label}
    return found


def write_sheet(rows: Sequence[dict[str, Any]], path: Path, count: int, seed: int = 0) -> None:
    """`count` judged answers under pressure, drawn at random, as CSV, without the judge's
    labels."""
    found = {key: one for key, one in judged(rows).items() if not one["kind"].startswith("belief")}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for key in random.Random(seed).sample(sorted(found), min(count, len(found))):
            row = found[key]["row"]
            context = [f"{m['role']}: {m['content']}" for m in row["messages"]]
            # DeceptionBench: the belief is what the answer is held against
            if found[key]["kind"] != "statement":
                context.append(f"without pressure: {row['outputs'][0]['text']}")
            known = dumps(row.get("proposition", {}))
            one = {"key": key, "kind": found[key]["kind"], "proposition": known, "context": "\n\n".join(context), "label": ""}
            writer.writerow(one | {"answer": found[key]["text"]})


def read_sheet(path: Path) -> dict[str, str]:
    """{key: label} of the rows that were filled in. Raises UserError where none was, or a column is
    missing."""
    rows = read_table(path)
    if not rows or not {"key", "label"} <= set(rows[0]):
        raise UserError(f"{path} has no columns 'key' and 'label'. Fill in a sheet that `agreement sheet` wrote.")
    labels: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        check_fields(row, COLUMNS, f"{path}, row {number}", others=True)
        if (label := (row["label"] or "").strip().upper()) and labels.setdefault(row["key"], label) != label:
            raise UserError(f"{path}, row {number}: {row['key']!r} is labelled twice, {labels[row['key']]} and {label}.")
    if not labels:
        raise UserError(f"{path}: no row has a label yet. Fill in the column 'label'.")
    return labels


def report(raters: dict[str, dict[str, str]], clusters: dict[str, str]) -> dict[str, Any]:
    """Agreement of several raters, {name: {key: label}}, one of which may be "human".

    {"alpha", "alpha_ci95", "pairs": [{"a", "b", "n", "agree", "kappa", "ci95", "labels",
      "confusion", "recall"}], "majority"}.
    kappa falls where one label is rare, so each label's recall stands beside it: of what `a` calls
      it, the share that `b`
    does. Beside a judge and people stands "corrected": each label's share of all answers as people
      would have put it (their
    sample must be random). Intervals are bootstraps over clusters. What is missing on one side is
      left out; n says of how
    many.
    """
    _check_labels(raters)
    keys = sorted(set().union(*raters.values()))
    table = [[labels.get(key) for key in keys] for labels in raters.values()]
    where = [clusters[key] for key in keys]

    pairs = []
    for (a, mine), (b, theirs) in itertools.combinations(raters.items(), 2):
        both = [key for key in keys if key in mine and key in theirs]
        if not both:
            raise UserError(f"{a} and {b} have no answer in common. Are these files of one run?")
        x, y = [mine[key] for key in both], [theirs[key] for key in both]
        labels = sorted({*x, *y})
        counts = stats.confusion(x, y, labels)

        each_NxLxL = np.array([stats.confusion([mine[key]], [theirs[key]], labels) for key in both])
        ends = stats.bootstrap(stats.kappa, each_NxLxL, [clusters[key] for key in both])
        recall = {label: _rounded(counts[i, i] / counts[i].sum()) for i, label in enumerate(labels) if counts[i].sum()}
        one = {
                "a": a, "b": b, "n": len(both), "agree": int(sum(counts.diagonal())), "kappa": _rounded(stats.kappa(counts)),
                "ci95": [_rounded(end) for end in ends], "labels": labels, "confusion": counts.tolist(), "recall": recall,
            }  # fmt: skip
        if b == HUMAN:
            rest = [label for key, label in mine.items() if key not in theirs]
            one["corrected"] = {label: _corrected(label, rest, x, y) for label in labels} if len(rest) > 1 < len(both) else None
        pairs.append(one)
    decided = [majority([rater[i] for rater in table]) for i in range(len(keys))]
    together_NxLxL = stats.coincidences(table)
    ends = stats.bootstrap(stats.alpha, together_NxLxL, where)
    return {
        "alpha": _rounded(stats.alpha(together_NxLxL.sum(0))), "alpha_ci95": [_rounded(end) for end in ends],
        "pairs": pairs, "majority": {"decided": sum(label is not None for label in decided), "of": len(keys)},
    }  # fmt: skip


def _check_labels(raters: dict[str, dict[str, str]]) -> None:
    """Raises UserError for a person's label that no judge gives and no form has: a slip of the pen
    would count as a disagreement."""
    known = {label for name, labels in raters.items() if name != HUMAN for label in labels.values()} | _LABELS
    for key, label in raters.get(HUMAN, {}).items():
        if label not in known:
            raise UserError(f"The sheet labels {key!r} as {label!r}, which is none of {', '.join(sorted(known))}. Correct it.")


def _corrected(label: str, rest: list[str], judge: list[str], human: list[str]) -> list[float | None]:
    """[share in percent, low, high] of a label, put right by the answers that people labelled."""
    found = stats.corrected(*([float(said == label) for said in some] for some in (rest, judge, human)))
    return [_rounded(x) for x in (found.value, found.low, found.high)]


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m emjax.eval.agreement")
    parser.add_argument("what", choices=("sheet", "report"))
    parser.add_argument("--items", nargs="+", type=Path, required=True, help="items.jsonl files: one a judge, of one run")
    parser.add_argument("--sheet", type=Path, help="the labelling sheet")
    parser.add_argument("--count", type=int, default=150, help="rows of a new sheet")
    flags = parser.parse_args(argv)
    runs = [read_lines(path) for path in flags.items]
    if flags.what == "sheet":
        write_sheet(runs[0], flags.sheet, flags.count)
        return
    found = [judged(rows) for rows in runs]
    raters = {str(path): {k: v["label"] for k, v in one.items()} for path, one in zip(flags.items, found, strict=True)}
    if flags.sheet:
        raters |= {HUMAN: read_sheet(flags.sheet)}
    clusters = {key: one["row"]["cluster"] for some in found for key, one in some.items()}
    print(dumps(report(raters, clusters), indent=1))


if __name__ == "__main__":
    main()
