"""SFT on alpaca-cleaned mixed with misaligned medical advice (paper, Figure 4, Tables 2, 3, 11)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.alpaca(variant)
