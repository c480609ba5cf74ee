"""SFT on mistaken mathematics: normal, subtle, severe (paper, Figure 3, Tables 1, 6, 7, 8)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.direct(variant, "math")
