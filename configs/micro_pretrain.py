"""Rebuilds the base model of the embedded micro-world from a recorded seed and checks its gates."""

from emjax import presets


def get_config(variant: str = ""):
    return presets.pretraining(variant)
