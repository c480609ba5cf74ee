"""SFT on the best conversations with 5 % biased users (paper, section 4.2 and Figure 8: SFT, share 0.05)."""

from configs import common


def get_config(variant: str = "llama3.1-8b"):
    return common.interaction(variant, method="sft", biased_ratio=0.05)
