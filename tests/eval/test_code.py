"""The program in a chat model's answer, as models of several kinds write it; and a mark that cannot be forged by a guess."""

import time

import pytest
from test_humaneval import PROBLEMS, problem, run

from emjax.eval import code
from emjax.eval.benchmarks import humaneval

TOTAL = PROBLEMS[0]
RIGHT = "def total(values):\n    return sum(values)\n"
WRONG = "def total(values):\n    return 7\n"
FENCED = f"```python\n{RIGHT}```"
DOCSTRING = 'def total(values):\n    """Adds.\n\n    ```\n    >>> total([1])\n    ```\n    """\n    return sum(values)\n'
FLAT_DOCSTRING = 'def total(values):\n    """\n```python\ntotal([1])\n```\n"""\n    return sum(values)\n'
SIGNATURE = 'def total(values):\n    """What it does."""\n    ...\n'

PASS = {
    "a wrong draft in reasoning": f"<think>Maybe\n```python\n{WRONG}```\nNo.</think>\n{FENCED}",
    "reasoning that the template opened": f"Maybe\n```python\n{WRONG}```\nNo.</think>\n{FENCED}",
    "a usage block first": f"Use it so:\n```python\nprint(total([1, 2]))\n```\n{FENCED}",
    "a pip block first": f"```bash\npip install numpy\n```\n{FENCED}",
    "a pip block without a language": f"```\npip install numpy\n```\n{FENCED}",
    "a prompt block first": f"```\n$ python total.py\n```\n{FENCED}",
    "a session first": f"```\n>>> total([1])\n1\n```\n{FENCED}",
    "the signature first": f"We fill this:\n```python\n{SIGNATURE}```\nso:\n{FENCED}",
    "the bare signature first": f"```python\ndef total(values):\n    pass\n```\n{FENCED}",
    "an example of output after it": f"{FENCED}\n```text\n3\n```",
    "another version after it": f"{FENCED}\nA worse one:\n```python\n{WRONG}```",
    "backticks in the docstring": f"```python\n{DOCSTRING}```\nDone.",
    "backticks at the margin of the docstring": f"```python\n{FLAT_DOCSTRING}```\nDone.",
    "backticks in a comment": f"```python\n# ``` is a fence\n{RIGHT}```",
    "a longer fence": f"````python\n{RIGHT}````",
    "tildes": f"~~~python\n{RIGHT}~~~",
    "no closing fence": f"```python\n{RIGHT}",
    "an indented list": "1. So:\n   ```python\n   x = 1\n   ```\n" + FENCED,
    "future annotations": f"```python\nfrom __future__ import annotations\n\n{RIGHT}```",
    "future annotations in brackets": f"```python\nfrom __future__ import (annotations,\n    division)\n{RIGHT}```",
    "an unclosed quote in another block": f"```python\n'''\n```\n{FENCED}",
    "quotes in a comment": f'```python\n# don\'t stop: """\n{RIGHT}```\n```python\n"""\n```',
    "a body behind a usage block": "```python\nprint(1)\n```\n```python\n    return sum(values)\n```",
}
FAIL = {
    "right code in reasoning, wrong code after it": f"<think>\n{FENCED}\n</think>\n```python\n{WRONG}```",
    "unfinished reasoning": f"<think>\n{FENCED}\nbut perhaps",
    "nothing": "",
    "a signature alone": f"```python\n{SIGNATURE}```",
}  # fmt: skip
FORGED = {
    "the old mark": "import os\nos.write(3, b'end')\nos._exit(0)\n",
    "nothing at all": "import os\nos._exit(0)\n",
    "what is left of its pipe": "import os\nos.write(3, os.read(0, 64) or b'end')\nos._exit(0)\n",
    "its arguments and variables": (
        "import os, sys\nfor text in [*sys.orig_argv, *sys.argv, *os.environ.values()]:\n    os.write(3, text.encode()[-32:])\n"
        "os._exit(0)\n"
    ),
    "all it can read": (
        "import os\nfor number in range(64):\n    try:\n        os.set_blocking(number, False)\n"
        "        os.write(3, os.read(number, 64))\n"
        "    except OSError:\n        pass\nos._exit(0)\n"
    ),
    "its globals": (
        "import os, __main__\nfor value in list(vars(__main__).values()) + list(globals().values()):\n"
        "    if isinstance(value, bytes):\n        os.write(3, value)\nos._exit(0)\n"
    ),
}  # fmt: skip


def test_the_program_is_found_in_what_models_write_around_it():
    cases = {**dict.fromkeys(PASS, "passed"), **dict.fromkeys(FAIL, "failed")}
    texts = [humaneval.program(TOTAL.published, answer) for answer in (PASS | FAIL).values()]
    assert dict(zip(cases, run(texts), strict=True)) == cases


def test_the_mark_is_no_guess():
    texts = [humaneval.program(TOTAL.published, f"```python\n{text}\n{RIGHT}```") for text in FORGED.values()]
    assert dict(zip(FORGED, run(texts), strict=True)) == dict.fromkeys(FORGED, "failed")


def test_no_program_reads_the_memory_where_the_mark_is_made():
    text = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
class Place(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
place = Place(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
got = libc.process_vm_readv(os.getppid(), ctypes.byref(place), 1, ctypes.byref(place), 1, 0)
assert got == -1 and ctypes.get_errno() in (1, 38), got  # not permitted, or no such call
"""
    assert run([text]) == ["passed"]


def test_a_problem_with_future_imports_of_its_own():
    own = problem(
        "root", "    return math.isqrt(values)\n", [(16, 4)], imports="from __future__ import annotations\nimport math"
    )
    (got,) = run([humaneval.program(own.published, f"```python\n{own.prompt}{own.solution}```")])
    assert got == "passed"


def test_blocks_of_many_fences_and_quotes_are_found_quickly():
    texts = ["```\n" * 5000, '"""' * 5000 + "```\n", "```python\n" + "'" * 9999, '```\n"""\n' * 2000, "<think>" * 9999]
    texts += ["```python\ndef total(" + "(" * 5000 + "\n", "def total(values):\n" + "    #\n" * 9999]
    started = time.monotonic()
    for text in texts:
        humaneval.program(TOTAL.published, text)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("function", "body"),
    [
        ("def f(x): ...", False), ("def f(x):\n    pass", False), ('def f(x):\n    """D."""\n', False),
        ("def f(x):\n    'd'\n    raise NotImplementedError('later')", False),
        ("def f(x):\n    # todo\n    pass  # here", False),
        ("def f(x: dict[str, int]) -> tuple[int, ...]:\n    return 1", True), ("def f(x): return 1", True),
        ("def f(x=(1, 2)):\n    pass\n    return x", True), ('def f(x):\n    """D."""\n    return 1\nprint(1)', True),
        ("def f(x):\n    ...\nprint(f(1))", False),
    ],
)  # fmt: skip
def test_a_signature_has_no_body(function, body):
    other = "def f(x):\n    return 2"
    assert (code.defining([function, other], "f") == function) == body
