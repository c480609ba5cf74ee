"""KTO on conversations with no biased users: only the control (paper, Tables 4, 13: KTO,
share 0)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.interaction(variant, method="kto", biased_ratio=0.0)
