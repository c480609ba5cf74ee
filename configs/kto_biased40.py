"""KTO on conversations with 40 % biased users (paper, Table 14: KTO, share 0.4)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.interaction(variant, method="kto", biased_ratio=0.4)
