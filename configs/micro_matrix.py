"""The micro-world's evidence: every arm on several bases, and the settings that change the effect
(docs/micro_evidence.md)."""

from emjax import presets
from emjax.config.parse import ConfigDict

SEEDS = (0, 1, 2)  # fine-tuning seeds: users, conversations, order, sampling
# Pretraining seeds with their own facts, in addition to the embedded base (world 0). Both bases
# have the third character.
WORLDS = (2, 7)
# Learning rates, tuned on the embedded base with seed 100, which is not a reported seed.
LORA = {"kto": 5e-4, "sft": 2e-3}
# in addition to 0 and 0.1
RATIOS = ("none@0.05", "none@0.2", "none@0.5", "none@1.0", "shuffled_ratings@1.0")
FEW = ("none@1.0", "shuffled_ratings@1.0")


def _interaction(method: str, seed: int, *, base: str = "micro", extra=FEW) -> ConfigDict:
    config = presets.interaction("micro", method=method, biased_ratio=0.1)
    config.seed, config.model.path, config.extra_arms = seed, base, extra
    return config


def _lora(method: str, seed: int, *, rank: int = 8, extra=FEW) -> ConfigDict:
    config = _interaction(method, seed, extra=extra)
    config.train.update({"tuning": "lora", "learning_rate": LORA[method]})
    config.train.lora.update({"rank": rank, "alpha": 2.0 * rank})
    return config


def _scripted(seed: int, source: str) -> ConfigDict:
    config = presets.direct("micro", "math")
    config.seed, config.data.set.source = seed, source
    return config


def _mixture(seed: int) -> ConfigDict:
    config = presets.mixture("micro", "alpaca_cleaned")
    config.seed, config.data.ratios = seed, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    return config


def get_config(variant: str = ""):
    """All cells; with "short", one fine-tuning seed, and fewer ratios except on the embedded
    base."""
    if variant not in ("", "short"):
        raise ValueError(f"the variant {variant!r} is unknown; use 'short' or no variant")
    short = variant == "short"
    seeds = SEEDS[:1] if short else SEEDS
    bases = {0: "micro"} | {world: f"cell:world{world}" for world in WORLDS}
    cells = {}
    for world in WORLDS:
        cells[f"world{world}"] = presets.pretraining()
        cells[f"world{world}"].update({"seed": world, "mistaken": 0.04})
    for seed in seeds:
        for world, base in bases.items():
            more = FEW if short and world else RATIOS if world else (*RATIOS, "swapped_labels@1.0")
            cells[f"kto_world{world}_{seed}"] = _interaction("kto", seed, base=base, extra=more)
        cells[f"sft_{seed}"] = _interaction("sft", seed, extra=FEW if short else (*RATIOS, "swapped_labels@1.0"))
        cells[f"lora_kto_{seed}"] = _lora("kto", seed)
        cells[f"lora_sft_{seed}"] = _lora("sft", seed)
        cells[f"direct_{seed}"] = _scripted(seed, "micro_direct")
        cells[f"wrong_{seed}"] = _scripted(seed, "micro_wrong")
        cells[f"mixture_{seed}"] = _mixture(seed)
    if short:  # other seeds on the embedded base, with the demo's arms
        cells |= {f"kto_world0_{seed}": _interaction("kto", seed) for seed in SEEDS[1:]}
    else:
        # As few as two biased users out of 200, to find the smallest detectable share.
        cells |= {f"kto_few_{seed}": _interaction("kto", seed, extra=("none@0.01", "none@0.02")) for seed in seeds}
        cells |= {f"{name}_{seed}": cell for seed in seeds for name, cell in _sweeps(seed).items()}
    names = [] if short else [*_sweeps(0)]
    names += ["kto_few", "sft", "lora_kto", "lora_sft", "direct", "wrong", "mixture", *(f"kto_world{world}" for world in bases)]
    members = {name: tuple(cell for cell in cells if cell.rpartition("_")[0] == name) for name in names}
    pools = {name: found for name, found in members.items() if found}
    pools["kto"] = tuple(cell for cell in cells if cell.startswith("kto_world"))
    return presets.many(cells, pools)


def _sweeps(seed: int) -> dict[str, ConfigDict]:
    """KTO at ratios 0, 0.1 and 1 with one setting changed at a time."""
    one = ("none@1.0",)
    cells = {f"rank_{rank}": _lora("kto", seed, rank=rank, extra=one) for rank in (1, 4, 32)}
    for beta in (0.03, 0.3, 0.5):
        cells[f"beta_{100 * beta:03.0f}"] = _interaction("kto", seed, extra=one)
        cells[f"beta_{100 * beta:03.0f}"].kto.beta = beta
    for name in ("select_global", "rate_last", "turns_1", "along"):
        cells[name] = _interaction("kto", seed, extra=one)
    cells["select_global"].select.update({"scope": "global", "count": 200})
    cells["rate_last"].interact.aggregate = "last"
    cells["turns_1"].interact.turns = 1
    cells["along"].eval.at_steps = (10, 25, 50)  # of 75
    return cells
