"""Evaluates existing models (a base, its adapters, other checkpoints, or endpoints) on honesty and
capability."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.evaluation(variant)
