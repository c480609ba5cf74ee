"""How fast training is where it was measured, for plans."""

from typing import Any

# Tokens a second of a whole optimizer step (docs/training.md): LoRA of rank 32, rows of 1,024 tokens; KTO with a cached
# reference, prompt and answer of 512 each; the micro model in full.
RATES = {
    "meta-llama/Llama-3.1-8B-Instruct": ("one NVIDIA H200", {"sft": 16_045, "kto": 14_438}),
    "Qwen/Qwen2.5-7B-Instruct": ("one NVIDIA H200", {"sft": 16_782, "kto": 15_258}),
    "Qwen/Qwen3-32B": ("one NVIDIA H200", {"sft": 3_204, "kto": 2_939}),
}
# Tokens a second of the engine, drawn and read: 8B shape, bfloat16, one NVIDIA H200, 256 rows at context 256 (12.7 ms a step)
# and prefill (python -m benchmarks.sample --model llama3.1-8b --batch 256).
ENGINE = (20_000, 33_800)
WEIGHTS = {"meta-llama/Llama-3.1-8B-Instruct": 8.0, "Qwen/Qwen2.5-7B-Instruct": 7.6, "Qwen/Qwen3-32B": 32.8}  # billions


def engine(config: Any) -> tuple[float, float, str]:
    """Tokens a second that the engine draws and reads, and where that is from: config.interact.speed, or what was measured, as
    much slower as the model has more weights."""
    speed, path = config.interact.speed, config.model.path
    if speed.decode and speed.prefill:
        return speed.decode, speed.prefill, "config.interact.speed"
    size = WEIGHTS.get(path, 8.0)
    drawn, read = (rate * 8.0 / size for rate in ENGINE)
    origin = "measured on the 8B shape, one NVIDIA H200"
    if path not in WEIGHTS:
        origin += f"; {path} was not: give config.interact.speed"
    elif size != 8.0:
        origin += f", and not on this one: scaled to {size:g} billion weights"
    return speed.decode or drawn, speed.prefill or read, origin


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
