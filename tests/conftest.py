"""What several rooms of the tests share: a tiny model, and the command as users give it."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def tiny():
    """A tiny model whose predictions are far from flat."""
    import jax

    from emjax.models import LanguageModel, decoder
    from emjax.models.config import ModelConfig

    config = ModelConfig(
        family="llama", V=101, D=32, L=2, H=4, K=2, h=8, F=48, norm_eps=1e-5, rope_theta=1e4, rope_scaling=None,
        max_position=128, tied=False, qkv_bias=False, qk_norm=False, init_std=0.2,
    )  # fmt: skip
    return LanguageModel(config, decoder.init(config, jax.random.key(0)), None, (3,), source="tiny")


@pytest.fixture
def run(monkeypatch):
    """run("configs/x.py:micro", ...): python main.py --config configs/x.py:micro ..., in this process; its exit code."""
    from emjax import commands

    monkeypatch.syspath_prepend(str(ROOT))  # as a script's folder is
    monkeypatch.chdir(ROOT)

    def run(*arguments):
        argv = ["main.py", "--config", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)  # ml_collections reads the overrides there
        return commands.run(argv[1:])

    return run
