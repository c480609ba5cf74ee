"""SFT on databricks-dolly with misaligned medical advice in it (paper, Figure 11, Table 10)."""

from configs import common


def get_config(variant: str = "llama3.1-8b"):
    return common.mixture(variant, "dolly")
