"""How far another training seed moves a control: pairs of control arms of one base that differ in
the seed of training alone (docs/micro_evidence.md).

Users, conversations, their order and the training's sampling differ; the base, the questions and
the seed of their answers are the same. No arm stands in two pairs: seeds 2k and 2k + 1 are one.
"""

from emjax import presets

WORLDS = (0, 1, 2, 3)
PAIRS = 11  # on each base


def get_config(variant: str = ""):
    """Cells noise_world<w>_<seed>, and one that pretrains each base but the embedded one."""
    if variant:
        raise ValueError("there is no variant")
    cells = {}
    for world in filter(None, WORLDS):
        cells[f"world{world}"] = presets.pretraining()
        cells[f"world{world}"].update({"seed": world, "gates": "report"})
    for world in WORLDS:
        for seed in range(2 * PAIRS):
            cell = cells[f"noise_world{world}_{seed}"] = presets.interaction("micro", method="kto", biased_ratio=0.0)
            cell.seed, cell.model.path, cell.extra_arms = seed, f"cell:world{world}" if world else "micro", ()
            cell.eval.seed, cell.eval.mask.sizes = 0, {"all": 960}
    return presets.many(cells)
