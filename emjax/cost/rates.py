"""How long training and sampling take: the speeds that were measured (runtime.hardware), scaled to
the model and the devices that are asked for."""

from typing import NamedTuple

from emjax.config import ComputeConfig, InteractionConfig, TrainingConfig
from emjax.cost import devices
from emjax.errors import UserError
from emjax.models.config import ModelConfig
from emjax.models.known import shape_of
from emjax.runtime.hardware import DEVICES, ENGINE, TRAINING, Device

_MEASURED = DEVICES["h200"]  # the device of hardware's speeds


class Target(NamedTuple):
    """The devices that a plan is for, and whether the user named them."""

    device: Device
    chips: int
    given: bool

    def __str__(self) -> str:
        return f"{self.chips} x {self.device.name}" if self.chips > 1 or self.given else f"one {self.device.name}"

    @property
    def compute(self) -> float:
        """Arithmetic, relative to what was measured on."""
        return self.chips * self.device.tflops * self.device.share / (_MEASURED.tflops * _MEASURED.share)

    @property
    def memory(self) -> float:
        """Reading of memory, which drawing tokens waits for, relative to what was measured on."""
        return self.chips * self.device.memory_rate / _MEASURED.memory_rate

    def usd(self, hours: float) -> float | None:
        """The list price of so many hours; None for devices that are not rented by the hour."""
        return None if self.device.usd_hour is None else hours * self.chips * self.device.usd_hour


def target(text: str) -> Target:
    """--target, or one H200. Raises UserError for anything else."""
    return Target(*devices.target(text), True) if text else Target(_MEASURED, 1, False)


def parameters(m: ModelConfig) -> int:
    """The model's weights, without norms and biases."""
    layer = m.D * m.h * (2 * m.H + 2 * m.K) + 3 * m.D * m.F
    return m.L * layer + m.V * m.D * (1 if m.tied else 2)


def billions(path: str) -> float | None:
    """Billions of weights of a model whose shape is known or whose folder is here; None for
    another."""
    try:
        return parameters(shape_of(path)) / 1e9
    except UserError:
        return None


class Speed(NamedTuple):
    """Tokens a second that the engine draws and reads, and where the two numbers are from."""

    drawn: float
    read: float
    origin: str


# Of a measured decode step, with so many rows, the share in which the weights are read: 16.06 GB at
# 4.8 TB/s of 12.7 ms. The rest goes with the rows.
_ROWS, _WEIGHTS = 256, 0.264


def _rows(slots: int) -> float:
    """Tokens drawn a second with so many slots, relative to what was measured."""
    part = (slots or _ROWS) / _ROWS
    return part / (_WEIGHTS + (1 - _WEIGHTS) * part)


def engine(path: str, model: ComputeConfig, where: Target, slots: int) -> Speed:
    """The measured speeds, for the model's weights, the target's memory (drawing) and arithmetic
    (reading), and the rows that are drawn at a time."""
    size = billions(path)
    weight = (size or ENGINE.billions) * (1 if model.dtype == "bfloat16" else 2) / ENGINE.billions
    origin = f"measured on the {ENGINE.billions:.3g}B shape, {ENGINE.device}"
    if size is None:
        origin += f"; the size of {path} is not known here: give a folder with its config.json, or config.interact.speed"
    elif abs(size - ENGINE.billions) > 0.01 or where.given:
        origin += f", scaled to {size:.3g} billion weights on {where}"
    if slots not in (0, _ROWS):
        origin += f", {slots} rows at a time"
    return Speed(ENGINE.decode * _rows(slots) * where.memory / weight, ENGINE.prefill * where.compute / weight, origin)


def conversing(config: InteractionConfig, where: Target) -> Speed:
    """The engine's speeds in conversations: config.interact.speed where it is given."""
    speed = config.interact.speed
    if speed.decode and speed.prefill:
        return Speed(speed.decode, speed.prefill, "config.interact.speed")
    found = engine(config.model.path, config.model, where, config.engine.slots)
    return Speed(speed.decode or found.drawn, speed.prefill or found.read, found.origin)


def training(config: TrainingConfig, where: Target) -> tuple[float, str] | None:
    """(tokens of training a second, where the number is from); None for a model of unknown size."""
    path, method = config.model.path, config.train.method
    if path in TRAINING:
        rate, origin = float(TRAINING[path].tokens[method]), f"{where}"
    elif size := billions(path):
        rate, origin = TRAINING[_LIKE].tokens[method] * ENGINE.billions / size, f"{where}, scaled from the 8B shape"
    else:
        return None
    # Full tuning also computes the gradients of the weights: six operations a weight, not four.
    factor = (4 / 6 if config.train.tuning == "full" else 1) * (1 if config.model.dtype == "bfloat16" else 0.5)
    return rate * factor * where.compute, origin


_LIKE = "meta-llama/Llama-3.1-8B-Instruct"


def trained(config: TrainingConfig, tokens: float, where: Target) -> list[str]:
    """A line on the hours that `tokens` of training take; none for a model of unknown size, nor in
    a world, unless a target was named."""
    found = training(config, where)
    if found is None or (config.world and not where.given):
        return []
    rate, origin = found
    return [
        f"time       {tokens:,.0f} tokens trained on, at {rate:,.0f} a second on {origin}: {tokens / rate / 3600:.2g} hours "
        "(the length of a row is a guess; a run counts its tokens)"
    ]
