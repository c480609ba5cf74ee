"""The command as users give it, in this process."""

import sys
from pathlib import Path

import pytest

from emjax import commands

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch):
    """run("configs/x.py:micro", ...): python main.py --config configs/x.py:micro ...; its exit code."""
    monkeypatch.chdir(ROOT)

    def run(*arguments):
        argv = ["main.py", "--config", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)  # ml_collections reads the overrides there
        return commands.run(argv[1:])

    return run
