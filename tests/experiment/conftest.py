"""The command as users give it, in this process."""

import json
import shutil
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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The embedded base with room for the prompts that real benchmarks declare; to the config it is a checkpoint like any
    other."""
    folder = shutil.copytree(ROOT / "emjax" / "worlds" / "micro" / "checkpoint", tmp_path_factory.mktemp("base") / "long")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return folder
