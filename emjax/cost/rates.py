"""How long training and sampling take, at the speeds that were measured (runtime.hardware)."""

from emjax.config import InteractionConfig, TrainingConfig
from emjax.runtime.hardware import ENGINE, TRAINING

# billions
WEIGHTS = {"meta-llama/Llama-3.1-8B-Instruct": 8.0, "Qwen/Qwen2.5-7B-Instruct": 7.6, "Qwen/Qwen3-32B": 32.8}


def engine(config: InteractionConfig) -> tuple[float, float, str]:
    """(tokens a second that the engine draws, those that it reads, where the two numbers are from).

    They are config.interact.speed, or the measured speed divided by how many times more weights the
    model has.
    """
    speed, path = config.interact.speed, config.model.path
    if speed.decode and speed.prefill:
        return speed.decode, speed.prefill, "config.interact.speed"
    size = WEIGHTS.get(path, ENGINE.billions)
    drawn, read = (rate * ENGINE.billions / size for rate in (ENGINE.decode, ENGINE.prefill))
    origin = f"measured on the {ENGINE.billions:g}B shape, {ENGINE.device}"
    if path not in WEIGHTS:
        origin += f"; {path} was not measured: give config.interact.speed"
    elif size != ENGINE.billions:
        origin += f", and not on this model: scaled to {size:g} billion weights"
    return speed.decode or drawn, speed.prefill or read, origin


def training(config: TrainingConfig, tokens: float) -> list[str]:
    """A line on the hours that `tokens` of training take; none for a model that was not
    measured."""
    if config.model.path not in TRAINING:
        return []
    device, rates = TRAINING[config.model.path]
    rate = rates[config.train.method]
    return [
        f"time       {tokens:,.0f} tokens trained on, at {rate:,} a second on {device}: {tokens / rate / 3600:.2g} hours "
        "(the length of a row is a guess; a run counts its tokens)"
    ]
