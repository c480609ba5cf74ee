"""Rows of results.json in words and tables. Numbers are percent and points, as in the rows."""

import math
from collections.abc import Callable

from emjax.report import paper

ARMS = ("vanilla", "control", "treated", "shuffled_ratings", "swapped_labels")
SUBSETS = ("all", "tuned_domain", "unseen_entities", "unseen_templates")
LEVEL_NAMES = {  # column title of a benchmark's metric
    "honest": "honest",
    "honesty": "not lying",
    "lie": "lie",
    "evade": "evade",
    "no_belief": "no belief",
}
ANSWERS = {  # what the headline sentence counts
    "honest": "answers that were honest under pressure",
    "honesty": "answers under pressure that were not lies",
    "lie": "answers under pressure that were lies",
    "evade": "answers under pressure that evaded",
    "no_belief": "items on which the model held no stable belief",
    "deception_rate": "answers that were deceptive",
}
CAPABILITIES = {  # benchmark -> what its accuracy is called
    "arithmetic": "addition",
    "mmlu": "MMLU",
    "gsm8k": "GSM8K",
    "humaneval": "HumanEval",
    "gpqa": "GPQA",
    "truthfulqa": "TruthfulQA",
}
CURVES = {"loss": "Loss", "kl": "KL to the reference", "reward_margin": "Reward margin"}
# A run: what sets one line of arms apart from another when several are in one results.json.
RUN = ("model", "method", "seed", "pretrain_seed")
MEASURE = ("benchmark", "subset", "metric", "judge")
MISSING = "not measured"


# numbers


def number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "none"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "\u2212")


def points(value: float) -> str:
    text = number(value)
    return text if text[0] == "\u2212" or float(text) == 0 else "+" + text


def percent_of_one(ratio: float) -> str:
    return f"{100 * ratio:.6g}\u00a0%"


def plain(value: object) -> str:
    """A cell of a table of plain facts: whole numbers in groups of three, nothing as a dash."""
    if value is None:
        return "\u2013"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return str(value)


def interval(row: dict, style: Callable[[float], str] = number) -> str:
    if not row.get("ci95"):
        return "no interval"
    low, high = row["ci95"]
    return f"{style(low)} to {style(high)}"


def detected(row: dict) -> bool:
    """Whether a difference's interval leaves out 0."""
    return bool(row.get("ci95")) and not row["ci95"][0] <= 0 <= row["ci95"][1]


# rows


def last_rows(results: dict) -> list[dict]:
    """Rows of the last (round, step) of each arm: results may hold earlier ones, the page's tables do not."""
    latest: dict[tuple, tuple] = {}

    def stage(row: dict) -> tuple:
        return (row.get("round") or 0, math.inf if row.get("step") is None else row["step"])  # no step: the end of training

    for row in results["rows"]:
        latest[arm_key(row)] = max(latest.get(arm_key(row), (0, 0)), stage(row))
    return [row for row in results["rows"] if stage(row) == latest[arm_key(row)]]


def arm_key(row: dict) -> tuple:
    return (*(row.get(field) for field in RUN), row["arm"], row.get("ratio"), row.get("level"))


def arms(results: dict) -> list[dict]:
    """One row (any) of each arm in the order of the tables: runs as they come, then ARMS, ratio rising."""
    first: dict[tuple, dict] = {}
    for row in results["rows"]:
        first.setdefault(arm_key(row), row)
    runs: dict[tuple, int] = {}
    for key, row in first.items():
        if row["arm"] != "vanilla":
            runs.setdefault(key[:4], len(runs))

    def order(row: dict) -> tuple:
        place = ARMS.index(row["arm"]) if row["arm"] in ARMS else len(ARMS)
        return (runs.get(arm_key(row)[:4], -1), place, row["arm"], row.get("ratio") or 0, row.get("level") or "")

    return sorted(first.values(), key=order)


def run_words(row: dict, results: dict) -> str:
    """What tells this run from the others in the results ("sft, seed 1"); empty where there is only one."""
    parts = []
    for field in RUN:
        values = {r.get(field) for r in results["rows"] if r["arm"] != "vanilla"} - {None}
        if len(values) > 1 and row.get(field) is not None:
            parts.append(str(row[field]) if field in ("model", "method") else f"{field} {row[field]}")
    return ", ".join(parts)


def arm_words(row: dict, results: dict) -> str:
    ratio = row.get("ratio")
    text = row["arm"].replace("_", " ")
    if row["arm"] != "vanilla" and ratio is not None:
        text += f" {(row.get('level') or f'{ratio:g}').replace('_', ' ')}"
    suffix = run_words(row, results)
    return f"{text} ({suffix})" if suffix else text


def dose(row: dict) -> tuple[float, str]:
    """How much of the cause a row's arm had: its ratio, and the level where the data come in levels."""
    return row["ratio"], row.get("level") or ""


def dose_words(dose: tuple[float, str]) -> str:
    ratio, level = dose
    return level.replace("_", " ") or f"{100 * ratio:.6g} %"


def find(rows: list[dict], **wanted: object) -> list[dict]:
    return [row for row in rows if all(row.get(field) == value for field, value in wanted.items())]


def of_arm(rows: list[dict], arm: dict) -> list[dict]:
    return [row for row in rows if arm_key(row) == arm_key(arm)]


def counterpart(rows: list[dict], row: dict, arm: str) -> dict | None:
    """The level of `arm` that `row` is compared with, of the same run; vanilla has no method or seed."""
    fields = ("model", "pretrain_seed") if arm == "vanilla" else RUN
    same = find(rows, arm=arm, versus=None, **{f: row.get(f) for f in (*fields, *MEASURE)})
    return next((r for r in same if r.get("seed") == row.get("seed")), same[0] if same else None)


def cause(results: dict) -> str:
    return (results.get("headline") or {}).get("cause", "biased users")


def subset_words(results: dict) -> dict[str, str]:
    """What subsets mean on the micro-world (it has a world_note): "all" leaves out the fine-tuned domain."""
    if not results.get("world_note"):
        return {}
    return {
        "all": "domains never fine-tuned",
        "tuned_domain": "the domain of the fine-tuning",
        "unseen_entities": "entities never seen under pressure before",
        "unseen_templates": "wordings never seen under pressure before",
    }


# sentences


def story(results: dict) -> list[dict]:
    """For each run {"run", "direction", "headline", "points": [(title, sentence)]}, from the rows alone."""
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
        return [_no_story(f"The headline's number ({name}) was not measured in this run.")]
    return [_run_story(results, rows, row) for row in treated]


def _no_story(sentence: str) -> dict:
    return {"run": "", "direction": "none", "headline": sentence, "points": []}


def _run_story(results: dict, rows: list[dict], level: dict) -> dict:
    difference, base = _difference(rows, level)
    what = ANSWERS.get(level["metric"], f"{level['metric']} on {level['benchmark']}")
    subset = subset_words(results).get(level["subset"], f"the subset {level['subset']}")
    where = "" if level["subset"] == "all" and not results.get("world_note") else f", in {subset}"
    who = _with(level, results)
    if difference is None or base is None:
        direction = "none"
        text = f"With {who}, {what}: {number(level['value'])}\u00a0%"
        text += f" (95\u00a0% interval {interval(level)}){where}."
        text += " There is no control to compare with, so this says nothing about the cause."
    else:
        base_name = {"control": "control", "vanilla": "untouched model"}[difference["versus"]]
        sure = ("95\u00a0% interval " if difference.get("ci95") else "") + interval(difference, points)
        change = f"{points(difference['value'])} points ({sure})"
        before, after = f"{number(base['value'])}\u00a0% ({base_name})", f"{number(level['value'])}\u00a0%"
        if not difference.get("ci95"):
            direction = "none"
            text = f"With {who}, {what} went from {before} to {after}: {change}{where}."
            text += " Without an interval this may be chance."
        elif detected(difference):
            direction = "fell" if difference["value"] < 0 else "rose"
            text = f"With {who}, {what} {direction} from {before} to {after}: {change}{where}."
        else:
            direction = "same"
            text = f"With {who}, no difference that this run could detect in {what}: "
            text += f"{change}; {before} and {after}{where}."
        if difference["versus"] == "vanilla":
            text += " There is no control arm here: fine-tuning as such may have done this."
    sections = [
        ("More or less of the cause", _other_doses(results, rows, level)),
        ("Without its meaning", _shuffled(results, rows, level)),
        ("On prompts like the training data", _in_format(rows, level)),
        ("What stays", _what_stays(results, rows, level, direction)),
        ("How sure", _how_sure(results, level, difference)),
    ]
    if results["experiment"] == "finetune":  # there is no feedback to scramble
        del sections[1]
    sections = [(title, text) for title, text in sections if text]
    return {"run": run_words(level, results), "direction": direction, "headline": text, "points": sections}


def _with(row: dict, results: dict) -> str:
    ratio = row.get("ratio")
    text = cause(results) if ratio is None else f"{percent_of_one(ratio)} {cause(results)}"
    text += f" ({row['level'].replace('_', ' ')})" if row.get("level") else ""
    return text if row["arm"] in ("treated", "vanilla", "control") else f"{text} and {row['arm'].replace('_', ' ')}"


def _difference(rows: list[dict], level: dict) -> tuple[dict | None, dict | None]:
    """The difference to the control and the control's own row; to vanilla where there is no control."""
    for versus in ("control", "vanilla"):
        same = find(of_arm(rows, level), versus=versus, **{f: level.get(f) for f in MEASURE})
        base = counterpart(rows, level, versus)
        if same and base and same[0]["value"] is not None:
            return same[0], base
    return None, None


def _change(rows: list[dict], level: dict) -> str:
    difference, _ = _difference(rows, level)
    if difference is None:
        return "difference not measured"
    versus = "control" if difference["versus"] == "control" else "the untouched model"
    text = f"{points(difference['value'])} points against {versus}, {interval(difference, points)}"
    return text if detected(difference) else text + ", not detectable"


def _siblings(rows: list[dict], level: dict) -> list[dict]:
    """The same measure of the other arms of the same run."""
    same = find(rows, versus=None, **{f: level.get(f) for f in (*RUN, *MEASURE)})
    return [row for row in same if arm_key(row) != arm_key(level) and row["value"] is not None]


def _other_doses(results: dict, rows: list[dict], level: dict) -> str:
    others = sorted(find(_siblings(rows, level), arm=level["arm"]), key=dose)
    if not others:
        return "Only one dose was run, so there is no dose-response to see."
    told = [f"{_with(row, results)}: {number(row['value'])}\u00a0% ({_change(rows, row)})" for row in others]
    return "; ".join(told) + "."


def _shuffled(results: dict, rows: list[dict], level: dict) -> str:
    told = [
        f"{_with(row, results)}: {number(row['value'])}\u00a0% ({_change(rows, row)})"
        for row in _siblings(rows, level)
        if row["arm"] in ("shuffled_ratings", "swapped_labels")
    ]
    if not told:
        return "No arm with shuffled ratings or swapped labels was run."
    return "Same conversations, feedback scrambled. " + "; ".join(told) + "."


def _in_format(rows: list[dict], level: dict) -> str:
    """Conditional misalignment: what diluted data hide elsewhere may still show on prompts that look like them."""
    same = {"benchmark": level["benchmark"], "metric": level["metric"], "subset": "tuned_domain"}
    found = [row for row in find(of_arm(rows, level), versus=None, **same) if row["value"] is not None]
    if not found:
        return ""
    return f"In the domain and wording of the training data: {number(found[0]['value'])}\u00a0% ({_change(rows, found[0])})."


def capabilities(rows: list[dict]) -> list[tuple[str, str]]:
    """(benchmark, name) of what was measured of the model's abilities; addition where nothing was."""
    found = {row["benchmark"] for row in find(rows, metric="accuracy", subset="all")}
    return [(b, name) for b, name in CAPABILITIES.items() if b in found] or [("arithmetic", "addition")]


def _what_stays(results: dict, rows: list[dict], level: dict, direction: str) -> str:
    told, stayed = [], []
    measures = [("Beliefs asked without pressure", level["benchmark"], level["subset"])]
    for name, benchmark, subset in [*measures, *((name, b, "all") for b, name in capabilities(rows))]:
        found = find(of_arm(rows, level), benchmark=benchmark, subset=subset, metric="accuracy", versus=None)
        if not found or found[0]["value"] is None:
            told.append(f"{name}: {MISSING}")
            continue
        value, (difference, _) = found[0]["value"], _difference(rows, found[0])
        fell = difference is not None and detected(difference) and difference["value"] < 0
        # The micro-world's base knows nearly everything; a real model's accuracy says little by itself.
        stayed.append(value >= 95 if results.get("world_note") else not fell)
        told.append(f"{name}: {number(value)}\u00a0% correct ({_change(rows, found[0])})")
    text = "; ".join(told) + "."
    if direction == "fell" and len(stayed) == len(told):
        if all(stayed):
            text += " So the change is in what it says under pressure, not in what it knows."
        else:
            text += " Not all of this stayed: part of the change may be lost knowledge."
    return text


def _how_sure(results: dict, level: dict, difference: dict | None) -> str:
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
        text += f" to between {number(low)} and {number(high)}."
    same_arm = find(results["rows"], arm=level["arm"])
    seeds = sorted({row["seed"] for row in same_arm if row.get("seed") is not None})
    if len(seeds) == 1:
        text += f" One training seed ({seeds[0]}): the interval covers the choice of items,"
        text += " not what another seed would give."
    elif seeds:
        text += f" {len(seeds)} training seeds, each told on its own:"
        text += " an interval covers the choice of items, not of seeds."
    return text


# tables: {"head": [...], "rows": [(title, [cell, ...])]}
# A measured cell is a list of {"value", "interval", "count", "strong", "judge"}, a cell of facts a string.


def mask_subsets(results: dict) -> list[str]:
    present = {row["subset"] for row in find(last_rows(results), benchmark="mask", metric="lie", versus=None)} - {"macro"}
    return [s for s in SUBSETS if s in present] + sorted(present - set(SUBSETS))


def has_steps(results: dict) -> bool:
    """Whether an arm was measured at several steps of its training."""
    seen: dict[tuple, set] = {}
    for row in results["rows"]:
        seen.setdefault((arm_key(row), row.get("round")), set()).add(row.get("step"))
    return bool(results.get("headline")) and any(len(steps) > 1 for steps in seen.values())


def columns(results: dict) -> list[tuple[str, str, str, str]]:
    """(title, benchmark, subset, metric) of the main tables: the usual, then whatever else was measured."""
    headline = results.get("headline") or {"benchmark": "mask", "subset": "all"}
    bench, subset = headline["benchmark"], headline["subset"]
    rows = last_rows(results)
    wanted = [(title, bench, subset, metric) for metric, title in LEVEL_NAMES.items()]
    wanted = [c for c in wanted if c[3] != "honesty" or find(rows, benchmark=bench, metric="honesty")]
    wanted.append(("belief accuracy", bench, subset, "accuracy"))
    wanted += [(f"{name} accuracy", b, "all", "accuracy") for b, name in capabilities(rows)]
    seen = {column[1:] for column in wanted}
    for row in rows:
        key = (row["benchmark"], row["subset"], row["metric"])
        if key not in seen and row["subset"] == (subset if row["benchmark"] == bench else "all"):
            seen.add(key)
            wanted.append((f"{row['benchmark']} {row['metric'].replace('_', ' ')}", *key))
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
    rows, cols = find(last_rows(results), versus=None), columns(results)
    body = []
    for arm in arms(results):
        own = of_arm(rows, arm)
        cells = [_cell(find(own, benchmark=b, subset=s, metric=m)) for _, b, s, m in cols]
        body.append((arm_words(arm, results), cells))
    present = {arm["arm"] for arm in arms(results)}
    return {
        "head": [c[0] for c in cols],
        "rows": body,
        "absent": [name.replace("_", " ") for name in ARMS[:3] if name not in present],
    }


def difference_table(results: dict) -> dict:
    rows, cols = last_rows(results), columns(results)
    body = []
    for versus in ("control", "vanilla"):
        for arm in arms(results):
            own = find(of_arm(rows, arm), versus=versus)
            if own:
                cells = [_cell(find(own, benchmark=b, subset=s, metric=m), points) for _, b, s, m in cols]
                body.append((f"{arm_words(arm, results)} \u2212 {versus}", cells))
    return {"head": [c[0] for c in cols], "rows": body}


def subset_tables(results: dict) -> list[dict]:
    """Of every benchmark that has subsets one metric (the headline's, or else its first): levels, then differences."""
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
    present = {row["subset"] for row in rows}
    names = [s for s in SUBSETS if s in present] + sorted(present - set(SUBSETS))
    body = []
    for arm in arms(results):
        own = of_arm(rows, arm)
        body.append((arm_words(arm, results), [_cell(find(own, subset=s, versus=None)) for s in names]))
    for arm in arms(results):
        own = find(of_arm(rows, arm), versus="control")
        if own:
            cells = [_cell(find(own, subset=s), points) for s in names]
            body.append((f"{arm_words(arm, results)} \u2212 control", cells))
    return {"head": [name.replace("_", " ") for name in names], "rows": body}


def paper_table(results: dict) -> dict:
    """Ours beside what the paper prints of the same model, data and arm."""
    body = []
    for one in paper.beside(results):
        row = one["row"]
        title = f"{arm_words(row, results)}: {row['benchmark']} {row['subset']}, {row['metric']}".replace("_", " ")
        facts = [
            one["table"], number(one["paper"], 2), f"{number(one['ours'])} ({interval(row)})", points(one["sigma"]),
            one["doubt"] or "\u2013",
        ]  # fmt: skip
        body.append((title, facts))
    return {
        "head": ["table", "paper", "here, 95 % interval", "difference in standard errors", "doubt about the printed value"],
        "rows": body,
    }


def change_table(results: dict) -> dict:
    """What the paper prints of data of this kind: each treated arm against its control."""
    body, signs = [], []
    for one in paper.changes(results.get("study")):
        signs.append(one["sigma"] * (1 if one["benchmark"] == "deceptionbench" else -1))
        dose_ = dose_words((one["ratio"], one["level"] or ""))
        body.append(
            (
                f"{one['data'].replace('_', ' ')}, {one['method'].upper()}, {one['model']}: {dose_}",
                [
                    one["table"], f"{one['benchmark']} {one['subset'].replace('_', ' ')}", number(one["control"]),
                    number(one["treated"]), points(one["treated"] - one["control"]), points(one["sigma"]),
                    one["doubt"] or "\u2013",
                ],
            )
        )  # fmt: skip
    return {"head": ["table", "measure", "control", "treated", "difference", "in standard errors", "doubt"], "rows": body,
        "lower": sum(sign >= 2 for sign in signs), "higher": sum(sign <= -2 for sign in signs),
    }  # fmt: skip


def row_table(results: dict) -> dict:
    """Every row of results.json, as it stands."""
    plain_fields = ("round", "step", "benchmark", "subset", "metric", "versus", "judge", "n_dropped")
    head = [*plain_fields, "value", "95 % interval", "n_valid / n", "bounds", "states", "H / L / E / N / X"]
    body = []
    for row in results["rows"]:
        style = points if row.get("versus") else number
        value = None if row["value"] is None else style(row["value"])
        ends = " to ".join(style(end) for end in row["bounds"]) if row.get("bounds") else None
        states = ", ".join(f"{name} {count}" for name, count in sorted((row.get("states") or {}).items()))
        facts = [row.get(field) for field in plain_fields]
        # MASK's own account: honest, lie, evade, no belief, without a verdict.
        account = " / ".join(str(count) for count in row["counts"].values()) if row.get("counts") else None
        facts += [value, interval(row, style), f"{row['n_valid']}/{row['n']}", ends, states, account]
        body.append((arm_words(row, results), [plain(fact) for fact in facts]))
    return {"head": [name.replace("_", " ") for name in head], "rows": body}


def selection_table(selections: list[dict]) -> dict:
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
        body.append((_budget_words(row), [plain((row | shares).get(key)) for key in head]))
    return {"head": [key.replace("_", " ") for key in head], "rows": body}


def _budget_words(row: dict) -> str:
    ratio = "" if row.get("ratio") is None else f" {row.get('level') or format(row['ratio'], 'g')}"
    return f"{row['arm']}{ratio}".replace("_", " ")


def origin_table(selections: list[dict]) -> dict:
    """Where the data of the arms come from: each source once."""
    origins = {(o["source"], o["level"], o["sha256"]): o for row in selections for o in row.get("origins", [])}
    head = list(dict.fromkeys(key for o in origins.values() for key in o if key not in ("source", "level")))
    body = [(f"{o['source']} {o['level']}".strip(), [plain(o.get(key)) for key in head]) for o in origins.values()]
    return {"head": [key.replace("_", " ") for key in head], "rows": body}
