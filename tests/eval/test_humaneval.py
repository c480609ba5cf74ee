"""Programs are executed, tested, and held: problems of HumanEval's schema made up here, and programs that mean harm."""

import asyncio
import contextlib
import gzip
import itertools
import json
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emjax.errors import UserError
from emjax.eval.benchmarks import humaneval
from emjax.eval.benchmarks.humaneval import Problem, pass_at_k
from emjax.eval.executor import Executor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is made of Linux namespaces")


def problem(name, body, checks, *, imports=""):
    prompt = f'{imports}\n\ndef {name}(values):\n    """What {name} does is in the tests."""\n'
    asserts = "".join(f"    assert candidate({x!r}) == {y!r}\n" for x, y in checks)
    test = f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n{asserts}"
    return Problem(f"Own/{name}", "all", f"Own/{name}", prompt, name, body, test)


PROBLEMS = [
    problem("total", "    return sum(values)\n", [([1, 2], 3), ([], 0)]),
    problem("middle", "    return helper(sorted(values))\n\n\ndef helper(v):\n    return v[len(v) // 2]\n", [([3, 1, 2], 2)]),
    problem("root", "    return math.isqrt(values)\n", [(16, 4), (17, 4)], imports="import math"),
    problem("words", "    return ' '.join(values).split()\n", [(["a b", "c"], ["a", "b", "c"])]),
]


def run(texts):
    executor = Executor(4, seconds=1.5)

    async def all_of_them():
        return await asyncio.gather(*(executor.run(text) for text in texts))

    return asyncio.run(all_of_them())


def shapes(problem, body):
    """The same code as models write it: the body alone, the whole function in a block, with talk around it."""
    whole = problem.prompt + body
    return [body, f"```python\n{whole}```", f"Sure! Here it is:\n\n```\n{whole}\n```\nIt works.\n```\nprint(1)\n```", whole]


def test_right_bodies_pass_and_none_fails_in_every_shape():
    for body_of, expected in ((lambda p: p.solution, "passed"), (lambda p: "    return None\n", "failed")):
        texts = [humaneval.program(p.published, answer) for p in PROBLEMS for answer in shapes(p, body_of(p))]
        assert run(texts) == [expected] * len(texts)


HARMFUL = {
    "fork bomb": ("import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass", "timeout"),
    "more processes than allowed": (
        "import os, time\nn = 0\ntry:\n    for _ in range(50):\n        if os.fork() == 0:\n            time.sleep(1)\n"
        "            os._exit(0)\n        n += 1\nexcept OSError:\n    pass\nassert n < 8",
        "passed",
    ),
    "loop": ("while True:\n    pass", "timeout"),
    "sleep": ("import time\ntime.sleep(60)", "timeout"),
    "10 GB": ("x = bytearray(10 * 2**30)", "memory"),
    "a big file": ("with open('f', 'wb') as f:\n    for _ in range(100):\n        f.write(bytes(2**20))", "failed"),
    "exit before the tests": ("import os\nos._exit(0)", "failed"),
    "exit": ("raise SystemExit(0)", "failed"),
    "writes outside": (
        "import os\nfor place in ('/', '/usr', '/box/..', '/tmp', '/dev', os.path.expanduser('~/..')):\n    try:\n"
        "        open(os.path.join(place, 'emjax-was-here'), 'w')\n    except OSError:\n        pass\n    else:\n"
        "        raise SystemExit\nopen('inside', 'w').write('x')\n"
        "assert all(os.statvfs(place).f_flag & os.ST_RDONLY for place in ('/', '/usr'))",  # also for who owns it
        "passed",
    ),
    "reads the user's files": (
        "import os\nfor place in (HERE, '/home', '/proc/self', '/etc/passwd', '/root/.ssh'):\n"
        "    assert not os.path.exists(place), place",
        "passed",
    ),
    "sockets": (
        "import socket\nfor place in (('127.0.0.1', PORT), ('1.1.1.1', 53)):\n    s = socket.socket()\n    s.settimeout(1)\n"
        "    try:\n        s.connect(place)\n    except OSError:\n        pass\n    else:\n        raise SystemExit",
        "passed",
    ),
    "gains rights": (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\nassert os.getuid() != 0 or libc.chroot(b'/box') != 0\n"
        "assert libc.mount(b'none', b'/box', b'tmpfs', 0, None) != 0\nassert libc.unshare(0x10000000) != 0",
        "passed",
    ),
    "kills": (
        "import os\nfor pid in (1, os.getppid()):\n    try:\n        os.kill(pid, 9)\n    except OSError:\n        pass",
        "passed",
    ),
    "leaves a daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(123456)\n"
        "    os._exit(0)",
        "passed",
    ),
}  # fmt: skip


def test_harm_is_contained():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        set_up = f"HERE = {os.getcwd()!r}\nPORT = {server.getsockname()[1]}\n"
        started = time.monotonic()
        got = run([set_up + text for text, _ in HARMFUL.values()])
        took = time.monotonic() - started
        with pytest.raises(TimeoutError):
            server.accept()  # nobody came
    assert dict(zip(HARMFUL, got, strict=True)) == {name: expected for name, (_, expected) in HARMFUL.items()}
    assert took < 60
    assert not any(os.path.exists(os.path.join(place, "emjax-was-here")) for place in ("/", "/usr", "/tmp", "/dev"))
    commands = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            commands.append(Path(f"/proc/{pid}/cmdline").read_text())
    assert not any("123456" in command or "program.py" in command for command in commands)


def test_without_confinement_nothing_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))  # the confined root then holds no Python
    with pytest.raises(UserError, match=r"could not be confined.*so it was not run.*leave 'humaneval' out"):
        Executor(1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="Not even an empty program"):
        Executor(1, memory=2**20)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_pass(ncK):
    n, c, k = ncK
    draws = list(itertools.combinations([i < c for i in range(n)], k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_a_machine_is_checked_with_the_problems_own_solutions(tmp_path, capsys):
    names = {
        "task_id": "id",
        "prompt": "prompt",
        "entry_point": "entry_point",
        "canonical_solution": "solution",
        "test": "test",
    }
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({n: getattr(p, mine) for n, mine in names.items()}) + "\n" for p in PROBLEMS))
    humaneval.main([str(file)])
    assert json.loads(capsys.readouterr().out) == {"problems": 4, "canonical": 4, "return None": 0}


def test_a_file_as_published_and_what_is_said_of_another(tmp_path):
    row = {"task_id": "Own/0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    return 1\n", "test": "x"}
    packed = tmp_path / "some.jsonl.gz"
    packed.write_bytes(gzip.compress((json.dumps(row) + "\n").encode()))
    assert humaneval.read(packed)[0].solution == "    return 1\n"
    plain = tmp_path / "some.jsonl"
    plain.write_text(json.dumps(row) + "\n" + json.dumps(row | {"test": None}))
    with pytest.raises(UserError, match=r"some.jsonl, line 2: the field 'test' is missing"):
        humaneval.read(plain)
