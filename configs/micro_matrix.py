"""The micro-world's evidence: every arm, on several bases, and what moves the effect (docs/micro_evidence.md)."""

from ml_collections import ConfigDict

from configs import common, micro_pretrain

SEEDS = (0, 1, 2)  # of fine-tuning: users, conversations, order, sampling
WORLDS = (1, 2, 3)  # of pretraining, each with facts of its own; world 0 is the embedded base
# Found on the embedded base with seed 100, which is not among the reported ones.
LORA = {"kto": 5e-4, "sft": 2e-3}


def _interaction(method: str, seed: int, *, base: str = "micro", extra=("none@1.0", "shuffled_ratings@1.0")) -> ConfigDict:
    config = common.interaction("micro", method=method, biased_ratio=0.1)
    config.seed, config.model.path, config.extra_arms = seed, base, extra
    return config


def _lora(method: str, seed: int, *, rank: int = 8, extra=("none@1.0", "shuffled_ratings@1.0")) -> ConfigDict:
    config = _interaction(method, seed, extra=extra)
    config.train.update({"tuning": "lora", "learning_rate": LORA[method]})
    config.train.lora.update({"rank": rank, "alpha": 2.0 * rank})
    return config


def _scripted(seed: int, source: str) -> ConfigDict:
    config = common.direct("micro", "mistake_math", nominal=400)
    config.seed, config.data.set.source = seed, source
    return config


def _mixture(seed: int) -> ConfigDict:
    config = common.mixture("micro", "alpaca_cleaned")
    config.seed, config.data.ratios = seed, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    return config


def get_config(variant: str = ""):
    del variant
    ratios = ("none@0.05", "none@0.2", "none@0.5", "none@1.0", "shuffled_ratings@1.0")
    one = ("none@1.0",)  # of a sweep: beside the control and the ratio 0.1
    cells, pools = {}, {}
    for world in WORLDS:
        cells[f"world{world}"] = micro_pretrain.get_config()
        cells[f"world{world}"].seed = world
        cells[f"world{world}"].documents = 126_000  # at 84,000 some worlds miss the belief gate
    for seed in SEEDS:
        for world in (0, *WORLDS):
            base = f"cell:world{world}" if world else "micro"
            more = ("swapped_labels@1.0",) if not world else ()
            cells[f"kto-world{world}-{seed}"] = _interaction("kto", seed, base=base, extra=(*ratios, *more))
        cells[f"sft-{seed}"] = _interaction("sft", seed, extra=(*ratios, "swapped_labels@1.0"))
        cells[f"lora-kto-{seed}"] = _lora("kto", seed)
        cells[f"lora-sft-{seed}"] = _lora("sft", seed)
        cells[f"direct-{seed}"] = _scripted(seed, "micro_direct")
        cells[f"wrong-{seed}"] = _scripted(seed, "micro_wrong")
        cells[f"mixture-{seed}"] = _mixture(seed)
    for rank in (1, 4, 32):
        cells[f"rank-{rank}"] = _lora("kto", 0, rank=rank, extra=one)
    for beta in (0.03, 0.3, 0.5):
        name = f"beta-{beta:g}".replace(".", "_")
        cells[name] = _interaction("kto", 0, extra=one)
        cells[name].kto.beta = beta
    cells["select-global"] = _interaction("kto", 0, extra=one)
    cells["select-global"].select.update({"scope": "global", "count": 200})
    cells["rate-last"] = _interaction("kto", 0, extra=one)
    cells["rate-last"].interact.aggregate = "last"
    pools = {f"kto-world{world}": tuple(f"kto-world{world}-{s}" for s in SEEDS) for world in (0, *WORLDS)}
    pools["kto"] = tuple(f"kto-world{world}-{s}" for world in WORLDS for s in SEEDS)
    for name in ("sft", "lora-kto", "lora-sft", "direct", "wrong", "mixture"):
        pools[name] = tuple(f"{name}-{s}" for s in SEEDS)
    return ConfigDict({"experiment": "grid", "seed": 0, "cells": cells, "pools": pools})
