"""Finds the program in a chat model's answer: what models put around code, taken away by rules that
never run or parse it."""

import re
from collections.abc import Sequence

# A fence of at least three marks on a line of its own, with the language behind it.
_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)
# What fences may stand in without ending a block: texts of several lines. Comments and short texts
# may hold quotes that open none.
_QUOTED = re.compile(
    r'"""(?:\\.|[^\\])*?"""|' r"'''(?:\\.|[^\\])*?'''|" r'#[^\n]*|"(?:\\.|[^"\\\n])*"|' r"'(?:\\.|[^'\\\n])*'",
    re.DOTALL,
)
_FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[ \t]+(?:\([^)]*\)|[^\n#;]*)[^\n]*\n?", re.MULTILINE)
_DOCSTRING = re.compile(r"""\A\s*[rRuU]?(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"[^"\n]*"|'[^'\n]*')""", re.DOTALL)
_OTHER_LANGUAGES = ("bash", "sh", "shell", "console", "zsh", "powershell", "text", "txt", "output", "plaintext", "json")
_COMMAND = re.compile(r"\s*(?:\$ |>>> |!|%)?\s*(?:pip3?|python3?|conda|uv|apt-get|brew)\s+[\w-]|\s*>>> ")


def without_reasoning(answer: str) -> str:
    """The answer without what stands in <think> tags. Reasoning that was not finished leaves
    nothing behind it; a closing tag alone ends reasoning that the chat template opened."""
    answer = re.sub(r"<think>.*?(?:</think>|\Z)", "", answer, flags=re.DOTALL | re.IGNORECASE)
    return re.split(r"</think>", answer, flags=re.IGNORECASE)[-1]


def blocks(answer: str) -> list[str]:
    """The fenced blocks of code, in order, without commands and output. A fence inside a docstring
    ends no block; the last block may lack its closing fence."""
    found, at = [], 0
    while opening := _FENCE.search(answer, at):
        start, mark = min(opening.end() + 1, len(answer)), opening[2]
        end, at = _closing(answer, start, mark)
        text = answer[start:end]
        if opening[3].lower() not in _OTHER_LANGUAGES and not _COMMAND.match(text):
            found.append(text)
    return found


def _closing(answer: str, start: int, mark: str) -> tuple[int, int]:
    """(end of the block's text, where the rest begins)."""
    quoted, plain = [one.span() for one in _QUOTED.finditer(answer, start) if "\n" in one[0]], None
    for fence in _FENCE.finditer(answer, start):
        if fence[3] or fence[2][0] != mark[0] or len(fence[2]) < len(mark):
            continue
        plain = plain or fence
        if not any(a < fence.start() < b for a, b in quoted):
            return fence.start(), fence.end()
    # Quotes that are never closed would hide every fence.
    return (plain.start(), plain.end()) if plain else (len(answer), len(answer))


def defining(found: Sequence[str], name: str) -> str | None:
    """The first block that defines the function `name` with a body; else the first that has its
    signature; None if no block defines it."""
    defines = re.compile(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b", re.MULTILINE)
    those = [(block, match) for block in found if (match := defines.search(block))]
    whole = (block for block, match in those if _has_body(block[match.start() :]))
    return next(whole, those[0][0] if those else None)


def _has_body(function: str) -> bool:
    """Whether the function that the text begins with does more than stand there."""
    header = re.match(r"[^\n]*\((?:[^()]|\([^()]*\))*\)[^\n:]*:(.*)", function, re.DOTALL)
    rest = header[1] if header else ""
    lines = rest.split("\n")
    inner = [lines[0], *_indented(lines[1:])]
    body = re.sub(r"#[^\n]*", "", _DOCSTRING.sub("", "\n".join(inner)))
    return re.fullmatch(r"\s*(?:\.\.\.|pass|raise NotImplementedError(?:\([^\n]*\))?)?\s*", body) is None


def _indented(lines: Sequence[str]) -> list[str]:
    """The first lines, up to one that is not indented."""
    for number, line in enumerate(lines):
        if line.strip() and not line[0].isspace():
            return list(lines[:number])
    return list(lines)


def future_first(program: str) -> str:
    """The program with its `from __future__` imports at the top, where alone they may stand."""
    imports = [line.strip() for line in _FUTURE.findall(program)]
    return "\n".join([*imports, _FUTURE.sub("", program)]) if imports else program
