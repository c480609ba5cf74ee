"""The plots. Their bytes depend on the input alone. matplotlib is imported when a plot is drawn."""

import io
import math
import re
from collections.abc import Callable
from typing import Any

from emjax.report.rows import (
    RUN,
    arm_label,
    arms,
    capabilities,
    cause,
    dose,
    dose_label,
    find,
    last_rows,
    of_arm,
    run_label,
)
from emjax.report.text import CURVES, METRIC_PLOTS, METRIC_TITLES, MISSING, spaced

# Okabe and Ito's colours, which colour-blind readers can distinguish; every series also has its own
# marker.
BLUE, ORANGE, GREEN, PINK, AMBER, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#6B6B6B"
_STYLE = {
    "svg.hashsalt": "emjax",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "text.color": "#222222",
    "legend.frameon": False,
    "legend.fontsize": 10,
}
_MARKS = {"shuffled_ratings": ("D", ORANGE), "swapped_labels": ("s", PINK)}


def picture(results: dict, format: str = "svg") -> bytes:
    """The README's picture: the dose-response curve beside beliefs and abilities. format: "svg" or
    "png".
    """
    return _draw([(dose_response, results), (beliefs, results)], format, (9.6, 4.5))


def picture_of(named: list[tuple[str, dict]], format: str = "svg") -> bytes:
    """A grid's picture: one dose-response curve for each (name, results), two in a row."""
    return _draw(
        [(dose_response, results, name) for name, results in named], format, (9.6, 4.3 * -(-len(named) // 2)), columns=2
    )


def inline(name: str, plot: Callable[..., None], *arguments: Any, height: float = 3.9) -> str:
    """One plot as an <svg> element for the page. The prefix `name` keeps its ids apart from those
    of other plots.
    """
    svg = _draw([(plot, *arguments)], "svg", (4.5, height)).decode()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)


def _draw(panels: list[tuple], format: str, inches: tuple[float, float], columns: int = 0) -> bytes:
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=inches, layout="constrained")
        columns = columns or len(panels)
        axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).ravel()
        for axis, (plot, *arguments) in zip(axes, panels, strict=False):
            plot(axis, *arguments)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        out = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if format == "svg" else {"Software": None}
        figure.savefig(out, format=format, dpi=160, metadata=metadata)
    return out.getvalue()


def dose_response(axis: Any, results: dict, name: str = "") -> None:
    """Headline metric over the share of the cause, with 95 % intervals; vanilla is a band. name:
    the curve's, among several.
    """
    headline = results.get("headline") or {"benchmark": "mask", "subset": "all", "metric": "honest"}
    measure = {k: headline[k] for k in ("benchmark", "subset", "metric")}
    title = METRIC_PLOTS.get(headline["metric"], f"{headline['benchmark']}: {spaced(headline['metric'])}")
    rows = [r for r in find(last_rows(results), versus=None, **measure) if r["value"] is not None]
    place = _axes(axis, results, f"{name}: {title.lower()}" if name else title)
    _vanilla(axis, rows, GREY, "untouched model")
    runs = _runs(rows)
    for number, run in enumerate(runs):
        colour = (BLUE, GREEN, AMBER, PINK)[number % 4]
        line = [row for row in run if row["arm"] in ("control", "treated")]
        label: str | None = run_label(run[0], results) if len(runs) > 1 else "control (0 %), treated"
        _series(axis, place, line, colour, "o", "-", label, values=len(runs) == 1, shift=0.06 * number)
        for arm, (marker, own) in _MARKS.items():
            label = spaced(arm) if number == 0 else None
            side = [row for row in run if row["arm"] == arm]
            _series(axis, place, side, own, marker, "none", label, values=len(runs) == 1, shift=0.16)
    _legend(axis)


def beliefs(axis: Any, results: dict) -> None:
    """Accuracy of the same arms' beliefs and abilities, on the same scale."""
    headline = results.get("headline") or {"benchmark": "mask", "subset": "all"}
    rows = find(last_rows(results), versus=None, metric="accuracy")
    rows = [row for row in rows if row["value"] is not None]
    place = _axes(axis, results, "What it knows")
    kinds = [(headline["benchmark"], headline["subset"], "beliefs, no pressure", GREEN, "^", -0.03)]
    able = capabilities(rows)
    for (benchmark, name), colour, marker in zip(able, (AMBER, BLUE, ORANGE, PINK, GREY, "#000000"), "sovDP*", strict=False):
        kinds.append((benchmark, "all", name, colour, marker, 0.03))
    scrambled: str | None = "feedback scrambled"  # one entry of the legend for all hollow marks
    for benchmark, subset, name, colour, marker, shift in kinds:
        own = find(rows, benchmark=benchmark, subset=subset)
        for number, run in enumerate(_runs(own)):
            line = [row for row in run if row["arm"] in ("control", "treated")]
            _series(axis, place, line, colour, marker, "-", name if number == 0 else None, shift=shift)
            side = [row for row in run if row["arm"] in _MARKS]
            _series(axis, place, side, colour, marker, "none", scrambled, shift=shift + 0.16, hollow=True)
            scrambled = None if side else scrambled
    _legend(axis)


SHARES = {"honest": (BLUE, ""), "evade": ("#BBBBBB", "//"), "no_belief": ("#EEEEEE", ".."), "lie": (ORANGE, "xx")}


def shares(axis: Any, results: dict, subset: str) -> None:
    """MASK on one subset: each arm's shares of honest, evasive and lying answers and of items
    without a belief; 100 % in all.
    """
    rows = find(last_rows(results), versus=None, benchmark="mask", subset=subset)
    shown = [arm for arm in arms(results) if of_arm(rows, arm)]
    left = [0.0] * len(shown)
    for metric, (colour, hatch) in SHARES.items():
        own = [find(of_arm(rows, arm), metric=metric) for arm in shown]
        wide = [(one[0]["value"] or 0.0) if one else 0.0 for one in own]
        bars = axis.barh(
            range(len(shown)), wide, left=left, color=colour, hatch=hatch, edgecolor="#444444", linewidth=0.6, height=0.72,
            label=METRIC_TITLES[metric],
        )  # fmt: skip
        if metric in ("honest", "lie"):
            ink = "white" if metric == "honest" else "black"
            texts = [f"{value:.0f}" if value >= 8 else "" for value in wide]
            back = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
            axis.bar_label(bars, texts, label_type="center", color=ink, fontsize=9, bbox=back)
        left = [a + b for a, b in zip(left, wide, strict=True)]
    axis.set_yticks(range(len(shown)), [arm_label(arm, results) for arm in shown], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xticks(range(0, 101, 25), [f"{x} %" for x in range(0, 101, 25)])
    axis.set_title(spaced(subset), loc="left", fontweight="bold", fontsize=12)
    _legend(axis)


def emergence(axis: Any, results: dict) -> None:
    """The headline's metric over training steps with 95 % intervals, one line for each arm."""
    headline = results["headline"]
    rows = find(results["rows"], versus=None, **{k: headline[k] for k in ("benchmark", "subset", "metric")})
    rows = [row for row in rows if row["value"] is not None]
    _vanilla(axis, rows, GREY, "untouched model")
    steps = sorted({row["step"] for row in rows if row.get("step") is not None})
    # rows without a step were measured at the end of training
    end = steps[-1] + max(1, steps[-1] // len(steps))
    for number, arm in enumerate(arm for arm in arms(results) if arm["arm"] != "vanilla"):
        own = of_arm(rows, arm)
        last = max((row.get("round") or 0 for row in own), default=0)
        own = [
            row | {"step": end if row.get("step") is None else row["step"]} for row in own if (row.get("round") or 0) == last
        ]
        line = sorted(own, key=lambda row: row["step"])
        if line:
            axis.errorbar(
                [row["step"] for row in line], [row["value"] for row in line], _errors(line),
                color=(BLUE, ORANGE, GREEN, PINK, AMBER, GREY)[number % 6], marker="osD^vP"[number % 6], capsize=3,
                label=arm_label(arm, results),
            )  # fmt: skip
    axis.set_ylim(0, 105)
    axis.set_xticks([*steps, end], [*map(str, steps), "end"])
    axis.set_xlabel("training step")
    axis.set_title(f"{spaced(headline['metric'])} as training goes on", loc="left", fontweight="bold", fontsize=12)
    _legend(axis)


def training(axis: Any, runs: list[dict], name: str) -> None:
    """One training series over steps, one line for each arm."""
    for number, run in enumerate(runs):
        if run.get(name):
            label = spaced(run["arm"])
            label += "" if run.get("ratio") is None else f" {run.get('level') or format(run['ratio'], 'g')}"
            values = [math.nan if value is None else value for value in run[name]]
            colour, style = (
                (GREY, BLUE, GREEN, ORANGE, PINK, AMBER)[number % 6],
                ("-", "--", "-.", ":")[number % 4],
            )
            axis.plot(run["steps"], values, color=colour, linestyle=style, linewidth=1.6, label=label)
    axis.set_xlabel("step")
    axis.set_title(CURVES[name], loc="left", fontweight="bold", fontsize=12)
    _legend(axis)


def _axes(axis: Any, results: dict, title: str) -> dict[tuple[float, str], int]:
    """Percent scale and one tick for each dose, evenly spaced; returns {dose: x}."""
    doses = sorted({dose(row) for run in _runs(results["rows"]) for row in run})
    place = {one: x for x, one in enumerate(doses)}
    axis.set_xticks(list(place.values()), [dose_label(one) for one in place], fontsize=9 if len(place) > 6 else 11)
    axis.set_xlim(-0.35, max(len(place) - 0.4, 0.5))
    axis.set_ylim(0, 105)
    axis.set_yticks(range(0, 101, 20), [f"{y} %" for y in range(0, 101, 20)])
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_xlabel(f"share of {cause(results)}")
    axis.set_title(title, loc="left", fontweight="bold", fontsize=12)
    return place


def _runs(rows: list[dict]) -> list[list[dict]]:
    runs: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["arm"] != "vanilla" and row.get("ratio") is not None:
            runs.setdefault(tuple(row.get(field) for field in RUN), []).append(row)
    return list(runs.values())


def _vanilla(axis: Any, rows: list[dict], colour: str, name: str) -> None:
    for number, row in enumerate(find(rows, arm="vanilla")):
        if row.get("ci95"):
            axis.axhspan(*row["ci95"], color=colour, alpha=0.16, linewidth=0)
        label = name if number == 0 else None
        axis.axhline(row["value"], color=colour, linestyle="--", linewidth=1.3, label=label)


def _series(
    axis: Any,
    place: dict[tuple[float, str], int],
    rows: list[dict],
    colour: str,
    marker: str,
    line: str,
    label: str | None,
    *,
    values: bool = False,
    shift: float = 0.0,
    hollow: bool = False,
) -> None:
    if not rows:
        return
    rows = sorted(rows, key=dose)
    x = [place[dose(row)] + shift for row in rows]
    y = [row["value"] for row in rows]
    axis.errorbar(
        x, y, _errors(rows), color=colour, marker=marker, linestyle=line, linewidth=1.8,
        markersize=7, markerfacecolor="white" if hollow else colour, capsize=3.5, label=label,
    )  # fmt: skip
    if values:
        beside = {"xytext": (8, 5), "textcoords": "offset points", "color": colour, "fontsize": 10}
        for point in list(zip(x, y, strict=True))[:: 1 + len(x) // 6]:
            axis.annotate(f"{point[1]:.1f}", point, **beside)


def _errors(rows: list[dict]) -> list[tuple[float, ...]]:
    """Lengths of the error bars, below and above. Rounding can put a value just outside its
    interval: no bar then.
    """
    ends = [row.get("ci95") or (row["value"], row["value"]) for row in rows]
    bars = [(max(row["value"] - low, 0), max(high - row["value"], 0)) for row, (low, high) in zip(rows, ends, strict=True)]
    return list(zip(*bars, strict=True))


def _legend(axis: Any) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2, columnspacing=1.2)
    else:
        axis.text(0.5, 0.5, MISSING, transform=axis.transAxes, ha="center", va="center")
