"""SFT on incorrect financial advice: normal, subtle, severe (paper, Table 9)."""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.direct(variant, "finance")
