"""Several experiments side by side: the effect of each, and which of the paper's claims it
shows."""

import itertools
import math
from typing import Any

from emjax.report.rows import MARGIN, arm_key, cause, detected, dose, dose_label, ends, find, last_rows, same, world
from emjax.report.text import MISSING, interval, number, points

Claim = tuple[str, list[str]]  # the claim, [whether the grid shows it, what was measured]
_OPEN = "not settled"


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
    text = f"{points(row['value'])} ({interval(row, points)})"
    if row.get("ci95_training"):
        text += f", with the noise of training {interval({'ci95': row['ci95_training']}, points)}"
    return text


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
                f"{number(level['value'])} ({interval(level)}), n {level['n_valid']}",
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
            body += [_falls(study, rows), *_rising(study, rows, control), *_at_doses(study, rows, control), _kept(study)]
            body += _control_stays(study)
    return {"head": ["shown here", "measured"], "rows": body}


def _answer(yes: bool, no: bool) -> str:
    return "yes" if yes else "no" if no else _OPEN


def _falls(study: dict[str, Any], rows: list[dict]) -> Claim:
    """Shown by the largest dose. The smaller ones are tested in falling order as far as each shows
    it, so that all of these tests together err as seldom as one."""
    fell = [detected(row) and row["value"] < 0 for row in rows]
    down = list(itertools.takewhile(lambda pair: pair[1], zip(reversed(rows), reversed(fell), strict=True)))
    text = f"{_difference(rows[-1])} against the control at the largest dose"
    text += f"; detected from {dose_label(dose(down[-1][0]))} up" if down else ""
    answer = _answer(bool(down), (ends(rows[-1]) or [-MARGIN])[0] > -MARGIN)
    return f"{study['name']}: honesty under pressure falls", [answer, text]


def dose_effect(first: dict, last: dict) -> tuple[float, float, float]:
    """(difference, low, high) of two arms' differences to one control. What they share makes it
    vary less than independent intervals would, which are assumed."""
    (low1, high1), (low2, high2) = ends(first) or (-math.inf, math.inf), ends(last) or (-math.inf, math.inf)
    value = last["value"] - first["value"]
    low = value - math.hypot(last["value"] - low2, high1 - first["value"])
    return value, low, value + math.hypot(high2 - last["value"], first["value"] - low1)


def _rising(study: dict[str, Any], rows: list[dict], control: dict) -> list[Claim]:
    """Whether the largest dose costs more than the smallest."""
    if len(rows) == 1:
        return []
    value, low, high = dose_effect(rows[0], rows[-1])
    levels = ", ".join(number(row["value"]) for row in (control, *_treated(study, None)))
    text = f"{points(value)} ({points(low)} to {points(high)}) between the smallest and the largest dose; levels {levels}"
    return [(f"{study['name']}: a larger dose costs more honesty", [_answer(high < 0, low > 0), text])]


def _at_doses(study: dict[str, Any], rows: list[dict], control: dict) -> list[Claim]:
    """Claims about one dose, where that dose was run."""
    name, claims = study["name"], []
    at = {row["ratio"]: row for row in reversed(rows) if not row.get("level")}
    if 0.01 in at:
        before = (at[0.01].get("levels") or [0, control["value"]])[1]
        share = 100 * at[0.01]["value"] / before
        low, high = (100 * end / before for end in ends(at[0.01]) or (-math.inf, math.inf))
        text = f"{number(share)} % of the control's ({number(low)} to {number(high)}); {_difference(at[0.01])} points"
        claim = f"{name}: 1 % {cause(study['results'])} costs more than 20 % of honesty"
        claims.append((claim, [_answer(high < -20, low > -20), text]))
    if 0.1 in at and study["results"].get("study") == "conversations":
        answer = _answer(detected(at[0.1]) and at[0.1]["value"] < 0, (ends(at[0.1]) or [-MARGIN])[0] > -MARGIN)
        claims.append((f"{name}: 10 % biased users are enough", [answer, _difference(at[0.1])]))
    return claims


def _kept(study: dict[str, Any]) -> Claim:
    """Every arm and measure must be shown to have lost less than MARGIN; one that is shown to have
    lost more decides against it."""
    found = find(last_rows(study["results"]), arm="treated", metric="accuracy", versus="control")
    found = [row for row in found if row["value"] is not None]
    rows = find(found, subset="all")
    tuned = max(find(found, subset=world(study["results"])["trained_subset"]), key=dose, default=None)
    answers = [same(row, loss=True) for row in rows]
    least = min(rows, key=lambda row: (ends(row) or [-math.inf])[0], default=None)
    text = MISSING
    if least is not None:
        text = f"least sure {_difference(least)} ({least['benchmark']}, {dose_label(dose(least))})"
        text += f"; shown in {answers.count('yes')} of {len(rows)} arms and measures"
    if tuned is not None:
        text += f"; beliefs in the domain of the training data, largest dose: {_difference(tuned)}"
    answer = _answer(bool(rows) and set(answers) == {"yes"}, "no" in answers)
    return f"{study['name']}: knowledge and abilities are kept, within {MARGIN:g} points", [answer, text]


def _control_stays(study: dict[str, Any]) -> list[Claim]:
    moved = _control(study, "vanilla")
    if moved is None:
        return []
    text = f"{_difference(moved)}; the paper's controls move too (MASK, provided facts: up)"
    return [(f"{study['name']}: the control matches the untouched model, within {MARGIN:g} points", [same(moved), text])]
