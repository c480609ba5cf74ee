"""The command as users give it, in this process."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch):
    """run("configs/x.py:micro", ...): python main.py --config configs/x.py:micro ...; its exit code."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)
    import main

    def run(*arguments):
        argv = ["main.py", "--config", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)  # ml_collections reads the overrides there
        return main.main(argv)

    return run
