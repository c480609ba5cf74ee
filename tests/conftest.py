"""A tiny model whose predictions are far from flat, for the tests of training."""

import pytest


@pytest.fixture(scope="session")
def tiny():
    import jax

    from emjax.models import LanguageModel, decoder
    from emjax.models.config import ModelConfig

    config = ModelConfig(
        family="llama", V=101, D=32, L=2, H=4, K=2, h=8, F=48, norm_eps=1e-5, rope_theta=1e4, rope_scaling=None,
        max_position=128, tied=False, qkv_bias=False, qk_norm=False, init_std=0.2,
    )  # fmt: skip
    return LanguageModel(config, decoder.init(config, jax.random.key(0)), None, (3,), source="tiny")
