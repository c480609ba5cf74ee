"""results.json -> one self-contained HTML page that says what was found and how sure it is.

`write` makes the page and the picture, `picture` the picture alone, `write_grid` the page of many experiments. Identical input
gives identical bytes. The words are in words.py and grid.py, the plots in plots.py, the layout in *.html.j2; a number that is
not in the rows is never filled in, the page says that it is missing.
"""

from pathlib import Path

import jinja2

from emjax.report import grid, judges, plots, twin, words
from emjax.report.plots import picture

__all__ = ["picture", "write", "write_grid"]


def write(
    directory: Path,
    results: dict,
    *,
    provenance: dict,
    examples: list[dict],
    selections: list[dict],
    training: list[dict],
) -> Path:
    """Write index.html, its twins (twin.py), curve.svg and curve.png into `directory` and return the page's path.

    results: results.json, "rows" with "experiment", "config_hash", "versions", "world_note" (what must be
        said of a made-up world, or None) and "headline" {"benchmark", "subset", "metric", "arm", "ratio"}.
        Optional: "clusters" of a row (their number), "cause" of the headline (else "biased users"), its "judge", "judges"
        {benchmark: emjax.eval.agreement.report}, "study" (what the arms were trained on: the paper's rows are found by it),
        "level" of a row where data come in levels of misalignment.
    examples: {"id", "subset", "prompt", "truth", "wanted", "answers": {label of an arm: text}}.
    selections: {"arm", "ratio", "level", "examples", "tokens"} and what else is known of the arm's data, as of conversations
        "biased_share_top" (shares are in [0, 1]) or of data sets "origins" [{"source", "level", "sha256", ...}].
    training: {"arm", "ratio", "steps", "loss", "kl", "reward_margin"}, lists of one length, or None.
    """
    stated = {key: results[key] for key in ("config_hash", "versions") if key in results}
    unrecorded = [name for name in words.CURVES if not any(row.get(name) for row in training)]
    html = _template("page.html.j2").render(
        experiment=results["experiment"],
        story=words.story(results),
        note=results.get("world_note"),
        subset_words=words.subset_words(results),
        doses=any(row.get("ratio") is not None for row in results["rows"]),  # models that exist have none
        curve=plots.inline("curve", plots.dose, results),
        stays=plots.inline("stays", plots.stays, results),
        levels=words.level_table(results),
        differences=words.difference_table(results),
        shares=[
            (
                subset,
                plots.inline(f"shares-{number}", plots.shares, results, subset, height=1.5 + 0.36 * len(words.arms(results))),
            )
            for number, subset in enumerate(words.mask_subsets(results))
        ],
        emergence=plots.inline("emergence", plots.emergence, results) if words.has_steps(results) else None,
        subsets=words.subset_tables(results),
        paper=words.paper_table(results),
        changes=words.change_table(results),
        origins=words.origin_table(selections),
        all_rows=words.row_table(results),
        sensitivity=judges.sensitivity(results),
        agreement=judges.agreement(results),
        selections=words.selection_table(selections),
        curves=[
            (title, plots.inline(name, plots.training, training, name))
            for name, title in words.CURVES.items()
            if name not in unrecorded
        ],
        missing_curves=[words.CURVES[name] for name in unrecorded],
        trained=bool(training),
        examples=examples,
        provenance=stated | provenance,
    )
    directory.mkdir(parents=True, exist_ok=True)
    twin.write(directory, results, selections, provenance)
    (directory / "curve.svg").write_bytes(picture(results))
    (directory / "curve.png").write_bytes(picture(results, "png"))
    path = directory / "index.html"
    path.write_text(html, encoding="utf-8")
    return path


def write_grid(directory: Path, cells: dict[str, dict], pooled: list[dict], *, provenance: dict) -> Path:
    """Write index.html (each cell's effect and curve, and which of the paper's claims hold), curves.svg, grid.csv; its path.

    cells: {name: results.json of the cell}. pooled: rows over cells that differ in seeds only (emjax.experiment.grid): where a
    cell is in a pool, the pool stands for it. Cells without a headline (evaluations) are left to their own pages.
    """
    studies = grid.studies(cells, pooled)
    html = _template("grid.html.j2").render(
        studies=studies,
        curves=[
            (
                study["name"],
                plots.inline(f"curve-{number}", plots.dose, study["results"]),
                plots.inline(f"stays-{number}", plots.stays, study["results"]),
            )
            for number, study in enumerate(studies)
        ],
        effects=grid.effect_table(studies),
        claims=grid.claim_table(studies),
        cells=sorted(cells),
        notes=sorted({results["world_note"] for results in cells.values() if results.get("world_note")}),
        provenance=provenance,
    )
    directory.mkdir(parents=True, exist_ok=True)
    if studies:
        (directory / "curves.svg").write_bytes(plots.picture_of([(study["name"], study["results"]) for study in studies]))
    rows = [{"cell": name} | row for name, results in cells.items() for row in results["rows"]]
    (directory / "grid.csv").write_text(twin.table(rows, ("cell", *twin.FIELDS)), encoding="utf-8")
    path = directory / "index.html"
    path.write_text(html, encoding="utf-8")
    return path


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = words.plain
    return environment.get_template(name)
