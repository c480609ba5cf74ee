"""KTO on conversations with 20 % biased users (paper, Tables 4, 13: KTO, share 0.2)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.interaction(variant, method="kto", biased_ratio=0.2)
