"""SFT on incorrect financial advice: normal, subtle, severe (paper, Table 9)."""

from configs import common


def get_config(variant: str = "llama3.1-8b"):
    return common.direct(variant, "incorrect_finance", nominal=7_000, benchmarks=("mask",), subsets=("provided_facts",))
