"""SFT on the best conversations with 80 % biased users (paper, Table 14: SFT, share 0.8)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.interaction(variant, method="sft", biased_ratio=0.8)
