"""Tables about the judges: the headline by each judge, and how far judges agree."""

from emjax.report.rows import find, last_rows
from emjax.report.text import MISSING, interval, number, points, spaced


def sensitivity(results: dict) -> dict:
    """The headline's level and differences by each judge; no rows where there is one judge."""
    headline = results.get("headline") or {}
    if "judge" not in headline:
        return {"head": [], "rows": []}
    keys = ("benchmark", "subset", "metric", "arm", "ratio")
    rows = find(last_rows(results), **{key: headline[key] for key in keys}, level=headline.get("level"))
    judges = list(dict.fromkeys(row["judge"] for row in rows))
    body = []
    for judge in judges if len(judges) > 1 else []:
        own = find(rows, judge=judge)
        cells = []
        for versus in (None, "control", "vanilla"):
            style = points if versus else number
            known = [row for row in find(own, versus=versus) if row["value"] is not None]
            cells.append(f"{style(known[0]['value'])} ({interval(known[0], style)})" if known else MISSING)
        level = find(own, versus=None)[0]
        body.append((judge, [*cells, f"{level['n_valid']}/{level['n']}"]))
    name = f"{spaced(headline['metric'])} of {headline['arm']}"
    return {"head": [name, "minus control", "minus vanilla", "n"], "rows": body}


def agreement(results: dict) -> dict:
    """Agreement of each pair of judges, or of a judge and people, on each benchmark
    (emjax.eval.agreement.report).
    """
    body = []
    for benchmark, measured in (results.get("judges") or {}).items():
        for pair in measured["pairs"]:
            recall = ", ".join(f"{label} {number(100 * share, 0)}" for label, share in pair["recall"].items())
            corrected = ", ".join(
                f"{label} {number(value)} ({number(low)} to {number(high)})"
                for label, (value, low, high) in (pair.get("corrected") or {}).items()
            )
            kappa = _with_ends(pair["kappa"], pair["ci95"])
            cells = [benchmark, f"{pair['agree']}/{pair['n']}", kappa, recall, corrected or "\u2013"]
            body.append((f"{pair['a']}, {pair['b']}", cells))
        decided = f"{measured['majority']['decided']}/{measured['majority']['of']}"
        alpha = _with_ends(measured["alpha"], measured["alpha_ci95"])
        body.append(("all (alpha)", [benchmark, decided, alpha, "", "\u2013"]))
    return {"head": ["benchmark", "agree", "kappa", "recall, %", "corrected by people, %"], "rows": body}


def _with_ends(value: float, ends: list[float]) -> str:
    return f"{number(value, 2)} ({number(ends[0], 2)} to {number(ends[1], 2)})"
