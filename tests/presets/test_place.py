"""--data_root: each data set and benchmark is found under the name that it declares."""

import pytest

from emjax import presets
from emjax.data import sources
from emjax.errors import UserError


def test_what_is_there_is_used_and_what_is_not_is_listed(tmp_path):
    (tmp_path / "dataset" / "mistake_math").mkdir(parents=True)
    (tmp_path / "deceptionbench_0527.json").touch()
    given = presets.direct("llama3.1-8b", "math")
    assert presets.place(given, tmp_path) == [
        "  found    dataset/mistake_math",
        "  missing  MASK: cais/MASK is read",
        "  found    deceptionbench_0527.json",
    ]
    assert given.data.set.path == str(tmp_path / "dataset" / "mistake_math")
    assert given.eval.deceptionbench.path == str(tmp_path / "deceptionbench_0527.json")
    assert given.eval.mask.path == "cais/MASK"


def test_a_path_that_is_given_comes_first(tmp_path):
    (tmp_path / "MASK").mkdir()
    (tmp_path / "alpaca_data_cleaned.json").touch()
    given = presets.alpaca("llama3.1-8b")
    given.eval.mask.path, given.data.downstream.path = "/mine", "/also/mine.json"
    lines = presets.place(given, tmp_path)
    assert (given.eval.mask.path, given.data.downstream.path) == ("/mine", "/also/mine.json")
    assert "alpaca" not in " ".join(lines)


def test_all_cells_of_a_grid_are_placed_at_once(tmp_path):
    (tmp_path / "MASK").mkdir()
    given = presets.grid("qwen2.5-7b")
    lines = presets.place(given, tmp_path)
    assert len(lines) == len(set(lines))
    assert {cell.eval.mask.path for cell in given.cells.values()} == {str(tmp_path / "MASK")}
    assert presets.place(presets.grid("micro"), tmp_path) == []
    with pytest.raises(UserError, match="--data_root is '/nowhere', which is no folder"):
        presets.place(given, tmp_path.__class__("/nowhere"))


def test_no_two_sources_share_a_name():
    names = [source.under for source in sources.SOURCES.values() if source.under]
    assert len(names) == len(set(names)) > 10
