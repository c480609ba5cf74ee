"""What keeps the house liveable: typed configuration, small files and functions, prose that fits its column."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import emjax

ROOT = Path(emjax.__file__).parents[1]
PACKAGE = ROOT / "emjax"
FILES = sorted(PACKAGE.rglob("*.py"))
CODE = [*FILES, *sorted((ROOT / "configs").glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py")), ROOT / "main.py"]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
# Names that carry configuration, and types that say nothing about it.
CARRIES = re.compile(r"(config|settings|train|kto|watch|interact|select|rounds|judge|engine|mesh|draw|role|spec|sampling)s?")
UNTYPED = {"Any", "object", "dict", "Mapping", "dict[str, Any]", "Mapping[str, Any]", "ConfigDict"}
# These hold a ConfigDict, or parse one.
DOOR = {"config/parse.py", "config/fields.py", "presets/door.py", "presets/paper.py", "commands.py"}


def name_of(file):
    return str(file.relative_to(PACKAGE))


def parameters(tree):
    """(name, annotation, line) of every parameter and attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                yield arg.arg, arg.annotation, arg.lineno
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name | ast.Attribute):
            target = node.target.id if isinstance(node.target, ast.Name) else node.target.attr
            yield target, node.annotation, node.lineno


def untyped(file):
    """Parameters and attributes that carry configuration without a type."""
    for name, annotation, line in parameters(ast.parse(file.read_text())):
        if annotation is not None and CARRIES.fullmatch(name) and ast.unparse(annotation).removesuffix(" | None") in UNTYPED:
            yield f"{name_of(file)}:{line} {name}: {ast.unparse(annotation)}"


# What is no configuration under one of these names: JSON for a hash, fields of a request, results.
KNOWN = {
    "runtime/store.py": {"config"},  # a stage's part of its hash, as JSON
    "experiment/common.py": {"settings"},
    "experiment/arms.py": {"settings"},
    "eval/judge.py": {"sampling"},  # fields that go with a request
    "interact/players.py": {"sampling"},
    "interact/personas.py": {"sampling"},
    "sampling/partner.py": {"sampling"},
    "api.py": {"sampling"},
}


@pytest.mark.parametrize("file", [f for f in FILES if f.relative_to(PACKAGE).parts[0] not in ("models",)], ids=name_of)
def test_configuration_is_typed(file):
    if name_of(file) in DOOR:
        return
    known = KNOWN.get(name_of(file), set())
    found = [one for one in untyped(file) if one.split(" ")[1].rstrip(":") not in known]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_are_small(file):
    assert len(file.read_text().splitlines()) <= 500


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.relative_to(PACKAGE).parts[0] not in ("models", "sampling")], ids=name_of
)
def test_functions_are_small(file):
    """At most sixty lines after the signature and the docstring."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = node.end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 60, f"{node.name} has {lines} lines"


def prose(file):
    """(line number, line) of comments and docstrings."""
    text = file.read_text()
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(fmt|noqa|type|ruff):", token.string):
            yield token.start[0], lines[token.start[0] - 1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            doc = node.body[0]
            yield from ((n, lines[n - 1]) for n in range(doc.lineno, doc.end_lineno + 1))


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_prose_in_code_is_wrapped(file):
    long = [f"{n}: {line.strip()}" for n, line in prose(file) if len(line) > 100]
    assert not long, f"{len(long)} lines of prose over 100 characters:\n" + "\n".join(long[:5])


@pytest.mark.parametrize("page", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_pages_are_wrapped(page):
    """But for tables, code and links that cannot be broken."""
    long, fenced = [], False
    for n, line in enumerate(page.read_text().splitlines(), 1):
        fenced ^= line.startswith("```")
        if len(line) > 100 and not fenced and not line.startswith(("|", "![", "    ")) and " " in line.strip()[:100]:
            long.append(f"{n}: {line[:80]}")
    assert not long, f"{len(long)} lines over 100 characters:\n" + "\n".join(long[:5])
