"""KTO on conversations with biased users only (paper, Tables 4, 13: KTO, share 1)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.interaction(variant, method="kto", biased_ratio=1.0)
