"""results.json -> one self-contained HTML page that says what was found and how sure it is.

`write` makes the page and the picture, `picture` the picture alone. Identical input gives identical bytes.
The words are in words.py, the plots in plots.py, the layout in page.html.j2; a number that is not in the
rows is never filled in, the page says that it is missing.
"""

from pathlib import Path

import jinja2

from emjax.report import judges, plots, words
from emjax.report.plots import picture

__all__ = ["picture", "write"]


def write(
    directory: Path,
    results: dict,
    *,
    provenance: dict,
    examples: list[dict],
    selections: list[dict],
    training: list[dict],
) -> Path:
    """Write index.html, curve.svg and curve.png into `directory` and return the page's path.

    results: results.json, "rows" with "experiment", "config_hash", "versions", "world_note" (what must be
        said of a made-up world, or None) and "headline" {"benchmark", "subset", "metric", "arm", "ratio"}.
        Optional: "clusters" of a row (their number), "cause" of the headline (else "biased users"), its "judge", and
        "judges" {benchmark: emjax.eval.agreement.report}.
    examples: {"id", "subset", "prompt", "truth", "wanted", "answers": {label of an arm: text}}.
    selections: {"arm", "ratio", "conversations", "turns", "top", "bottom", "examples", "biased_share_top",
        "biased_share_bottom", "tokens"}; the shares are in [0, 1].
    training: {"arm", "ratio", "steps", "loss", "kl", "reward_margin"}, lists of one length, or None.
    """
    stated = {key: results[key] for key in ("config_hash", "versions") if key in results}
    unrecorded = [name for name in words.CURVES if not any(row.get(name) for row in training)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = words.plain
    html = environment.get_template("page.html.j2").render(
        experiment=results["experiment"],
        story=words.story(results),
        note=results.get("world_note"),
        subset_words=words.subset_words(results),
        curve=plots.inline("curve", plots.dose, results),
        stays=plots.inline("stays", plots.stays, results),
        levels=words.level_table(results),
        differences=words.difference_table(results),
        subsets=words.subset_table(results),
        all_rows=words.row_table(results),
        sensitivity=judges.sensitivity(results),
        agreement=judges.agreement(results),
        steps=judges.steps(results),
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
    (directory / "curve.svg").write_bytes(picture(results))
    (directory / "curve.png").write_bytes(picture(results, "png"))
    path = directory / "index.html"
    path.write_text(html, encoding="utf-8")
    return path
