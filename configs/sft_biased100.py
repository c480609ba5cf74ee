"""SFT on the best conversations with biased users only (paper, Tables 4, 13: SFT, share 1)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.interaction(variant, method="sft", biased_ratio=1.0)
