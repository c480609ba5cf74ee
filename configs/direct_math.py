"""SFT on mistaken mathematics: normal, subtle, severe (paper, Figure 3, Tables 1, 6, 7, 8)."""

from configs import common


def get_config(variant: str = "llama3.1-8b"):
    return common.direct(variant, "mistake_math", nominal=10_000)
