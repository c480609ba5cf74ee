"""SFT on alpaca-cleaned with misaligned medical advice in it (paper, Figure 4, Tables 2, 3, 11)."""

from configs import common


def get_config(variant: str = "llama3.1-8b"):
    return common.mixture(
        variant,
        "alpaca_cleaned",
        benchmarks=("mask", "deceptionbench", "humaneval"),
        capability=("mmlu", "gsm8k", "gpqa_diamond_zeroshot"),
    )
