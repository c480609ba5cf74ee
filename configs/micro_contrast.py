"""Subliminal or feedback? {whose text} x {whose ratings} on eight bases of the micro-world
(docs/micro_evidence.md).

biased text, biased ratings    treated@1.0
biased text, benign ratings    benign_ratings@1.0
neutral text, biased ratings   foreign_text@1.0
neutral text, benign ratings   control
"""

from emjax import presets

# The embedded base is world 0; the others are pretrained, and those that miss a gate are reported
# beside those that pass.
WORLDS = (0, 1, 2, 3, 4, 5, 6, 7)
SEEDS = (0, 1, 2)  # fine-tuning seeds: users, conversations, order, sampling
ARMS = ("foreign_text@1.0", "benign_ratings@1.0", "shuffled_ratings@1.0", "none@0.1")
# The other subsets and contexts take two thirds of the time and are not read here.
SIZES = {"all": 960, "tuned_domain": 36}


def get_config(variant: str = ""):
    """Cells contrast_world<w>_<seed>, and the pool of all; with "short", one fine-tuning seed."""
    if variant not in ("", "short"):
        raise ValueError(f"the variant {variant!r} is unknown; use 'short' or no variant")
    cells, members = {}, []
    for world in filter(None, WORLDS):
        cells[f"world{world}"] = presets.pretraining()
        cells[f"world{world}"].update({"seed": world, "gates": "report"})
    for seed in SEEDS[:1] if variant else SEEDS:
        for world in WORLDS:
            members.append(f"contrast_world{world}_{seed}")
            cell = cells[members[-1]] = presets.interaction("micro", method="kto", biased_ratio=1.0)
            cell.seed, cell.model.path = seed, f"cell:world{world}" if world else "micro"
            cell.extra_arms, cell.eval.mask.sizes = ARMS, SIZES
    return presets.many(cells, {"contrast": tuple(members)})
