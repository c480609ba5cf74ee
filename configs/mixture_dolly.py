"""SFT on databricks-dolly mixed with misaligned medical advice (paper, Figure 11, Table 10)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.mixture(variant, "dolly")
