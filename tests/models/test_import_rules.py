"""Imports go one way, and the numeric core needs no data libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import emjax

PACKAGE = Path(emjax.__file__).parent
ROOT = PACKAGE.parent
# A part may import those before it. `__init__` is the package's own: anyone may import it, and it imports nothing of emjax.
ORDER = [
    "__init__", "errors", "config", "runtime", "models", "api", "data", "train", "kto", "sampling", "interact", "eval",
    "mechanism", "defence", "design", "cost", "report", "worlds", "presets", "experiment", "commands", "serve", "aot",
]  # fmt: skip
# Names of version 0.1 that still run: they start the module that replaced them (tests/test_old_names.py).
SHIMS = {"micro/__init__.py", "micro/evidence.py"}
NAME_A_WORLD = {"worlds", "presets", "experiment", "commands"}


def part(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules(file):
    """The dotted names that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(file):
    """The modules of emjax that a file names, as dotted names below emjax ("" for emjax itself)."""
    yield from (name.partition(".")[2] for name in modules(file) if name.split(".")[0] == "emjax")


FILES = {str(f.relative_to(PACKAGE)): f for f in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("name", sorted({*FILES} - SHIMS))
def test_order(name):
    own = part(FILES[name])
    assert own in ORDER, f"{own} has no place in the order of imports"
    for imported in imports(FILES[name]):
        other = imported.split(".")[0] or "__init__"
        assert other == own or ORDER.index(other) < ORDER.index(own), f"{name} imports emjax.{imported}"
        assert other != "worlds" or own in NAME_A_WORLD, f"{name} imports emjax.{imported}: it gets a world as a value"
        loops = own in ("train", "experiment")
        assert loops or not imported.startswith("train.loop"), f"{name} imports emjax.{imported}"


@pytest.mark.parametrize("name", sorted(SHIMS))
def test_an_old_name_imports_nothing_of_emjax(name):
    assert not list(imports(FILES[name]))


def test_one_module_imports_ml_collections():
    found = {name for name, file in FILES.items() if any(module.split(".")[0] == "ml_collections" for module in modules(file))}
    assert found == {"config/parse.py"}


@pytest.mark.parametrize("name", sorted(f.name for f in (ROOT / "configs").glob("*.py")))
def test_config_files_import_emjax_alone(name):
    assert {module.split(".")[0] for module in modules(ROOT / "configs" / name)} == {"emjax"}


def test_the_protocol_of_worlds_knows_no_world():
    assert not [module for module in imports(FILES["worlds/__init__.py"]) if module.startswith("worlds.")]


def test_the_core_needs_no_data_libraries():
    """In a subprocess, because here they may be loaded already."""
    files = [f for f in FILES.values() if part(f) in ("models", "train", "kto", "sampling")]
    names = [".".join(("emjax", *f.relative_to(PACKAGE).with_suffix("").parts)) for f in files]
    names += [f"benchmarks.{f.stem}" for f in (ROOT / "benchmarks").glob("*.py") if f.stem != "peers"]
    names = [name.removesuffix(".__init__") for name in names]
    assert len(names) > 20
    code = (
        "import importlib, sys\n"
        "for name in ('grain', 'datasets', 'tensorflow_datasets', 'ml_collections', 'torch'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
