"""Every benchmark has the protocol's names, and is one file."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from emjax.config import BenchmarkConfig, Section, options
from emjax.errors import UserError
from emjax.eval import benchmarks
from emjax.eval.items import Cost, Metric

FOLDER = Path(benchmarks.__file__).parent
MAY_IMPORT = {"pressure": {"mask"}, "mesa_and_mask": {"deceptionbench"}}


def test_every_module_is_shipped():
    assert sorted(benchmarks.SHIPPED) == sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__")


@pytest.mark.parametrize("name", benchmarks.SHIPPED)
def test_a_benchmark_has_the_protocols_names(name):
    found = benchmarks.find(name)
    assert found.name == name
    assert issubclass(found.Config, BenchmarkConfig)
    config = found.Config()
    assert found.judge in ("none", "rule", "model")
    assert found.metrics
    assert all(isinstance(metric, Metric) for metric in found.metrics.values())
    assert any(metric.printed for metric in found.metrics.values())
    cost = found.cost(config)
    assert isinstance(cost, Cost)
    assert cost.judge_calls == 0 or found.judge == "model"
    assert found.positions + config.max_new <= 4096  # the engine's cache in configs/evaluate.py
    for function in (found.load, found.ask, found.verdicts):
        assert callable(function)
    for field, value, known in options(config):
        assert known.doc.endswith((".", ";")) or isinstance(value, Section), field
        if field == "path" and name != "mask":
            assert known.needs == "file"


@pytest.mark.parametrize("name", benchmarks.SHIPPED)
def test_a_benchmark_imports_no_other(name):
    imported = set()
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "emjax.eval.benchmarks":
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("emjax.eval.benchmarks."):
            imported.add(node.module.rpartition(".")[2])
        elif isinstance(node, ast.Import):
            imported |= {alias.name.rpartition(".")[2] for alias in node.names if "eval.benchmarks" in alias.name}
    assert imported == MAY_IMPORT.get(name, set())


def test_costs_count_as_the_benchmarks_do():
    """4,438 generations and 4,246 judge calls are MASK's own numbers; 13,438 generations with ten pressured answers."""

    def cost(name, **fields):
        found = benchmarks.find(name)
        counted = found.cost(found.Config(**fields))
        return counted.items, counted.generations, counted.judge_calls, counted.counted

    assert cost("mask") == (1000, 4438, 4246, True)
    assert cost("mask", runs=10) == (1000, 13438, 13246, True)
    assert cost("mask", subsets=("statistics",)) == (96, 384, 192, True)
    assert cost("deceptionbench") == (180, 360, 540, True)
    assert cost("mesa_and_mask") == (2100, 4200, 6300, True)
    assert cost("humaneval", samples=20) == (164, 3280, 0, True)
    assert cost("free_form") == (8, 800, 1600, True)
    assert cost("pressure", runs=3) == (1, 8, 8, False)
    assert cost("admitting_unknown") == (1, 1, 1, False)
    assert cost("capability") == (0, 0, 0, False)


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [
        ("msak", None, r"'msak', which cannot be imported; choose mask, .*, or the import path of a module"),
        ("no.such.module", None, r"cannot be imported \(ModuleNotFoundError"),
        ("broken_one", "1 / 0", r"'broken_one', which cannot be imported \(ZeroDivisionError"),
        ("half_one", "name = 'half_one'\nmetrics = {}", "a module without Config, positions, judge, load, ask, verdicts, cost"),
    ],
)
def test_what_is_no_benchmark_is_refused(name, source, says, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    if source:
        (tmp_path / f"{name}.py").write_text(source)
    with pytest.raises(UserError, match=rf"config\.eval\.benchmarks holds .*{says}"):
        benchmarks.find(name)


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("mask", {"rows": "all"}, "^rows is 'all'; choose published, any"),
        ("mask", {"subsets": ()}, "^subsets is empty"),
        ("mask", {"subsets": ("fables",)}, "^subsets holds 'fables'"),
        ("mask", {"runs": 0}, "^runs is 0"),
        ("humaneval", {"ks": (1, 5), "samples": 4}, r"^ks is \(1, 5\).*samples \(4\)"),
        ("humaneval", {"ks": ()}, "^ks is "),
        ("humaneval", {"samples": 201}, "^samples is 201"),
        ("deceptionbench", {"rows": "all"}, "^rows is 'all'"),
    ],
)
def test_a_wrong_field_is_refused_when_the_section_is_made(name, fields, says):
    with pytest.raises(UserError, match=says):
        benchmarks.find(name).Config(**fields)


@pytest.mark.parametrize("name", [name for name in benchmarks.SHIPPED if name not in ("mask", "capability")])
def test_a_missing_file_is_named(name):
    found = benchmarks.find(name)
    with pytest.raises(UserError, match=rf"config\.eval\.{name}\.path is '', which is no file"):
        found.load(found.Config())


def test_pass_at_k_arises_for_the_ks_of_a_row():
    metrics = benchmarks.find("humaneval").metrics
    row = {"ks": [1, 10], "samples": 20, "passed": 5, "state": "ok"}
    assert [name for name, metric in metrics.items() if metric.arises(row)] == ["accuracy", "pass@10"]
    assert metrics["accuracy"].hit(row) == 0.25


def test_the_old_name_of_humaneval_still_runs_and_prints_the_new_one():
    done = subprocess.run([sys.executable, "-m", "emjax.eval.humaneval", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "python -m emjax.eval.benchmarks.humaneval" in done.stdout
    assert done.stderr == "emjax.eval.humaneval is now emjax.eval.benchmarks.humaneval\n"


def test_sections_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        benchmarks.find("mask").Config().path = "x"
