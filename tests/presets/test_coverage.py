"""Every row that the paper prints is measured by the config that the report names for it."""

import pytest

from emjax.presets import coverage
from emjax.report import paper

ROWS = paper.tables()["rows"]


def named(row):
    dose = row["level"] or row["ratio"]
    return f"{row['table']} {row['model']} {row['method']} {row['data']} {row['arm']} {dose} {row['benchmark']}"


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_the_config_of_a_printed_row_measures_it(row):
    assert not coverage.unmeasured(row)


def test_the_command_counts_them(capsys):
    coverage.main([])
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "212 of 212 printed rows are measured by the config that is named for them."
    assert "not measured" not in printed
