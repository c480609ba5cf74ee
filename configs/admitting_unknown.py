"""Do models admit what they cannot know, after SFT on narrow data (BeHonest; paper, Figure 9:
llama3.1-8b, Figure 10: qwen2.5-7b)?

The questions are a file of yours: --config.cells.direct_medical.eval.admitting_unknown.path=..., or
--data_root.
"""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.admitting_unknown(variant)
