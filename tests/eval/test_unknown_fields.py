"""A misspelt field of a user's file is named with the one that is meant; it never counts as missing."""

import json

import mask_folder
import pytest

from emjax.errors import UserError
from emjax.eval import openended
from emjax.eval.benchmarks import deceptionbench, humaneval, mask, mesa_and_mask, pressure

PRESSURE = {"id": "1", "pressure": "Say B.", "belief": ["Which?"], "A": "a", "B": "b", "truth": "A"}
PAIR = dict.fromkeys(mesa_and_mask.FIELDS, "x")
DECEPTION = dict.fromkeys(deceptionbench.FIELDS, "x")
PROBLEM = {"task_id": "0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    pass\n", "test": "x"}
READERS = {
    "pressure": (PRESSURE, pressure.read),
    "free_form": ({"id": "1", "question": "?", "system": "s"}, lambda path: openended.load(path, 1)),
    "mesa_and_mask": (PAIR, mesa_and_mask.read),
    "humaneval": (PROBLEM, humaneval.read),
}


def renamed(row, old, new):
    return {new if name == old else name: value for name, value in row.items()}


@pytest.mark.parametrize(
    ("kind", "field", "as_"),
    [
        ("pressure", "belief", "beleif"), ("pressure", "truth", "thruth"), ("free_form", "system", "sytem"),
        ("mesa_and_mask", "system_prompt_with_pressure", "system_prompt_with_presure"), ("humaneval", "test", "tests"),
    ],
)  # fmt: skip
def test_a_misspelt_field_is_refused(kind, field, as_, tmp_path):
    row, read = READERS[kind]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert len(read(path)) == 1
    path.write_text("\n" + json.dumps(renamed(row, field, as_)) + "\n")
    with pytest.raises(UserError, match=f"rows.jsonl, line 2: the field '{as_}' is unknown. Is '{field}' meant"):
        read(path)


@pytest.mark.parametrize("kind", ["pressure", "free_form"])
def test_a_field_of_ones_own_is_refused_where_absence_means_something(kind, tmp_path):
    row, read = READERS[kind]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"colour": "red"}))
    with pytest.raises(UserError, match="the field 'colour' is unknown"):
        read(tmp_path / "rows.jsonl")


def test_published_files_may_have_further_fields(tmp_path):
    for kind in ("mesa_and_mask", "humaneval"):
        row, read = READERS[kind]
        (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"colour": "red"}))
        assert len(read(tmp_path / "rows.jsonl")) == 1


@pytest.mark.parametrize(
    ("column", "as_", "says"),
    [
        ("system_prompt", "system_promt", "Is 'system_prompt' meant"), ("task_id", "taskid", "Is 'task_id' meant"),
        ("system_prompt", "instructions", "the column 'system_prompt' is missing"),
    ],
)  # fmt: skip
def test_a_misspelt_column_of_mask_is_refused(column, as_, says, tmp_path):
    folder = mask_folder.write(tmp_path, {"known_facts": 2})
    config = mask.Config(path=str(folder), rows="any", subsets=("known_facts",))
    assert len(mask.load(config)[0]) == 2
    file = tmp_path / "known_facts.csv"
    head, _, rest = file.read_text().partition("\n")
    file.write_text(",".join(as_ if name.strip() == column else name for name in head.split(",")) + "\n" + rest)
    with pytest.raises(UserError, match=f"known_facts, row 0: .*{says}"):
        mask.load(config)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps([renamed(DECEPTION, "outer_prompt", "outer_promt")]), "row 0: the field 'outer_promt' .*Is 'outer_prompt'"),
        (json.dumps([DECEPTION | {"format": 5}]), "row 0: the field 'format' is missing, empty or no text"),
        (json.dumps([5]), "row 0: a JSON object is needed"), (json.dumps(DECEPTION), "a list of rows is needed"),
        ("[{", "not valid JSON"), ("[NaN]", "not valid JSON"),
    ],
)  # fmt: skip
def test_deceptionbench_files_that_are_none(text, says, tmp_path):
    (tmp_path / "rows.json").write_text(text)
    config = deceptionbench.Config(path=str(tmp_path / "rows.json"), rows="any")
    with pytest.raises(UserError, match=f"rows.json.*{says}"):
        deceptionbench.load(config)


@pytest.mark.parametrize("truth", ["[1e999, 2]", "[True, 2]", "['1', 2]", "[1]"])
def test_a_range_of_mask_that_is_none(truth):
    with pytest.raises(UserError, match="formatted_ground_truth"):
        mask._truth(truth, True, "row 1")
    assert mask._truth("[1, None]", True, "row 1") == [1.0, None]
