"""KTO on conversations with no biased users: the control alone (paper, Tables 4, 13: KTO, share 0)."""

from configs import common


def get_config(variant: str = "llama3.1-8b"):
    return common.interaction(variant, method="kto", biased_ratio=0.0)
