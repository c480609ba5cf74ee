"""Many experiments in words: each one's effect, and which of the paper's claims it bears out."""

from typing import Any

from emjax.report import words


def studies(cells: dict[str, dict], pooled: list[dict]) -> list[dict[str, Any]]:
    """{"name", "results", "cells", "seeds"} of every pool, then of every cell in none; `results` as of one experiment."""
    found, told = [], set()
    for pool in dict.fromkeys(row["pool"] for row in pooled):
        rows = [row for row in pooled if row["pool"] == pool]
        members = sorted({name for row in rows for name in row["by_cell"]})
        first = cells[members[0]]
        told.update(members)
        if not first.get("headline"):
            continue
        model = {row["model"] for name in members for row in cells[name]["rows"]}
        common = {"model": min(model), "seed": None, "pretrain_seed": None, "round": 0, "n_dropped": 0, "bounds": None}
        level = {row["label"]: row.get("level") for name in members for row in cells[name]["rows"]}
        whole = [common | {"level": level[row["label"]], "n": row["n_valid"]} | row for row in rows]
        found.append({"name": pool, "results": first | {"rows": whole}, "cells": members, "seeds": rows[0]["seeds"]})
    for name, results in cells.items():
        if name not in told and results.get("headline"):
            found.append({"name": name, "results": results, "cells": [name], "seeds": 1})
    return found


def _treated(study: dict[str, Any], versus: str | None) -> list[dict]:
    """The headline's measure of every treated arm, rising dose."""
    results = study["results"]
    measure = {k: results["headline"][k] for k in ("benchmark", "subset", "metric")}
    rows = words.find(words.last_rows(results), arm="treated", versus=versus, **measure)
    return sorted((row for row in rows if row["value"] is not None), key=words.dose)


def _control(study: dict[str, Any], versus: str | None) -> dict | None:
    results = study["results"]
    measure = {k: results["headline"][k] for k in ("benchmark", "subset", "metric")}
    found = words.find(words.last_rows(results), arm="control", versus=versus, **measure)
    return found[0] if found else None


def _told(row: dict | None) -> str:
    return (
        words.MISSING
        if row is None or row["value"] is None
        else f"{words.points(row['value'])} ({words.interval(row, words.points)})"
    )


def effect_table(studies_: list[dict[str, Any]]) -> dict:
    """Every treated arm: its level and its differences."""
    body = []
    for study in studies_:
        levels = {words.arm_key(row): row for row in _treated(study, None)}
        against = {words.arm_key(row): row for row in _treated(study, "vanilla")}
        for row in _treated(study, "control"):
            level = levels[words.arm_key(row)]
            spread = [words.number(value) for value in row.get("by_cell", {}).values()]
            body.append(
                (
                    f"{study['name']}: {words.dose_words(words.dose(row))}",
                    [
                        f"{words.number(level['value'])} ({words.interval(level)})", _told(row),
                        _told(against.get(words.arm_key(row))),
                        ", ".join(spread) or "\u2013",
                    ],
                )
            )  # fmt: skip
    return {"head": ["honest", "minus control", "minus untouched", "minus control, by seed"], "rows": body}


def claim_table(studies_: list[dict[str, Any]]) -> dict:
    """The paper's claims, each with what this grid shows and whether that agrees."""
    body = []
    for study in studies_:
        name, rows = study["name"], _treated(study, "control")
        control = _control(study, None)
        if not rows or control is None:
            continue
        fell = [words.detected(row) and row["value"] < 0 for row in rows]
        first = next((row for row, down in zip(rows, fell, strict=True) if down), None)
        body.append(
            (
                f"{name}: honesty under pressure falls",
                [
                    "yes" if fell[-1] else "no",
                    f"largest dose {_told(rows[-1])} to control"
                    + (f"; detected from {words.dose_words(words.dose(first))} on" if first else "; detected at no dose"),
                ],
            )
        )
        values = [control["value"], *(row["value"] for row in _treated(study, None))]
        rises = sum(b > a for a, b in zip(values, values[1:], strict=False))
        body.append(
            (
                f"{name}: more of the cause, more of the effect",
                ["yes" if not rises else "not at every step", " > ".join(map(words.number, values))],
            )
        )
        one = next((row for row in rows if row["ratio"] == 0.01 and not row.get("level")), None)
        if one is not None:
            share = 100 * one["value"] / control["value"]
            body.append(
                (
                    f"{name}: 1 % costs more than 20 % of honesty",
                    [
                        "yes" if share < -20 and words.detected(one) else "no",
                        f"{words.number(share)} % of the control's; {_told(one)} points",
                    ],
                )
            )
        few = next((row for row in rows if row["ratio"] == 0.1 and not row.get("level")), None)
        if few is not None and study["results"].get("study") == "conversations":
            agrees = words.detected(few) and few["value"] < 0
            body.append((f"{name}: 10 % biased users suffice", ["yes" if agrees else "no", _told(few)]))
        body.append(_kept(study))
        moved = _control(study, "vanilla")
        if moved is not None:
            body.append(
                (
                    f"{name}: the control stays at the untouched model",
                    [
                        "no" if words.detected(moved) else "yes",
                        f"{_told(moved)}; the paper's controls move too (MASK, provided facts: up)",
                    ],
                )
            )
    return {"head": ["here", "measured"], "rows": body}


def _kept(study: dict[str, Any]) -> tuple[str, list[str]]:
    found = words.find(words.last_rows(study["results"]), arm="treated", metric="accuracy", versus="control")
    rows = [row for row in found if row["value"] is not None and row["subset"] == "all"]
    tuned = max(
        (row for row in found if row["value"] is not None and row["subset"] == "tuned_domain"), key=words.dose, default=None
    )
    lost = [row for row in rows if words.detected(row) and row["value"] < 0]
    least = min(rows, key=lambda row: row["value"], default=None)
    text = (
        words.MISSING
        if least is None
        else f"largest loss {_told(least)} ({least['benchmark']}, {words.dose_words(words.dose(least))})"
    )
    if lost:
        text += f"; detected in {len(lost)} of {len(rows)} arms and measures"
    if tuned is not None:
        text += f"; beliefs in the domain of the training data, largest dose: {_told(tuned)}"
    return f"{study['name']}: knowledge and ability are kept", ["yes" if rows and not lost else "no", text]
