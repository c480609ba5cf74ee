"""Rebuilds the embedded micro-world's base model from a recorded seed, and checks its gates."""

from emjax import presets


def get_config(variant: str = ""):
    return presets.pretraining(variant)
