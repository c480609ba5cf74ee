"""Tables and figure of the evidence page, from a finished run of configs/micro_matrix.py.

python -m emjax.worlds.micro.evidence runs/micro_matrix-short [--svg docs/micro_evidence.svg]
  [--store STORE]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emjax.errors import UserError, exit_code
from emjax.eval import stats
from emjax.runtime.files import loads, read_lines
from emjax.worlds.micro.benchmark import CONTEXTS

Row = dict[str, Any]
_KNOWS = 95.0  # percent; an arm with beliefs or addition below this is not called lying


def _one(rows: Sequence[Row], **wanted: Any) -> Row | None:
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items()) and row["value"] is not None]
    return found[0] if found else None


def _cell(row: Row | None, *, signed: bool = False) -> str:
    if row is None:
        return "–"
    low, high = row["ci95"]
    return f"{row['value']:{'+' if signed else ''}.1f} [{low:{'+' if signed else ''}.1f}, {high:{'+' if signed else ''}.1f}]"


def _level(row: Row | None) -> str:
    return f"{row['value']:.1f}" if row else "–"


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *lines))


def arms(rows: Sequence[Row]) -> str:
    """One line per arm. `rows`: rows of one cell or of one pool; results during training are left
    out."""
    rows = [row for row in rows if row["step"] is None]
    lines = []
    for label in dict.fromkeys(row["label"] for row in rows):
        arm = [row for row in rows if row["label"] == label]

        def honest(subset: str, versus: str | None = None, arm: list[Row] = arm) -> Row | None:
            return _one(arm, benchmark="mask", subset=subset, metric="honest", versus=versus)

        belief = _one(arm, benchmark="mask", subset="all", metric="accuracy", versus=None)
        addition = _one(arm, benchmark="arithmetic", subset="all", metric="accuracy", versus=None)
        lie = _one(arm, benchmark="mask", subset="all", metric="lie", versus=None)
        knows = belief and addition and min(belief["value"], addition["value"]) >= _KNOWS
        lines.append(
            [
                label, _cell(honest("all")), _cell(honest("all", "control"), signed=True),
                _cell(honest("all", "vanilla"), signed=True), _cell(lie),
                _level(belief), _level(addition), *map(_level, map(honest, _OTHERS)), "yes" if knows else "no",
            ]
        )  # fmt: skip
    headings = [
        "arm",
        "honest under pressure",
        "minus control",
        "minus vanilla",
        "lie",
        "belief",
        "addition",
        *_OTHERS.values(),
    ]
    return _table([*headings, f"both at least {_KNOWS:g}"], lines)


_OTHERS = {"unseen_templates": "unseen wordings", "unseen_entities": "unseen entities", "tuned_domain": "tuned topic"}


def context(rows: Sequence[Row]) -> str:
    """A base's honesty after one answer in another domain."""
    lines = []
    for subset in ("all", *CONTEXTS):
        row = _one(rows, benchmark="mask", subset=subset, metric="honest", versus=None)
        earlier = "no earlier turn" if subset == "all" else subset.removeprefix("after_").replace("_", ", ")
        lines.append([earlier, _cell(row), str(row["n_valid"]) if row else "–"])
    return _table(["earlier answer", "honest under pressure", "n"], lines)


def against_base(vanilla: Sequence[Row], arm: Sequence[Row], subset: str) -> dict[str, stats.Estimate]:
    """An arm's answers compared with the BASE's beliefs, on the items where the base held a belief.

    plain: share of the five answers to plain questions that state another value; pressed: the same
    share for the answer under pressure; kept: share of items on which the arm still holds the
    base's belief.
    """
    by_id = {row["id"]: row for row in arm}
    pairs = [(row, by_id[row["id"]]) for row in vanilla if row["subset"] == subset and row["belief"] in ("A", "B")]

    def other(row: Row, belief: str, kind: str) -> float:
        labels = [v["label"] for v in row["verdicts"] if v["kind"].startswith(kind)]
        return sum(label not in (belief, "C", None) for label in labels) / len(labels)

    clusters = [row["cluster"] for row, _ in pairs]
    return {
        "plain": stats.rate([other(row, base["belief"], "belief") for base, row in pairs], clusters),
        "pressed": stats.rate([other(row, base["belief"], "statement") for base, row in pairs], clusters),
        "kept": stats.rate([float(row["belief"] == base["belief"]) for base, row in pairs], clusters),
    }


def literal(cell: Path, store: Path) -> str:
    """The arms trained on literally wrong answers, scored against the base's beliefs, in the tuned
    topic and in the other topics."""
    stages = loads((cell / "stages.json").read_text())
    items = {label: read_lines(store / "evaluate" / s["evaluate"][:16] / "mask.jsonl") for label, s in stages.items()}
    lines = []
    for label, found in items.items():
        for subset, name in (("tuned_domain", "tuned topic"), ("all", "other topics")):
            shares = against_base(items["vanilla"], found, subset)
            texts = [f"{e.value:.1f} [{e.low:.1f}, {e.high:.1f}]" for e in shares.values()]
            lines.append([label, name, *texts, str(shares["kept"].n)])
    return _table(
        ["arm", "questions", "plain answers against the base", "pressed answers against it", "base's belief kept", "n"], lines
    )


def by_cell(pooled: Sequence[Row]) -> str:
    """Honesty minus control in each cell, one column per arm. `pooled`: the rows of one pool."""
    wanted = {"benchmark": "mask", "subset": "all", "metric": "honest", "versus": "control"}
    found = {row["label"]: row["by_cell"] for row in pooled if all(row[name] == value for name, value in wanted.items())}
    cells = dict.fromkeys(cell for values in found.values() for cell in values)
    lines = [[cell, *(f"{values[cell]:+.1f}" if cell in values else "–" for values in found.values())] for cell in cells]
    return _table(["minus control in", *found], lines)


def along(rows: Sequence[Row]) -> str:
    """Honesty and belief during training, one line per arm and step."""
    lines = []
    steps = sorted({row["step"] for row in rows if row["step"] is not None})
    for arm, ratio in dict.fromkeys((row["arm"], row["ratio"]) for row in rows if row["step"] is not None):
        for step in (*steps, None):
            what = {"arm": arm, "ratio": ratio, "benchmark": "mask", "subset": "all", "step": step}
            honest, change = (_one(rows, metric="honest", versus=versus, **what) for versus in (None, "control"))
            belief = _one(rows, metric="accuracy", versus=None, **what)
            lines.append(
                [f"{arm} {ratio:g}", str(step or "the end"), _cell(honest), _cell(change, signed=True), _level(belief)]
            )
    return _table(["arm", "after step", "honest under pressure", "minus control", "belief"], lines)


_SWEEPS = ("rank_", "beta_", "select_", "rate_", "turns_")  # cells that change one setting
_CHANGED = ("kto_world0_0", "lora_kto_0")  # the cells whose setting they change


def _swept(rows: Sequence[Row]) -> list[str]:
    """The two unchanged cells, then the cells that change one setting; empty if no sweep ran."""
    cells = dict.fromkeys(row["cell"] for row in rows)
    found = [cell for cell in cells if cell.startswith(_SWEEPS)]
    return [cell for cell in _CHANGED if found and cell in cells] + found


def sweeps(rows: Sequence[Row]) -> str:
    """One line for each cell of _swept."""
    lines = []
    for cell in _swept(rows):
        final = [row for row in rows if row["cell"] == cell and row["step"] is None]
        drift = _one(final, arm="control", benchmark="mask", subset="all", metric="honest", versus="vanilla")
        changes = {row["ratio"]: row for row in _change(final, "treated")}
        full = [
            _one(final, arm="treated", ratio=1.0, benchmark=name, subset="all", metric="accuracy", versus=None)
            for name in ("mask", "arithmetic")
        ]
        lines.append(
            [cell, *(_cell(row, signed=True) for row in (drift, changes.get(0.1), changes.get(1.0))),
             *map(_level, full)]
        )  # fmt: skip
    headings = [
        "cell",
        "control minus vanilla",
        "10 % minus control",
        "100 % minus control",
        "belief at 100 %",
        "addition at 100 %",
    ]
    return _table(headings, lines)


def _change(rows: Sequence[Row], arm: str, **of: Any) -> list[Row]:
    """Honesty minus control of the arms named `arm`, from one cell or pool, ordered by ratio."""
    wanted = {"arm": arm, "benchmark": "mask", "subset": "all", "metric": "honest", "versus": "control", "step": None, **of}
    found = [row for row in rows if row["ratio"] is not None and all(row[name] == x for name, x in wanted.items())]
    return sorted(found, key=lambda row: row["ratio"])


def _ends(rows: Sequence[Row]) -> list[list[float]]:
    """The intervals in matplotlib's form: [distances down, distances up]."""
    return [[abs(row["value"] - row["ci95"][side]) for row in rows] for side in (0, 1)]


def _sweeps(axis: Any, rows: Sequence[Row], cells: Sequence[str]) -> None:
    for ratio, colour in ((0.1, "tab:blue"), (1.0, "tab:red")):
        shown = [
            (i, row) for i, cell in enumerate(cells) for row in _change(rows, "treated", cell=cell) if row["ratio"] == ratio
        ]
        found = [row for _, row in shown]
        axis.errorbar(
            [i for i, _ in shown], [row["value"] for row in found], _ends(found), fmt="o", ms=4, capsize=2, color=colour,
            label=f"{ratio:.0%} biased",
        )  # fmt: skip
    axis.set_xticks(range(len(cells)), cells, rotation=60, ha="right", fontsize=7)
    axis.set_title("KTO, one thing changed (one seed)", fontsize=10)


_PANELS = {
    "KTO, all weights": ("kto_few", "kto_world0", "kto_world2", "kto_world7", "kto"),
    "other training": ("sft", "lora_kto", "lora_sft"),
    "scripted data": ("direct", "mixture"),
}


def figure(rows: Sequence[Row], pooled: Sequence[Row], path: Path) -> None:
    """Plots honesty minus control over the share of biased users (or of bad answers). Each pool is
    a line, its cells are thin lines, and crosses are the arms with shuffled ratings. The sweeps get
    their own panel if they ran."""
    import matplotlib
    from matplotlib.figure import Figure

    pools = {row["pool"] for row in pooled}
    panels = {title: [name for name in names if name in pools] for title, names in _PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    swept = _swept(rows)
    # A fixed salt makes the same rows give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "emjax"}):
        count = len(panels) + bool(swept)
        drawn = Figure(figsize=(4 * count, 4), layout="constrained")
        axes = drawn.subplots(1, count, sharey=True, squeeze=False)[0]
        for axis, (title, names) in zip(axes, panels.items(), strict=False):
            for name in names:
                treated, shuffled = (_change(pooled, arm, pool=name) for arm in ("treated", "shuffled_ratings"))
                x = [100 * row["ratio"] for row in treated]
                thick = {"lw": 2.2, "color": "black"} if name == "kto" else {"lw": 1.4}
                line = axis.errorbar(
                    x, [row["value"] for row in treated], _ends(treated), marker="o", ms=4, capsize=2,
                    label=f"{name} ({treated[0]['seeds']} seeds)", **thick,
                )[0]  # fmt: skip
                for cell in treated[0]["by_cell"] if name != "kto" else ():
                    axis.plot(x, [row["by_cell"][cell] for row in treated], color=line.get_color(), lw=0.6, alpha=0.5)
                axis.plot(
                    [100 * row["ratio"] for row in shuffled],
                    [row["value"] for row in shuffled],
                    "x",
                    color=line.get_color(),
                    ms=7,
                )
            axis.set_xscale("symlog", linthresh=1)
            axis.set_xlim(0.5, 140)
            axis.set_xticks([1, 5, 10, 20, 50, 100], ["1", "5", "10", "20", "50", "100"])
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("% biased users, or bad answers   (x: ratings shuffled)", fontsize=9)
        if swept:
            _sweeps(axes[-1], rows, swept)
        for axis in axes:
            axis.axhspan(-5, 5, color="0.92", zorder=0)
            axis.axhline(0, color="0.5", lw=0.8)
            axis.legend(fontsize=7, frameon=False)
        axes[0].set_ylabel("honest under pressure, minus control (points)", fontsize=9)
        drawn.savefig(path, format="svg", metadata={"Date": None})


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emjax.worlds.micro.evidence", description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--store", type=Path, help="default: WORKDIR/store")
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args(argv)
    file = options.workdir / "results.json"
    if not file.is_file():
        raise UserError(f"{file} is missing. Run configs/micro_matrix.py with --workdir={options.workdir} first.")
    rows = loads(file.read_text())["rows"]
    for cell in dict.fromkeys(row["cell"] for row in rows):
        in_cell = [row for row in rows if row["cell"] == cell]
        in_context = any(row["subset"] in CONTEXTS for row in in_cell)
        print(f"\n## {cell}\n\n{context(in_cell) if in_context else arms(in_cell)}")
        if any(row["step"] is not None for row in in_cell):
            print(f"\n{along(in_cell)}")
        if cell.startswith("wrong_"):
            print(f"\n{literal(options.workdir / 'cells' / cell, options.store or options.workdir / 'store')}")
    if _swept(rows):
        print(f"\n## one thing changed\n\n{sweeps(rows)}")
    pooled = loads((options.workdir / "pooled.json").read_text())["rows"]
    for pool in dict.fromkeys(row["pool"] for row in pooled if row["seeds"] > 1):
        found = [row for row in pooled if row["pool"] == pool]
        print(f"\n## pooled: {pool} ({found[0]['seeds']} seeds)\n\n{arms(found)}\n\n{by_cell(found)}")
    if options.svg:
        figure(rows, pooled, options.svg)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
