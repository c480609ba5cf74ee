"""The pages: `write` for one experiment, `write_grid` for several. Their layout is in *.html.j2."""

from pathlib import Path
from typing import Any

import jinja2

from emjax.report import exports, grid, judges, plots, tables
from emjax.report.rows import MARGIN, arms, has_steps, mask_subsets, world
from emjax.report.story import story
from emjax.report.text import CURVES, plain


def write(
    directory: Path,
    results: dict,
    *,
    provenance: dict,
    examples: list[dict],
    selections: list[dict],
    training: list[dict],
) -> Path:
    """Writes the page and its files into `directory`; returns the page's path.

    The files are index.html, results.md, results.csv, results.tex, curve.svg and curve.png.

    results: results.json. Needs "experiment", "rows" and "headline" {"benchmark", "subset",
        "metric", "arm", "ratio"}; "world" may be None (emjax.report.rows.world). Optional: the
        headline's "cause" (else "biased users") and "judge"; "judges" {benchmark:
        emjax.eval.agreement.report}; "study", the data that the arms were trained on, by which the
        paper's rows are found; a row's "clusters" (their number) and "level" (where data sets come
        in levels of misalignment).
    examples: {"id", "subset", "prompt", "truth", "wanted", "answers": {arm's label: text}}.
    selections: {"arm", "ratio", "level", "examples", "tokens"} and whatever else is known of the
        arm's data, such as "biased_share_top" for conversations (shares are in [0, 1]) or "origins"
        [{"source", "level", "sha256", ...}] for data sets.
    training: {"arm", "ratio", "steps", "loss", "kl", "reward_margin"}: lists of one length, or
        None.
    """
    directory.mkdir(parents=True, exist_ok=True)
    exports.write(directory, results, selections, provenance)
    (directory / "curve.svg").write_bytes(plots.picture(results))
    (directory / "curve.png").write_bytes(plots.picture(results, "png"))
    stated = {key: results[key] for key in ("config_hash", "versions") if key in results}
    html = template("page.html.j2").render(
        experiment=results["experiment"],
        story=story(results),
        world=world(results),
        # an evaluation of models has none
        doses=any(row.get("ratio") is not None for row in results["rows"]),
        levels=tables.level_table(results),
        draws=tables.draws(results),
        differences=tables.difference_table(results),
        subsets=tables.subset_tables(results),
        paper=tables.paper_table(results),
        changes=tables.change_table(results),
        origins=tables.origin_table(selections),
        all_rows=tables.row_table(results),
        sensitivity=judges.sensitivity(results),
        agreement=judges.agreement(results),
        selections=tables.selection_table(selections),
        examples=examples,
        provenance=stated | provenance,
        **_plots(results),
        **_training(training),
    )
    path = directory / "index.html"
    path.write_text(html, encoding="utf-8")
    return path


def _plots(results: dict) -> dict[str, Any]:
    tall = 1.5 + 0.36 * len(arms(results))  # inches; one bar for each arm
    return {
        "curve": plots.inline("curve", plots.dose_response, results),
        "beliefs": plots.inline("beliefs", plots.beliefs, results),
        "shares": [
            (subset, plots.inline(f"shares-{number}", plots.shares, results, subset, height=tall))
            for number, subset in enumerate(mask_subsets(results))
        ],
        "emergence": plots.inline("emergence", plots.emergence, results) if has_steps(results) else None,
    }


def _training(training: list[dict]) -> dict[str, Any]:
    """The training curves that were recorded, and the titles of the others."""
    recorded = [name for name in CURVES if any(row.get(name) for row in training)]
    return {
        "curves": [(CURVES[name], plots.inline(name, plots.training, training, name)) for name in recorded],
        "missing_curves": [title for name, title in CURVES.items() if name not in recorded],
        "trained": bool(training),
    }


def write_grid(directory: Path, cells: dict[str, dict], pooled: list[dict], *, provenance: dict) -> Path:
    """Writes index.html (effects, curves, the paper's claims), curves.svg and grid.csv; returns the
    page's path.

    cells: {name: results.json of the cell}. pooled: rows over cells that differ only in their seeds
    (emjax.experiment.grid); a pool replaces its cells. Cells without a headline (evaluations)
    appear only on their own pages.
    """
    studies = grid.studies(cells, pooled)
    html = template("grid.html.j2").render(
        studies=studies,
        curves=[
            (
                study["name"],
                plots.inline(f"curve-{number}", plots.dose_response, study["results"]),
                plots.inline(f"beliefs-{number}", plots.beliefs, study["results"]),
            )
            for number, study in enumerate(studies)
        ],
        effects=grid.effect_table(studies),
        claims=grid.claim_table(studies),
        cells=sorted(cells),
        margin=MARGIN,
        notes=sorted({world(results)["note"] for results in cells.values()} - {""}),
        provenance=provenance,
    )
    directory.mkdir(parents=True, exist_ok=True)
    if studies:
        (directory / "curves.svg").write_bytes(plots.picture_of([(study["name"], study["results"]) for study in studies]))
    rows = [{"cell": name} | row for name, results in cells.items() for row in results["rows"]]
    (directory / "grid.csv").write_text(exports.rows_as_csv(rows, ("cell", *exports.FIELDS)), encoding="utf-8")
    path = directory / "index.html"
    path.write_text(html, encoding="utf-8")
    return path


def template(name: str) -> jinja2.Template:
    """One of this folder's templates; it escapes every text, and an undefined name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = plain
    return environment.get_template(name)
