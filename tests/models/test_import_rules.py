"""Imports go one way, and the numeric core needs no data libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import emjax

PACKAGE = Path(emjax.__file__).parent
# Anyone may import these; they import one another only.
LEAVES = {"errors", "runtime", "__init__"}
ORDER = ["models", "api", "data", "train", "kto", "sampling", "interact", "eval", "report", "worlds"]
TOP = {"experiment", "plan", "commands", "serve", "aot"}


def part(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file):
    """The modules of emjax that a file names, as dotted names below emjax ("" for emjax itself)."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.partition(".")[2] for name in names if name.split(".")[0] == "emjax")


FILES = {str(f.relative_to(PACKAGE)): f for f in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("name", FILES)
def test_order(name):
    mine = part(FILES[name])
    assert mine in {*LEAVES, *ORDER, *TOP}, f"{mine} has no place in the order of imports"
    for imported in imports(FILES[name]):
        theirs = imported.split(".")[0] or "__init__"
        if theirs == mine or theirs in LEAVES or mine in TOP:
            continue
        assert mine in ORDER, f"{name} imports emjax.{imported}"
        assert theirs in ORDER, f"{name} imports emjax.{imported}"
        assert ORDER.index(theirs) < ORDER.index(mine), f"{name} imports emjax.{imported}"
        assert theirs != "worlds", f"{name} imports emjax.{imported}: only the experiment and configs name a world"
        assert mine == "train" or not imported.startswith("train.loop"), f"{name} imports emjax.{imported}"


def test_the_core_needs_no_data_libraries():
    """In a subprocess, because here they may be loaded already."""
    files = [f for f in FILES.values() if part(f) in ("models", "train", "kto", "sampling")]
    modules = [".".join(("emjax", *f.relative_to(PACKAGE).with_suffix("").parts)) for f in files]
    modules += [f"benchmarks.{f.stem}" for f in (PACKAGE.parent / "benchmarks").glob("*.py") if f.stem != "peers"]
    modules = [m.removesuffix(".__init__") for m in modules]
    assert len(modules) > 20
    code = (
        "import importlib, sys\n"
        "for name in ('grain', 'datasets', 'tensorflow_datasets', 'ml_collections', 'torch'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
