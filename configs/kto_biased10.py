"""KTO on conversations with 10 % biased users (paper, Table 4: KTO, share 0.1)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.interaction(variant, method="kto", biased_ratio=0.1)
