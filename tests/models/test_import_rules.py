"""Imports go one way, the numeric core needs no data libraries, and one file reads ConfigDicts."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import emjax

PACKAGE = Path(emjax.__file__).parent
# A part may import itself and the parts of earlier lines. Parts of one line do not import each other, save the last line's.
ORDER = [
    ("__init__",),
    ("errors",),
    ("config",),
    ("runtime",),
    ("models", "api"),
    ("data",),
    ("train",),
    ("kto",),
    ("sampling",),
    ("interact",),
    ("eval",),
    ("mechanism",),
    ("defence",),
    ("design",),
    ("cost",),
    ("report",),
    ("worlds",),
    ("presets",),
    ("experiment",),
    ("commands", "serve", "aot", "__main__"),
]
LEVEL = {part: number for number, parts in enumerate(ORDER) for part in parts}
NAMES_WORLDS = ("presets", "experiment", "commands")
WORLDS = {path.stem for path in (PACKAGE / "worlds").iterdir() if not path.name.startswith("_")}
CORE = ("models", "train", "kto", "sampling")
# Names of version 0.1 that still run: they start the module that replaced them and import nothing (tests/test_old_names.py).
SHIMS = {"micro/__init__.py", "micro/evidence.py"}


def part(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules(file):
    """The dotted names of everything that a file imports, wherever in the file."""
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


@pytest.mark.parametrize("name", FILES)
def test_order(name):
    if name in SHIMS:
        assert not list(imports(FILES[name]))
        return
    mine = part(FILES[name])
    assert mine in LEVEL, f"{mine} has no place in the order of imports"
    for imported in imports(FILES[name]):
        theirs = imported.split(".")[0] or "__init__"
        if theirs == mine:
            continue
        assert theirs in LEVEL, f"{name} imports emjax.{imported}"
        doors = LEVEL[theirs] == LEVEL[mine] == len(ORDER) - 1
        assert LEVEL[theirs] < LEVEL[mine] or doors, f"{name} imports emjax.{imported}"
        below = LEVEL[mine] < LEVEL["experiment"]
        assert not (below and imported.startswith("train.loop")), f"{name} imports emjax.{imported}"


@pytest.mark.parametrize("name", FILES)
def test_config_knows_only_errors_and_itself(name):
    if part(FILES[name]) == "config":
        assert {imported.split(".")[0] for imported in imports(FILES[name])} <= {"errors", "config"}


@pytest.mark.parametrize("name", FILES)
def test_one_file_reads_config_dicts(name):
    found = {module.split(".")[0] for module in modules(FILES[name])}
    assert "ml_collections" not in found or name == "config/parse.py"


@pytest.mark.parametrize("name", FILES)
def test_few_parts_name_a_world(name):
    """A world is reached by config.world; a world's own files may import each other."""
    own = Path(name).parts[1].removesuffix(".py") if part(FILES[name]) == "worlds" else ""
    for imported in imports(FILES[name]):
        first, _, rest = imported.partition(".")
        world = rest.split(".")[0]
        if first == "worlds" and world in WORLDS and world != own:
            assert part(FILES[name]) in NAMES_WORLDS, f"{name} imports emjax.{imported}"


@pytest.mark.parametrize("name", sorted(file.name for file in (PACKAGE.parent / "configs").glob("*.py")))
def test_config_files_import_emjax_alone(name):
    assert {module.split(".")[0] for module in modules(PACKAGE.parent / "configs" / name)} == {"emjax"}


def tokenizers_used(file):
    """Calls that turn text into tokens: a tokenizer's own call, its encode methods and its chat template."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            *owner, called = ast.unparse(node.func).split(".")
            of = owner[-1] if owner else ""
            named = ("tokenizer", "_tokenizer", "tok", "backend_tokenizer")
            encodes = called in ("encode", "encode_batch", "encode_plus", "batch_encode_plus", "tokenize") and of in named
            if (called in named and node.args) or encodes or (called == "apply_chat_template" and of != "self"):
                yield f"{node.lineno}: {ast.unparse(node)[:80]}"


@pytest.mark.parametrize("name", FILES)
def test_one_file_turns_text_into_tokens(name):
    """So that training, sampling, evaluation and capability see the same prompt."""
    found = list(tokenizers_used(FILES[name]))
    assert bool(found) == (name == "data/chat.py"), "\n".join(found)


def test_the_core_needs_no_data_libraries():
    """In a subprocess, because here they may be loaded already."""
    files = [f for f in FILES.values() if part(f) in CORE]
    core = [".".join(("emjax", *f.relative_to(PACKAGE).with_suffix("").parts)) for f in files]
    core += [f"benchmarks.{f.stem}" for f in (PACKAGE.parent / "benchmarks").glob("*.py") if f.stem != "peers"]
    core = [name.removesuffix(".__init__") for name in core]
    assert len(core) > 20
    code = (
        "import importlib, sys\n"
        "import scipy.stats\n"  # it looks at sys.modules["torch"], and takes None for torch
        "for name in ('grain', 'datasets', 'tensorflow_datasets', 'ml_collections', 'torch'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {core!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
