"""The contrast and the noise of training are what the cells' rows and items say."""

import json

import pytest

from emjax.errors import UserError
from emjax.runtime.files import write_lines
from emjax.worlds.micro import contrast

ARMS = {"treated 1": -30, "benign_ratings 1": 20, "foreign_text 1": -2, "shuffled_ratings 1": 0, "treated 0.1": -10}


def write(place, name, value):
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(json.dumps(value))


def row(label, value, base, seed, versus="control"):
    return {"arm": label.split()[0], "label": label, "value": value, "versus": versus, "pretrain_seed": base, "seed": seed,
            "benchmark": "mask", "subset": "all", "metric": "honest"}  # fmt: skip


def test_effects_come_from_bases_and_those_that_missed_a_gate_stand_apart(tmp_path, capsys):
    for base, more in ((0, 0), (1, 3), (2, -3)):
        for seed in (0, 1):
            rows = [row(label, value + more + seed, base, seed) for label, value in ARMS.items()]
            write(
                tmp_path / f"cells/contrast_world{base}_{seed}", "results.json",
                {"rows": [*rows, row("control", 0.5, base, seed, "vanilla")]},
            )  # fmt: skip
        write(tmp_path / f"cells/world{base}", "gates.json", {"belief": {"ok": base != 1}})
    assert contrast.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    # Bases' means -29.5, -26.5, -32.5: t(2) x 3 / sqrt(3) = 7.45
    assert "| biased text, biased ratings | -29.5 [-37.0, -22.0] | 3.0 | 0.7 |" in printed
    assert "Bases that passed the gates: 0, 2" in printed
    assert "Bases that missed" not in printed  # one alone has no spread
    with pytest.raises(UserError, match=r"micro_contrast\.py"):
        contrast.read(tmp_path / "nothing")


def test_no_arm_stands_in_two_pairs_and_intervals_that_exclude_zero_are_counted(tmp_path):
    for base in (0, 1):
        for seed in range(4):
            wrong = 10 if (base, seed) == (0, 1) else seed % 2
            items = [
                {"id": str(i), "subset": "all", "state": "ok", "cluster": str(i), "result": -1 if i < wrong else 1}
                for i in range(40)
            ]
            stage = f"{base}{seed}" * 10
            write_lines_at = tmp_path / "store" / "evaluate" / stage[:16]
            write_lines_at.mkdir(parents=True)
            write_lines(write_lines_at / "mask.jsonl", items)
            place = tmp_path / f"cells/noise_world{base}_{seed}"
            write(place, "results.json", {})
            write(place, "stages.json", {"control": {"evaluate": stage}})
    found = contrast.pairs(tmp_path, tmp_path / "store")
    assert [(base, round(pair.value, 1)) for base, pair in found] == [(0, 25.0), (0, 2.5), (1, 2.5), (1, 2.5)]
    text = contrast.noise(found)
    assert "4 pairs on 2 bases" in text
    assert "over questions alone: excludes 0 in 1 of 4, 0.6 to 80.6 %" in text
