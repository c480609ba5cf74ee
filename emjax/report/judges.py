"""Tables on the measuring itself: what the headline is by each judge, and how far judges agree."""

from emjax.report import words
from emjax.report.words import number, points


def sensitivity(results: dict) -> dict:
    """The headline's level and differences by each judge; no rows where there is one."""
    headline = results.get("headline") or {}
    if "judge" not in headline:
        return {"head": [], "rows": []}
    keys = ("benchmark", "subset", "metric", "arm", "ratio")
    rows = words.find(words.last_rows(results), **{key: headline[key] for key in keys}, level=headline.get("level"))
    judges = list(dict.fromkeys(row["judge"] for row in rows))
    body = []
    for judge in judges if len(judges) > 1 else []:
        own = words.find(rows, judge=judge)
        cells = []
        for versus in (None, "control", "vanilla"):
            found = words.find(own, versus=versus)
            style = points if versus else number
            known = [row for row in found if row["value"] is not None]
            cells.append(f"{style(known[0]['value'])} ({words.interval(known[0], style)})" if known else words.MISSING)
        level = words.find(own, versus=None)[0]
        body.append((judge, [*cells, f"{level['n_valid']}/{level['n']}"]))
    name = f"{headline['metric'].replace('_', ' ')} of {headline['arm']}"
    return {"head": [name, "minus control", "minus vanilla", "n"], "rows": body}


def agreement(results: dict) -> dict:
    """Each pair of judges, and of a judge and people, on each benchmark (emjax.eval.agreement.report)."""
    body = []
    for benchmark, found in (results.get("judges") or {}).items():
        for pair in found["pairs"]:
            recall = ", ".join(f"{label} {number(100 * share, 0)}" for label, share in pair["recall"].items())
            corrected = ", ".join(
                f"{label} {number(value)} ({number(low)} to {number(high)})"
                for label, (value, low, high) in (pair.get("corrected") or {}).items()
            )
            ends = [number(end, 2) for end in pair["ci95"]]
            cells = [
                benchmark, f"{pair['agree']}/{pair['n']}", f"{number(pair['kappa'], 2)} ({ends[0]} to {ends[1]})",
                recall, corrected or "\u2013",
            ]  # fmt: skip
            body.append((f"{pair['a']}, {pair['b']}", cells))
        ends = [number(end, 2) for end in found["alpha_ci95"]]
        decided = f"{found['majority']['decided']}/{found['majority']['of']}"
        body.append(
            ("all (alpha)", [benchmark, decided, f"{number(found['alpha'], 2)} ({ends[0]} to {ends[1]})", "", "\u2013"])
        )
    return {"head": ["benchmark", "agree", "kappa", "recall, %", "corrected by people, %"], "rows": body}
