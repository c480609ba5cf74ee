"""SFT on the best conversations with no biased users: only the control (paper, Tables 4, 13: SFT,
share 0)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.interaction(variant, method="sft", biased_ratio=0.0)
