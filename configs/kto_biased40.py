"""KTO on conversations with 40 % biased users (paper, Table 14: KTO, share 0.4)."""

from configs import common


def get_config(variant: str = "llama3.1-8b"):
    return common.interaction(variant, method="kto", biased_ratio=0.4)
