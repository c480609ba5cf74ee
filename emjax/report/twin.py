"""The page's numbers as files for other programs: Markdown, CSV, LaTeX."""

import csv
import io
import re
from pathlib import Path
from typing import Any

from emjax.report import words

FIELDS = (
    "model", "method", "arm", "ratio", "level", "seed", "pretrain_seed", "round", "step", "benchmark", "subset", "metric",
    "versus", "value", "low", "high", "n", "n_valid", "n_dropped", "judge",
)  # fmt: skip
_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\u2212": r"$-$", "\u00a0": "~",
    "\u202f": r"\,", "\u2013": "--", **{letter: "\\" + letter for letter in "%_&#${}"},
}  # fmt: skip


def write(directory: Path, results: dict, selections: list[dict], provenance: dict) -> None:
    """results.md (the page's text and tables), results.csv (every row of results.json), results.tex (the main tables)."""
    (directory / "results.md").write_text(_markdown(results, selections, provenance), encoding="utf-8")
    (directory / "results.csv").write_text(table(results["rows"]), encoding="utf-8")
    (directory / "results.tex").write_text(_latex(results), encoding="utf-8")


def _tables(results: dict) -> list[tuple[str, dict]]:
    named = [
        ("Every arm, percent", words.level_table(results)),
        ("Differences, points", words.difference_table(results)),
        *((f"{t['benchmark']} by subset: {t['metric'].replace('_', ' ')}", t) for t in words.subset_tables(results)),
        ("Beside the paper", words.paper_table(results)),
        ("What the paper prints of such data", words.change_table(results)),
    ]
    return [(title, table) for title, table in named if table["rows"]]


def _cell(cell: Any) -> str:
    """A measured cell as "value (interval; n valid/all)", several where there are several judges."""
    if isinstance(cell, str):
        return cell
    texts = [
        f"{part['judge'] + ': ' if part['judge'] else ''}{part['value']} ({part['interval']}; n {part['count']})"
        for part in cell
    ]
    return "; ".join(texts) or words.MISSING


def _markdown(results: dict, selections: list[dict], provenance: dict) -> str:
    def clean(text: str) -> str:
        return re.sub(r"\s+", " ", text).replace("|", r"\|")

    def grid(first: str, table: dict) -> str:
        lines = [[first, *table["head"]], ["---"] * (1 + len(table["head"]))]
        lines += [[title, *map(_cell, cells)] for title, cells in table["rows"]]
        return "\n".join("| " + " | ".join(map(clean, line)) + " |" for line in lines)

    parts = [f"# {clean(results['experiment'])}"]
    for told in words.story(results):
        parts.append(f"**{clean(told['headline'])}**" + (f" ({clean(told['run'])})" if told["run"] else ""))
        parts += [f"- {title}: {clean(sentence)}" for title, sentence in told["points"]]
    if results.get("world_note"):
        parts.append(f"> {clean(results['world_note'])}")
    parts += [f"## {title}\n\n{grid('arm', table)}" for title, table in _tables(results)]
    if selections:
        parts.append(f"## Data\n\n{grid('arm', words.selection_table(selections))}")
        origins = words.origin_table(selections)
        parts += [grid("source", origins)] if origins["rows"] else []
    known = {name: value for name, value in provenance.items() if not isinstance(value, dict)}
    parts.append(
        "## Where this comes from\n\n" + "\n".join(f"- {name}: `{clean(str(value))}`" for name, value in known.items())
    )
    return "\n\n".join(parts) + "\n"


def table(rows: list[dict], fields: tuple[str, ...] = FIELDS) -> str:
    """Rows of results.json as CSV; the interval's ends are `low` and `high`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(fields)
    for row in rows:
        low, high = row.get("ci95") or (None, None)
        flat = row | {"low": low, "high": high}
        writer.writerow(["" if flat.get(name) is None else flat[name] for name in fields])
    return out.getvalue()


def _latex(results: dict) -> str:
    """Tables for \\input; they need the package booktabs."""

    def clean(text: str) -> str:
        return "".join(_TEX.get(letter, letter) for letter in text)

    parts = ["% Needs \\usepackage{booktabs}. Written by emjax; percent, differences in points, 95 % intervals in brackets."]
    for title, table in _tables(results)[:2]:
        body = [" & ".join(map(clean, ["", *table["head"]])) + r" \\", r"\midrule"]
        for name, cells in table["rows"]:
            short = [" ".join(f"{part['value']} [{part['interval']}]" for part in cell) or "--" for cell in cells]
            body.append(" & ".join(map(clean, [name, *short])) + r" \\")
        columns = "l" + "r" * len(table["head"])
        parts += [f"% {title}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts) + "\n"
