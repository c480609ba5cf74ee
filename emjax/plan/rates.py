"""How fast training is where it was measured, for plans."""

from typing import Any

# Tokens a second of a whole optimizer step (docs/training.md): LoRA of rank 32, rows of 1,024 tokens; KTO with a cached
# reference, prompt and answer of 512 each; the micro model in full.
RATES = {
    "meta-llama/Llama-3.1-8B-Instruct": ("one NVIDIA H200", {"sft": 16_045, "kto": 14_438}),
    "Qwen/Qwen2.5-7B-Instruct": ("one NVIDIA H200", {"sft": 16_782, "kto": 15_258}),
    "Qwen/Qwen3-32B": ("one NVIDIA H200", {"sft": 3_204, "kto": 2_939}),
}


def training(config: Any, tokens: float) -> list[str]:
    """A line on the hours that `tokens` of training take; none for a model that was not measured."""
    if config.model.path not in RATES:
        return []
    device, rates = RATES[config.model.path]
    rate = rates[config.train.method]
    return [
        f"time       {tokens:,.0f} tokens trained on, at {rate:,} a second on {device}: {tokens / rate / 3600:.2g} hours "
        "(tokens of a row are a guess; a run counts them)"
    ]
