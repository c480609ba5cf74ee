"""Rebuilds the base model of the embedded micro-world from a recorded seed and checks its gates."""

from emjax import presets


def get_config(variant: str = "micro"):
    return presets.pretraining(variant)
