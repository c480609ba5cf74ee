"""The page's numbers as files for other programs: Markdown, CSV and LaTeX."""

import csv
import io
import re
from pathlib import Path
from typing import Any

from emjax.report import tables
from emjax.report.rows import world
from emjax.report.story import story
from emjax.report.text import MISSING, spaced

FIELDS = (
    "model", "method", "arm", "ratio", "level", "seed", "pretrain_seed", "round", "step", "benchmark", "subset", "metric",
    "versus", "value", "low", "high", "n", "n_valid", "n_dropped", "judge",
)  # fmt: skip
_LEVELS, _DIFFERENCES = "Results by arm, percent", "Differences between arms, points"
_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\u2212": r"$-$", "\u00a0": "~",
    "\u202f": r"\,", "\u2013": "--", **{letter: "\\" + letter for letter in "%_&#${}"},
}  # fmt: skip


def write(directory: Path, results: dict, selections: list[dict], provenance: dict) -> None:
    """Writes results.md (the page's text and tables), results.csv (every row), results.tex (levels
    and differences).
    """
    (directory / "results.md").write_text(_markdown(results, selections, provenance), encoding="utf-8")
    (directory / "results.csv").write_text(rows_as_csv(results["rows"]), encoding="utf-8")
    (directory / "results.tex").write_text(_latex(results), encoding="utf-8")


def rows_as_csv(rows: list[dict], fields: tuple[str, ...] = FIELDS) -> str:
    """Rows of results.json as CSV; the interval's ends are `low` and `high`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(fields)
    for row in rows:
        low, high = row.get("ci95") or (None, None)
        flat = row | {"low": low, "high": high}
        writer.writerow(["" if flat.get(name) is None else flat[name] for name in fields])
    return out.getvalue()


def _tables(results: dict) -> dict[str, dict]:
    """{title: table} of the tables that have rows, in the order of the page."""
    by_subset = {f"{t['benchmark']} by subset: {spaced(t['metric'])}": t for t in tables.subset_tables(results)}
    named = {
        _LEVELS: tables.level_table(results),
        _DIFFERENCES: tables.difference_table(results),
        **by_subset,
        "Comparison with the paper": tables.paper_table(results),
        "The paper's results for such data": tables.change_table(results),
    }
    return {title: table for title, table in named.items() if table["rows"]}


def _cell(cell: str | list[dict]) -> str:
    """A measured cell as "value (interval; n valid/all)", several where there are several
    judges."""
    if isinstance(cell, str):
        return cell
    texts = [
        f"{part['judge'] + ': ' if part['judge'] else ''}{part['value']} ({part['interval']}; n {part['count']})"
        for part in cell
    ]
    return "; ".join(texts) or MISSING


def _markdown(results: dict, selections: list[dict], provenance: dict) -> str:
    def clean(text: str) -> str:
        return re.sub(r"\s+", " ", text).replace("|", r"\|")

    def grid(first: str, table: dict) -> str:
        lines = [[first, *table["head"]], ["---"] * (1 + len(table["head"]))]
        lines += [[title, *map(_cell, cells)] for title, cells in table["rows"]]
        return "\n".join("| " + " | ".join(map(clean, line)) + " |" for line in lines)

    parts = [f"# {clean(results['experiment'])}"]
    for run in story(results):
        parts.append(f"**{clean(run['headline'])}**" + (f" ({clean(run['run'])})" if run["run"] else ""))
        parts += [f"- {title}: {clean(sentence)}" for title, sentence in run["points"]]
    if note := world(results)["note"]:
        parts.append(f"> {clean(note)}")
    parts += [f"## {title}\n\n{grid('arm', table)}" for title, table in _tables(results).items()]
    if selections:
        parts.append(f"## Training data\n\n{grid('arm', tables.selection_table(selections))}")
        origins = tables.origin_table(selections)
        parts += [grid("source", origins)] if origins["rows"] else []
    facts: dict[str, Any] = {name: value for name, value in provenance.items() if not isinstance(value, dict)}
    parts.append("## Provenance\n\n" + "\n".join(f"- {name}: `{clean(str(value))}`" for name, value in facts.items()))
    return "\n\n".join(parts) + "\n"


def _latex(results: dict) -> str:
    """Tables for \\input; they need the package booktabs."""

    def clean(text: str) -> str:
        return "".join(_TEX.get(letter, letter) for letter in text)

    parts = ["% Needs \\usepackage{booktabs}. Written by emjax; percent, differences in points, 95 % intervals in brackets."]
    named = _tables(results)
    for title in (_LEVELS, _DIFFERENCES):
        if title not in named:
            continue
        table = named[title]
        body = [" & ".join(map(clean, ["", *table["head"]])) + r" \\", r"\midrule"]
        for name, cells in table["rows"]:
            short = [" ".join(f"{part['value']} [{part['interval']}]" for part in cell) or "--" for cell in cells]
            body.append(" & ".join(map(clean, [name, *short])) + r" \\")
        columns = "l" + "r" * len(table["head"])
        parts += [f"% {title}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts) + "\n"
