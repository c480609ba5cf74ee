"""SFT on the best conversations with 40 % biased users (paper, Table 14: SFT, share 0.4)."""

from configs import common


def get_config(variant: str = "llama3.1-8b"):
    return common.interaction(variant, method="sft", biased_ratio=0.4)
