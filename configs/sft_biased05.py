"""SFT on the best conversations with 5 % biased users (paper, section 4.2 and Figure 8: SFT, share
0.05)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.interaction(variant, method="sft", biased_ratio=0.05)
