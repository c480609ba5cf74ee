"""An experiment in the tiny world (tests/worlds/tiny_world.py), or "grid": it with two seeds, pooled."""

from emjax import presets


def _one(seed):
    config = presets.interaction("tests.worlds.tiny_world:Tiny", method="kto", biased_ratio=0.5)
    config.seed = seed
    return config


def get_config(variant=""):
    return presets.many({"a": _one(0), "b": _one(1)}, {"both": ("a", "b")}) if variant == "grid" else _one(0)
