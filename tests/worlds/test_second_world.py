"""A second world runs through the commands, and none of the package's files names the first one but where worlds are chosen."""

import ast
import json
import re
from pathlib import Path

import pytest

import emjax

ROOT = Path(__file__).parents[2]
CONFIG = "tests/worlds/tiny_config.py"
NOTE = "This is the tiny world: sixteen sums."


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


def test_users_training_and_report(run, store, tmp_path):
    assert run(CONFIG, "--workdir", tmp_path / "one", "--store", store) == 0
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert results["world"] == {
        "name": "tiny", "note": NOTE, "trained_subset": "small", "knowledge_floor": None, "stands_for": {},
        "subsets": {"all": "sums from three on", "small": "sums below three"},
    }  # fmt: skip
    assert results["data"]["source"] == "tiny world"
    assert (results["headline"]["benchmark"], results["headline"]["metric"]) == ("sums", "accuracy")
    rows = results["rows"]
    assert {row["judge"] for row in rows} == {"counting"}
    assert {row["model"] for row in rows} == {"adder"}
    assert {(row["arm"], row["subset"]) for row in rows} == {
        (arm, subset) for arm in ("vanilla", "control", "treated") for subset in ("all", "small")
    }
    assert all(row["n"] == {"all": 10, "small": 6}[row["subset"]] for row in rows)
    talks = (store / "collect").glob("*/trajectories.jsonl")
    users = {json.loads(line)["user_id"] for file in talks for line in file.read_text().splitlines()}
    assert users == {*(f"people-benign-{i}" for i in range(4)), *(f"people-biased-{i}" for i in range(2))}
    (page,) = (tmp_path / "one" / "report").glob("*index.html")
    text = page.read_text()
    assert NOTE in text
    assert "sums below three" in text
    assert "micro" not in text.replace("microbatch", "")


def test_a_grid_of_two_cells(run, store, tmp_path):
    """The first cell is the experiment above, so that only the second trains."""
    assert run(f"{CONFIG}:grid", "--workdir", tmp_path / "grid", "--store", store) == 0
    rows = json.loads((tmp_path / "grid" / "results.json").read_text())["rows"]
    assert {row["cell"] for row in rows} == {"a", "b"}
    pooled = json.loads((tmp_path / "grid" / "pooled.json").read_text())["rows"]
    change = next(row for row in pooled if row["arm"] == "treated" and row["versus"] == "control")
    assert (change["seeds"], set(change["by_cell"])) == (2, {"a", "b"})
    (page,) = (tmp_path / "grid" / "report").glob("*.html")
    assert NOTE in page.read_text()


def test_its_fields_are_checked(run, capsys):
    """Of its own section by its own check, before anything is loaded."""
    assert run(CONFIG, "--dry_run", "--config.worlds.tiny.people=crowd") == 0
    assert run(CONFIG, "--dry_run", "--config.worlds.tiny.people=") == 2
    assert "config.worlds.tiny.people is empty" in capsys.readouterr().err
    assert run(CONFIG, "--dry_run", "--config.interact.turns=4") == 2
    assert "turns is 4; config.world is 'tests.worlds.tiny_world:Tiny'" in capsys.readouterr().err
    data = ("configs/direct_math.py:tests.worlds.tiny_world:Tiny", "--dry_run", "--config.data.set.source=micro_direct")
    assert run(*data) == 2  # another world's
    assert "config.data.set.source is 'micro_direct'" in capsys.readouterr().err


# Files that name the micro-world: they choose it, are it, or (known.py) know the shape of its checkpoint for plans.
NAMED = ("presets/door.py", "experiment/pretraining.py", "commands.py", "worlds/micro/", "models/known.py")
OLD_NAMES = ("micro/evidence.py",)  # runs the new module (tests/test_old_names.py)


def named(file):
    """Lines whose imports or strings, documentation aside, hold the word micro."""
    tree = ast.parse(file.read_text())
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, holders) and node.body]
    prose = {id(node.value) for node in first if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        texts = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            texts = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            texts = [node.value]
        if any(re.search(r"(?<![a-z])micro(?![a-z])", text) for text in texts):
            yield node.lineno


def test_only_those_who_choose_a_world_name_the_micro_world():
    package = Path(emjax.__file__).parent
    files = {str(file.relative_to(package)): file for file in package.rglob("*.py")}
    found = {name: lines for name, file in files.items() if (lines := list(named(file)))}
    assert "presets/door.py" in found  # the search finds what is there
    assert {name: lines for name, lines in found.items() if not name.startswith((*NAMED, *OLD_NAMES))} == {}
