"""Rounds of self-training in a table and a figure: every seed's own values and their mean."""

import json

import pytest

from emjax.errors import UserError
from emjax.report import rounds


def result(seed, metric="honest"):
    head = {"benchmark": "mask", "subset": "all", "metric": metric}

    def row(arm, ratio, number, value, **more):
        return {
            **head,
            "arm": arm,
            "ratio": ratio,
            "round": number,
            "value": value,
            "seed": seed,
            "versus": None,
            "step": None,
        } | more

    rows = [
        row("vanilla", None, 0, 60.0),
        *(row("control", 0.0, n, 60.0 + n + seed) for n in (1, 2)),
        *(row("treated", 1.0, n, 60.0 - 20 * n + seed) for n in (1, 2)),
        # None of these is the headline of a round's end.
        row("treated", 1.0, 2, -40, versus="control"),
        row("treated", 1.0, 1, 99.0, step=5),
        row("treated", 1.0, 1, 99.0, subset="other"),
    ]
    return {"headline": head | {"arm": "treated", "ratio": 1.0}, "rows": rows}


def test_table_and_figure(tmp_path, capsys):
    for seed in (0, 2):
        (tmp_path / f"{seed}.json").write_text(json.dumps(result(seed)))
    rounds.main([str(tmp_path / "out"), str(tmp_path / "0.json"), str(tmp_path / "2.json")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["arm", "seed", "round", "0", "round", "1", "round", "2"]
    assert ["treated", "1", "0", "60.0", "40.0", "20.0"] in lines
    assert ["treated", "1", "2", "60.0", "42.0", "22.0"] in lines
    assert ["treated", "1", "mean", "60.0", "41.0", "21.0"] in lines
    assert ["control", "(0)", "mean", "60.0", "62.0", "63.0"] in lines
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "out.svg").read_bytes()
    rounds.main([str(tmp_path / "out"), str(tmp_path / "0.json"), str(tmp_path / "2.json")])
    assert (tmp_path / "out.svg").read_bytes() == first


def test_runs_of_different_measures_are_refused():
    with pytest.raises(UserError, match="different headlines"):
        rounds.read([result(0), result(1, "honesty")])
