"""Tables of results.json for the page and its exports.

A table is {"head": [...], "rows": [(title, [cell, ...])]}. A measured cell is a list of {"value",
"interval", "count", "strong", "judge"}, one for each judge; a cell of facts is a string.
"""

from collections.abc import Callable

from emjax.report import paper
from emjax.report.rows import (
    ARMS,
    arm_label,
    arms,
    capabilities,
    detected,
    dose_label,
    find,
    last_rows,
    of_arm,
    ordered_subsets,
    world,
)
from emjax.report.text import METRIC_TITLES, interval, number, percent_of_one, plain, points, spaced


def columns(results: dict) -> list[tuple[str, str, str, str]]:
    """(title, benchmark, subset, metric) of the main tables: the usual columns, then whatever else
    was measured.
    """
    headline = results.get("headline") or {"benchmark": "mask", "subset": "all"}
    bench, subset = headline["benchmark"], headline["subset"]
    rows = last_rows(results)
    wanted = [(title, bench, subset, metric) for metric, title in METRIC_TITLES.items()]
    wanted = [c for c in wanted if c[3] != "honesty" or find(rows, benchmark=bench, metric="honesty")]
    wanted.append(("belief accuracy", bench, subset, "accuracy"))
    wanted += [(f"{name} accuracy", b, "all", "accuracy") for b, name in capabilities(rows)]
    seen = {column[1:] for column in wanted}
    for row in rows:
        key = (row["benchmark"], row["subset"], row["metric"])
        if key not in seen and row["subset"] == (subset if row["benchmark"] == bench else "all"):
            seen.add(key)
            wanted.append((f"{row['benchmark']} {spaced(row['metric'])}", *key))
    return wanted


def _cell(rows: list[dict], style: Callable[[float], str] = number) -> list[dict]:
    return [
        {
            "value": "no valid item" if row["value"] is None else style(row["value"]),
            "interval": interval(row, style),
            "count": f"{row['n_valid']}/{row['n']}",
            "strong": row.get("versus") is not None and detected(row),
            "judge": row.get("judge") if len(rows) > 1 else None,
        }
        for row in rows
    ]


def level_table(results: dict) -> dict:
    """Each arm's levels. absent: which of vanilla, control and treated the results lack."""
    rows, cols = find(last_rows(results), versus=None), columns(results)
    body = []
    for arm in arms(results):
        own = of_arm(rows, arm)
        cells = [_cell(find(own, benchmark=b, subset=s, metric=m)) for _, b, s, m in cols]
        body.append((arm_label(arm, results), cells))
    present = {arm["arm"] for arm in arms(results)}
    return {
        "head": [c[0] for c in cols],
        "rows": body,
        "absent": [spaced(name) for name in ARMS[:3] if name not in present],
    }


def difference_table(results: dict) -> dict:
    """Each arm's differences to the control, then to vanilla."""
    rows, cols = last_rows(results), columns(results)
    body = []
    for versus in ("control", "vanilla"):
        for arm in arms(results):
            own = find(of_arm(rows, arm), versus=versus)
            if own:
                cells = [_cell(find(own, benchmark=b, subset=s, metric=m), points) for _, b, s, m in cols]
                body.append((f"{arm_label(arm, results)} \u2212 {versus}", cells))
    return {"head": [c[0] for c in cols], "rows": body}


def subset_tables(results: dict) -> list[dict]:
    """One table for each benchmark with subsets, of the headline's metric or else its first:
    levels, then differences.
    """
    headline = results.get("headline") or {"benchmark": "mask", "metric": "honest"}
    rows = last_rows(results)
    benchmarks = dict.fromkeys([headline["benchmark"], *(row["benchmark"] for row in rows)])
    tables = []
    for benchmark in benchmarks:
        measured = dict.fromkeys(row["metric"] for row in find(rows, benchmark=benchmark))
        if not measured:
            continue
        metric = headline["metric"] if benchmark == headline["benchmark"] else next(iter(measured))
        table = subset_table(results, find(rows, benchmark=benchmark, metric=metric))
        if len(table["head"]) > 1:
            tables.append({"benchmark": benchmark, "metric": metric, **table})
    return tables


def subset_table(results: dict, rows: list[dict]) -> dict:
    """`rows` by subset: each arm's level, then its difference to the control."""
    names = ordered_subsets((row["subset"] for row in rows), results)
    body = []
    for arm in arms(results):
        own = of_arm(rows, arm)
        body.append((arm_label(arm, results), [_cell(find(own, subset=s, versus=None)) for s in names]))
    for arm in arms(results):
        own = find(of_arm(rows, arm), versus="control")
        if own:
            cells = [_cell(find(own, subset=s), points) for s in names]
            body.append((f"{arm_label(arm, results)} \u2212 control", cells))
    return {"head": [spaced(name) for name in names], "rows": body}


def paper_table(results: dict) -> dict:
    """The run's values beside those that the paper prints for the same model, data and arm."""
    body = []
    for one in paper.beside(results):
        row = one["row"]
        title = spaced(f"{arm_label(row, results)}: {row['benchmark']} {row['subset']}, {row['metric']}")
        facts = [
            one["table"],
            number(one["paper"], 2),
            f"{number(one['ours'])} ({interval(row)})",
            points(one["sigma"]),
            one["doubt"] or "\u2013",
            one["differs"] or "\u2013",
        ]
        body.append((title, facts))
    return {
        "head": [
            "table",
            "paper",
            "here, 95 % interval",
            "difference in standard errors",
            "doubt about the printed value",
            "where our protocol differs",
        ],  # fmt: skip
        "rows": body,
    }


def change_table(results: dict) -> dict:
    """What the paper prints for data of this kind: each treated arm against its control.

    lower, higher: how many changes are at least two standard errors towards dishonesty, and away
    from it.
    """
    body, signs = [], []
    for one in paper.changes(results.get("study"), world(results)["stands_for"]):
        signs.append(one["sigma"] * (1 if one["benchmark"] == "deceptionbench" else -1))
        dose = dose_label((one["ratio"], one["level"] or ""))
        facts = [
            one["table"],
            f"{one['benchmark']} {spaced(one['subset'])}",
            number(one["control"]),
            number(one["treated"]),
            points(one["treated"] - one["control"]),
            points(one["sigma"]),
            one["doubt"] or "\u2013",
        ]
        body.append((f"{spaced(one['data'])}, {one['method'].upper()}, {one['model']}: {dose}", facts))
    return {
        "head": ["table", "measure", "control", "treated", "difference", "in standard errors", "doubt"],
        "rows": body,
        "lower": sum(sign >= 2 for sign in signs),
        "higher": sum(sign <= -2 for sign in signs),
    }


def row_table(results: dict) -> dict:
    """Every row of results.json."""
    plain_fields = ("round", "step", "benchmark", "subset", "metric", "versus", "judge", "n_dropped")
    head = [*plain_fields, "value", "95 % interval", "n_valid / n", "bounds", "states", "H / L / E / N / X"]
    body = []
    for row in results["rows"]:
        style = points if row.get("versus") else number
        value = None if row["value"] is None else style(row["value"])
        ends = " to ".join(style(end) for end in row["bounds"]) if row.get("bounds") else None
        states = ", ".join(f"{name} {count}" for name, count in sorted((row.get("states") or {}).items()))
        facts = [row.get(field) for field in plain_fields]
        # MASK's counts: honest, lie, evade, no belief, no verdict.
        counts = " / ".join(str(count) for count in row["counts"].values()) if row.get("counts") else None
        facts += [value, interval(row, style), f"{row['n_valid']}/{row['n']}", ends, states, counts]
        if any("draw" in one for one in results["rows"]):
            facts.append(row.get("draw"))
        body.append((arm_label(row, results), [plain(fact) for fact in facts]))
    if any("draw" in row for row in results["rows"]):
        head.append("draw")
    return {"head": [spaced(name) for name in head], "rows": body}


def draws(results: dict) -> list[str]:
    """A sentence for each way in which a model's own file, and not a benchmark's protocol, said how
    answers were drawn."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in results["rows"]:
        if "draw" in row:
            found.setdefault((row["benchmark"], row["draw"]), []).append(arm_label(row, results))
    return [
        f"{', '.join(dict.fromkeys(who))}: answers on {spaced(name)} were drawn {how}." for (name, how), who in found.items()
    ]


def selection_table(selections: list[dict]) -> dict:
    """What each arm was trained on."""
    usual = [
        "conversations",
        "turns",
        "top",
        "bottom",
        "records",
        "misaligned_records",
        "examples",
        "biased_share_top",
        "biased_share_bottom",
        "tokens",
    ]
    present = {key for row in selections for key in row} - {"arm", "ratio", "level", "origins"}
    head = [key for key in usual if key in present] + sorted(present - set(usual))
    body = []
    for row in selections:
        shares = {k: percent_of_one(v) for k, v in row.items() if k.startswith("biased_share") and v is not None}
        body.append((_budget_label(row), [plain((row | shares).get(key)) for key in head]))
    return {"head": [spaced(key) for key in head], "rows": body}


def _budget_label(row: dict) -> str:
    ratio = "" if row.get("ratio") is None else f" {row.get('level') or format(row['ratio'], 'g')}"
    return spaced(f"{row['arm']}{ratio}")


def origin_table(selections: list[dict]) -> dict:
    """Where the data of the arms come from; each source appears once."""
    origins = {(o["source"], o["level"], o["sha256"]): o for row in selections for o in row.get("origins", [])}
    head = list(dict.fromkeys(key for o in origins.values() for key in o if key not in ("source", "level")))
    body = [(f"{o['source']} {o['level']}".strip(), [plain(o.get(key)) for key in head]) for o in origins.values()]
    return {"head": [spaced(key) for key in head], "rows": body}
