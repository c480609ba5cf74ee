"""results.json -> self-contained HTML pages that say what a run showed and how certain it is.

Identical input gives identical bytes. A number that is not in the rows is reported as missing,
never filled in.

    rows, text     finding and ordering rows; wording of metrics, number formats
    story, tables  what the page says, and its tables; judges, grid and paper have tables of their
                   own
    plots          the plots
    pages          the pages: `write` for one experiment, `write_grid` for several; conversations
                   has a page of its own
    exports        the same numbers as Markdown, CSV and LaTeX
    rounds         honesty after each round of self-training (python -m emjax.report.rounds)
"""

from emjax.report.pages import write, write_grid
from emjax.report.plots import picture

__all__ = ["picture", "write", "write_grid"]
