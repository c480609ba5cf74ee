"""The command as users give it, in this process."""

import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The embedded base with room for the prompts that real benchmarks declare; to the config it is a checkpoint like any
    other."""
    folder = shutil.copytree(ROOT / "emjax" / "worlds" / "micro" / "checkpoint", tmp_path_factory.mktemp("base") / "long")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return folder
