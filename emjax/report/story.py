"""What a run showed, in sentences.

Each number is taken from the rows; a missing one is reported as missing.
"""

from emjax.report.rows import (
    MARGIN,
    MEASURE,
    RUN,
    arm_key,
    capabilities,
    cause,
    counterpart,
    detected,
    dose,
    find,
    last_rows,
    of_arm,
    run_label,
    same,
    world,
)
from emjax.report.text import METRIC_SHARES, MISSING, interval, number, percent_of_one, points, spaced


def story(results: dict) -> list[dict]:
    """For each run {"run", "direction", "headline", "points": [(title, sentence)]}.

    direction: "fell", "rose", "same" (no change detected) or "none" (nothing to compare with).
    """
    headline = results.get("headline")
    if not headline:
        return [_no_story("results.json names no headline; the tables below hold what was measured.")]
    rows = last_rows(results)
    keys = ("benchmark", "subset", "metric", "arm", "ratio")
    known = {k: headline[k] for k in (*keys, *({"judge"} & headline.keys()))}
    treated = find(rows, versus=None, level=headline.get("level"), **known)
    treated = [row for row in treated if row["value"] is not None]
    if not treated:
        ratio = "" if headline["ratio"] is None else f" {headline['ratio']:g}"
        name = f"{headline['metric']} of arm {headline['arm']}{ratio}"
        return [_no_story(f"This run did not measure the headline's number ({name}).")]
    return [_run_story(results, rows, row) for row in treated]


def _no_story(sentence: str) -> dict:
    return {"run": "", "direction": "none", "headline": sentence, "points": []}


def _run_story(results: dict, rows: list[dict], level: dict) -> dict:
    difference, base = _difference(rows, level)
    direction, headline = _headline(results, level, difference, base)
    sections = [
        ("Other doses", _other_doses(results, rows, level)),
        ("Scrambled feedback", _shuffled(results, rows, level)),
        ("Prompts like the training data", _like_training(results, rows, level)),
        ("Beliefs and abilities", _beliefs(results, rows, level, direction)),
        ("Uncertainty", _uncertainty(results, level, difference)),
    ]
    if results["experiment"] == "finetune":  # there is no feedback to scramble
        del sections[1]
    sections = [(title, text) for title, text in sections if text]
    return {"run": run_label(level, results), "direction": direction, "headline": headline, "points": sections}


def _headline(results: dict, level: dict, difference: dict | None, base: dict | None) -> tuple[str, str]:
    """The direction and the sentence."""
    what = METRIC_SHARES.get(level["metric"], f"{level['metric']} on {level['benchmark']}")
    where, who = _where(results, level["subset"]), _with(level, results)
    after = f"{number(level['value'])}\u00a0%"
    if difference is None or base is None:
        text = f"With {who}, {what} was {after} (95\u00a0% interval {interval(level)}){where}."
        return "none", text + " There is no control to compare with, so this number says nothing about the cause."
    own, other = difference.get("levels") or (level["value"], base["value"])  # of the items that both have
    after = f"{number(own)}\u00a0%"
    before = f"{number(other)}\u00a0% ({'control' if difference['versus'] == 'control' else 'untouched model'})"
    sure = ("95\u00a0% interval " if difference.get("ci95") else "") + interval(difference, points)
    change = f"{points(difference['value'])} points ({sure})"
    if not difference.get("ci95"):
        direction = "none"
        text = f"With {who}, {what} went from {before} to {after}: {change}{where}."
        text += " Without an interval, the change may be chance."
    elif detected(difference):
        direction = "fell" if difference["value"] < 0 else "rose"
        text = f"With {who}, {what} {direction} from {before} to {after}: {change}{where}."
    else:
        direction = "same"
        text = f"With {who}, this run detected no change in {what}: {before} and {after}, {change}{where}."
        shown = (
            f"The change is within {MARGIN:g} points" if same(difference) == "yes" else "That does not show that there is none"
        )
        text += f" {shown}."
    if difference["versus"] == "vanilla":
        text += " This run has no control arm, so fine-tuning itself may be the cause."
    return direction, text


def _where(results: dict, subset: str) -> str:
    """Where the headline was measured; "" for all items of a benchmark that a world says nothing
    about.
    """
    meaning = world(results)["subsets"].get(subset)
    if meaning is None:
        return "" if subset == "all" else f", in the subset {subset}"
    return f", in {meaning}"


def _with(row: dict, results: dict) -> str:
    ratio = row.get("ratio")
    text = cause(results) if ratio is None else f"{percent_of_one(ratio)} {cause(results)}"
    text += f" ({spaced(row['level'])})" if row.get("level") else ""
    return text if row["arm"] in ("treated", "vanilla", "control") else f"{text} and {spaced(row['arm'])}"


def _difference(rows: list[dict], level: dict) -> tuple[dict | None, dict | None]:
    """The difference to the control and the control's own row; to vanilla where there is no
    control.
    """
    for versus in ("control", "vanilla"):
        found = find(of_arm(rows, level), versus=versus, **{f: level.get(f) for f in MEASURE})
        base = counterpart(rows, level, versus)
        if found and base and found[0]["value"] is not None:
            return found[0], base
    return None, None


def _measured(rows: list[dict], level: dict, counted: str = "") -> str:
    """A level and its change: "61.5 % (-3.1 points against the control, -7.0 to +0.8, not
    detected)".
    """
    value = f"{number(level['value'])}\u00a0%{counted}"
    difference, _ = _difference(rows, level)
    if difference is None:
        return f"{value} (difference not measured)"
    versus = "the control" if difference["versus"] == "control" else "the untouched model"
    change = f"{points(difference['value'])} points against {versus}, {interval(difference, points)}"
    return f"{value} ({change}{'' if detected(difference) else ', not detected'})"


def _siblings(rows: list[dict], level: dict) -> list[dict]:
    """The same measure of the other arms of the same run."""
    found = find(rows, versus=None, **{f: level.get(f) for f in (*RUN, *MEASURE)})
    return [row for row in found if arm_key(row) != arm_key(level) and row["value"] is not None]


def _other_doses(results: dict, rows: list[dict], level: dict) -> str:
    others = sorted(find(_siblings(rows, level), arm=level["arm"]), key=dose)
    if not others:
        return "This run has only one dose, so it shows no dose-response."
    return "; ".join(f"{_with(row, results)}: {_measured(rows, row)}" for row in others) + "."


def _shuffled(results: dict, rows: list[dict], level: dict) -> str:
    scrambled = [row for row in _siblings(rows, level) if row["arm"] in ("shuffled_ratings", "swapped_labels")]
    if not scrambled:
        return "This run has no arm with shuffled ratings or swapped labels."
    parts = [f"{_with(row, results)}: {_measured(rows, row)}" for row in scrambled]
    text = "The conversations are the same, but the feedback is scrambled: treatments of their own, not measures of noise. "
    return text + "; ".join(parts) + "."


def _like_training(results: dict, rows: list[dict], level: dict) -> str:
    """Conditional misalignment: diluted data may show no effect elsewhere, and yet one on prompts
    that resemble them.
    """
    wanted = {"benchmark": level["benchmark"], "metric": level["metric"], "subset": world(results)["trained_subset"]}
    there = [row for row in find(of_arm(rows, level), versus=None, **wanted) if row["value"] is not None]
    return f"In the domain and wording of the training data: {_measured(rows, there[0])}." if there else ""


def _beliefs(results: dict, rows: list[dict], level: dict, direction: str) -> str:
    floor = world(results)["knowledge_floor"]
    parts, kept = [], []
    measures = [("Beliefs without pressure", level["benchmark"], level["subset"])]
    for name, benchmark, subset in [*measures, *((name, b, "all") for b, name in capabilities(rows))]:
        found = find(of_arm(rows, level), benchmark=benchmark, subset=subset, metric="accuracy", versus=None)
        if not found or found[0]["value"] is None:
            parts.append(f"{name}: {MISSING}")
            continue
        difference, _ = _difference(rows, found[0])
        parts.append(f"{name}: {_measured(rows, found[0], ' correct')}")
        # A world may say how much a model must know for its answers to count as lies.
        low = floor is not None and found[0]["value"] < floor
        kept.append("no" if low else same(difference, loss=True) if difference else "not settled")
    text = "; ".join(parts) + "."
    if direction == "fell" and len(kept) == len(parts):
        if set(kept) == {"yes"}:
            text += f" It lost less than {MARGIN:g} points of each, so the change is in what the model says under pressure,"
            text += " not in what it knows."
        elif "no" in kept:
            text += " The model lost some of this, so part of the change may be lost knowledge."
        else:
            text += f" Whether it lost less than {MARGIN:g} points of each is not settled, so part of the change may be lost"
            text += " knowledge."
    return text


def _uncertainty(results: dict, level: dict, difference: dict | None) -> str:
    counted = difference or level
    text = f"{counted['n_valid']} of {counted['n']} items valid"
    if counted.get("clusters"):
        text += f", in {counted['clusters']} clusters"
    shared = counted.get("cluster")
    text += f" (items that share a {shared} count as one cluster)" if shared else " (not clustered)"
    text += "; both models answered the same items." if difference else "."
    if level["n_dropped"]:
        low, high = level["bounds"]
        text += f" {level['n_dropped']} dropped answers could move {number(level['value'])}\u00a0%"
        text += f" to anywhere between {number(low)} and {number(high)}."
    same_arm = find(results["rows"], arm=level["arm"])
    seeds = sorted({row["seed"] for row in same_arm if row.get("seed") is not None})
    if wider := counted.get("ci95_training"):
        text += f" The interval {interval(counted, points)} covers the choice of items. With the noise of training, as it was"
        text += (
            f" measured between other seeds, it is {interval({'ci95': wider}, points)}; this one decides whether a change was"
        )
        text += " detected."
    elif seeds:
        number_of = (
            f"One training seed ({seeds[0]})" if len(seeds) == 1 else f"{len(seeds)} training seeds, each reported separately"
        )
        text += f" {number_of}: the interval covers the choice of items. It excludes the noise of training, which was not"
        text += " measured here: another seed would move even a control."
    return text
