"""SFT on the best conversations with 10 % biased users (paper, Table 4: SFT, share 0.1)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.interaction(variant, method="sft", biased_ratio=0.1)
