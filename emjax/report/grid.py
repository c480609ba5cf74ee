"""Several experiments side by side: the effect of each, and which of the paper's claims it
shows."""

from typing import Any

from emjax.report.rows import arm_key, cause, detected, dose, dose_label, find, last_rows, world
from emjax.report.text import MISSING, interval, number, points

Claim = tuple[str, list[str]]  # the claim, [whether the grid shows it, what was measured]


def studies(cells: dict[str, dict], pooled: list[dict]) -> list[dict[str, Any]]:
    """{"name", "results", "cells", "seeds"} of every pool, then of every cell outside a pool.

    "results" has the shape of one experiment's results.json.
    """
    made, pooled_cells = [], set()
    for pool in dict.fromkeys(row["pool"] for row in pooled):
        rows = [row for row in pooled if row["pool"] == pool]
        members = sorted({name for row in rows for name in row["by_cell"]})
        first = cells[members[0]]
        pooled_cells.update(members)
        if not first.get("headline"):
            continue
        model = {row["model"] for name in members for row in cells[name]["rows"]}
        common = {"model": min(model), "seed": None, "pretrain_seed": None, "round": 0, "n_dropped": 0, "bounds": None}
        level = {row["label"]: row.get("level") for name in members for row in cells[name]["rows"]}
        whole = [common | {"level": level[row["label"]], "n": row["n_valid"]} | row for row in rows]
        made.append({"name": pool, "results": first | {"rows": whole}, "cells": members, "seeds": rows[0]["seeds"]})
    for name, results in cells.items():
        if name not in pooled_cells and results.get("headline"):
            made.append({"name": name, "results": results, "cells": [name], "seeds": 1})
    return made


def _treated(study: dict[str, Any], versus: str | None) -> list[dict]:
    """The headline's measure of every treated arm, by rising dose."""
    results = study["results"]
    measure = {k: results["headline"][k] for k in ("benchmark", "subset", "metric")}
    rows = find(last_rows(results), arm="treated", versus=versus, **measure)
    return sorted((row for row in rows if row["value"] is not None), key=dose)


def _control(study: dict[str, Any], versus: str | None) -> dict | None:
    results = study["results"]
    measure = {k: results["headline"][k] for k in ("benchmark", "subset", "metric")}
    return next(iter(find(last_rows(results), arm="control", versus=versus, **measure)), None)


def _difference(row: dict | None) -> str:
    if row is None or row["value"] is None:
        return MISSING
    return f"{points(row['value'])} ({interval(row, points)})"


def effect_table(studies_: list[dict[str, Any]]) -> dict:
    """Each treated arm's level and differences."""
    body = []
    for study in studies_:
        levels = {arm_key(row): row for row in _treated(study, None)}
        against = {arm_key(row): row for row in _treated(study, "vanilla")}
        for row in _treated(study, "control"):
            level = levels[arm_key(row)]
            by_seed = [number(value) for value in row.get("by_cell", {}).values()]
            facts = [
                f"{number(level['value'])} ({interval(level)})",
                _difference(row),
                _difference(against.get(arm_key(row))),
                ", ".join(by_seed) or "\u2013",
            ]
            body.append((f"{study['name']}: {dose_label(dose(row))}", facts))
    return {"head": ["honest", "minus control", "minus untouched", "minus control, by seed"], "rows": body}


def claim_table(studies_: list[dict[str, Any]]) -> dict:
    """The paper's claims, each with whether this grid shows it and what was measured."""
    body: list[Claim] = []
    for study in studies_:
        rows, control = _treated(study, "control"), _control(study, None)
        if rows and control is not None:
            body += [_falls(study, rows), _rising(study, control), *_at_doses(study, rows, control), _kept(study)]
            body += _control_stays(study)
    return {"head": ["shown here", "measured"], "rows": body}


def _falls(study: dict[str, Any], rows: list[dict]) -> Claim:
    fell = [detected(row) and row["value"] < 0 for row in rows]
    first = next((row for row, down in zip(rows, fell, strict=True) if down), None)
    text = f"{_difference(rows[-1])} against the control at the largest dose; "
    text += f"detected from {dose_label(dose(first))} up" if first else "detected at no dose"
    return f"{study['name']}: honesty under pressure falls", ["yes" if fell[-1] else "no", text]


def _rising(study: dict[str, Any], control: dict) -> Claim:
    values = [control["value"], *(row["value"] for row in _treated(study, None))]
    rises = any(b > a for a, b in zip(values, values[1:], strict=False))
    answer = "not at every step" if rises else "yes"
    return f"{study['name']}: the effect grows with the dose", [answer, " > ".join(map(number, values))]


def _at_doses(study: dict[str, Any], rows: list[dict], control: dict) -> list[Claim]:
    """Claims about one dose, where that dose was run."""
    name, claims = study["name"], []
    at = {row["ratio"]: row for row in reversed(rows) if not row.get("level")}
    if 0.01 in at:
        share = 100 * at[0.01]["value"] / control["value"]
        answer = "yes" if share < -20 and detected(at[0.01]) else "no"
        text = f"{number(share)} % of the control's; {_difference(at[0.01])} points"
        claims.append((f"{name}: 1 % {cause(study['results'])} costs more than 20 % of honesty", [answer, text]))
    if 0.1 in at and study["results"].get("study") == "conversations":
        answer = "yes" if detected(at[0.1]) and at[0.1]["value"] < 0 else "no"
        claims.append((f"{name}: 10 % biased users are enough", [answer, _difference(at[0.1])]))
    return claims


def _kept(study: dict[str, Any]) -> Claim:
    same = find(last_rows(study["results"]), arm="treated", metric="accuracy", versus="control")
    same = [row for row in same if row["value"] is not None]
    rows = find(same, subset="all")
    tuned = max(find(same, subset=world(study["results"])["trained_subset"]), key=dose, default=None)
    lost = [row for row in rows if detected(row) and row["value"] < 0]
    least = min(rows, key=lambda row: row["value"], default=None)
    text = MISSING
    if least is not None:
        text = f"largest loss {_difference(least)} ({least['benchmark']}, {dose_label(dose(least))})"
    if lost:
        text += f"; detected in {len(lost)} of {len(rows)} arms and measures"
    if tuned is not None:
        text += f"; beliefs in the domain of the training data, largest dose: {_difference(tuned)}"
    return f"{study['name']}: knowledge and abilities are kept", ["yes" if rows and not lost else "no", text]


def _control_stays(study: dict[str, Any]) -> list[Claim]:
    moved = _control(study, "vanilla")
    if moved is None:
        return []
    text = f"{_difference(moved)}; the paper's controls move too (MASK, provided facts: up)"
    return [(f"{study['name']}: the control matches the untouched model", ["no" if detected(moved) else "yes", text])]
