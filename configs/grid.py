"""The paper's whole grid: narrow data, mixtures and conversations, at every ratio, on one model or all of them.

python main.py --config configs/grid.py:micro        the micro-world, one seed
python main.py --config configs/grid.py:micro/3      seeds 0, 1, 2, pooled
python main.py --config configs/grid.py:all --dry_run   every cell of the paper: its plan, and its job for a launcher
"""

from ml_collections import ConfigDict

from configs import (
    direct_code,
    direct_finance,
    direct_law,
    direct_math,
    direct_medical,
    kto_biased10,
    mixture_alpaca,
    mixture_dolly,
    sft_biased10,
)
from configs.common import MODELS

DIRECT = {
    "direct_medical": direct_medical, "direct_math": direct_math, "direct_code": direct_code, "direct_finance": direct_finance,
    "direct_law": direct_law,
}  # fmt: skip
MIXTURE = {"mixture_alpaca": mixture_alpaca, "mixture_dolly": mixture_dolly}
INTERACTION = {"sft": sft_biased10, "kto": kto_biased10}
RATIOS = (0.05, 0.2, 0.4, 0.5, 0.8, 1.0)  # every share of biased users that the paper names, beside the configs' 0 and 0.1


def cells(model: str) -> dict[str, ConfigDict]:
    """Every experiment of the paper on this model; Qwen3-32B has direct ones only."""
    if model == "micro":  # its narrow sets are one, and so are its mixtures
        modules = {"direct": direct_medical, "mixture": mixture_alpaca, **INTERACTION}
    else:
        modules = DIRECT | ({} if model == "qwen3-32b" else MIXTURE | INTERACTION)
    small = {name: "-2k" for name in INTERACTION if model == "qwen2.5-7b"}  # 10 scenarios, about 2,000 contexts
    found = {name: module.get_config(model + small.get(name, "")) for name, module in modules.items()}
    for name in INTERACTION.keys() & found.keys():
        found[name].extra_arms = (*(f"none@{ratio:g}" for ratio in RATIOS), "shuffled_ratings@1.0")
    return found


def get_config(variant: str = "llama3.1-8b"):
    model, _, seeds = variant.partition("/")
    models = [*MODELS] if model == "all" else [model or "llama3.1-8b"]
    config = ConfigDict({"experiment": "grid", "seed": 0, "cells": {}, "pools": {}, "only": ()})
    for one in models:
        for name, cell in cells(one).items():
            name = f"{name}-{one.replace('.', '_')}" if len(models) > 1 else name
            members = []
            for seed in range(int(seeds or 1)):
                members.append(f"{name}-{seed}" if seeds else name)
                config.cells[members[-1]] = cell.copy_and_resolve_references()
                config.cells[members[-1]].seed = seed
            if len(members) > 1:
                config.pools[name] = tuple(members)
    return config
