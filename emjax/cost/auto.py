"""What a field that says `auto` becomes: a stated rule from the model and the device.

dtype      float32 on a CPU, where bfloat16 products are slow; bfloat16 elsewhere
attention  on an NVIDIA GPU (compute capability 8 or more) cudnn, for bfloat16 and head sizes that
           are powers of two from 16 to 256; on a TPU splash, for head sizes that are multiples of
           64 and training rows that are multiples of 128 tokens; otherwise xla
slots      (0 says auto) on a CPU at most CPU_MOST, elsewhere at most cache.MOST_SLOTS. All engines
           together get half of the memory that the weights leave, each the same share, of which
           cache.KEPT_FREE stays free; the other half is for training.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from jax.sharding import AbstractMesh

from emjax.config import ComputeConfig, EngineConfig, EvaluationConfig, InteractionConfig, TrainingConfig
from emjax.config.names import AUTO
from emjax.errors import UserError
from emjax.models import sharding
from emjax.models.config import ModelConfig
from emjax.runtime.hardware import Place
from emjax.sampling import cache as kv

CPU_MOST = 16  # a few rows fill the cores of a CPU
ROOM = 0.92  # of a device's memory that a plan may fill

C = TypeVar("C", bound=TrainingConfig | EvaluationConfig)
M = TypeVar("M", bound=ComputeConfig)


def is_auto(config: TrainingConfig | EvaluationConfig) -> bool:
    """Whether any field is left to the rule."""
    return AUTO in (config.model.dtype, config.model.attention) or not config.engine.slots


def computed(config: M, shape: ModelConfig, place: Place, rows: tuple[int, ...] = ()) -> M:
    """config.model with dtype and attention settled. rows: lengths of training rows."""
    dtype, attention = config.dtype, config.attention
    if dtype == AUTO:
        dtype = "float32" if place.platform == "cpu" else "bfloat16"
    if attention == AUTO:
        attention = _attention(shape.h, dtype, place, rows)
    return dataclasses.replace(config, dtype=dtype, attention=attention)


def _attention(h: int, dtype: str, place: Place, rows: tuple[int, ...]) -> str:
    power_of_two = 16 <= h <= 256 and not h & (h - 1)
    if place.platform == "gpu" and place.capability >= 8 and dtype == "bfloat16" and power_of_two:
        return "cudnn"
    if place.platform == "tpu" and not h % 64 and not any(length % 128 for length in rows):
        return "splash"
    return "xla"


def engines(config: TrainingConfig | EvaluationConfig) -> int:
    """Engines that are in memory at the same time: the measured model's, the base's that plays
    users, and those of roles and judges that are checkpoints."""
    count = 1 + sum(judge.kind == "engine" and bool(judge.model) for judge in config.eval.judges.values())
    if isinstance(config, InteractionConfig) and not config.world:
        roles = [role for role in config.interact.models.named().values() if role.model and not role.base_url]
        count += 1 + sum(role.model != "self" for role in roles)
    return count


def slots(config: TrainingConfig | EvaluationConfig, shape: ModelConfig, place: Place, sizes: Mapping[str, int]) -> int:
    """config.engine.slots, or what the rule makes of 0. config.model is settled.

    sizes: of the mesh. Raises UserError if not one slot fits.
    """
    if config.engine.slots:
        return config.engine.slots
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    free = place.memory and max(0, int(ROOM * place.memory) - _weights(config, shape, sizes)) // (2 * engines(config))
    most = kv.slots_in(free, shape, positions(config.engine), config.model.dtype, mesh)
    shards = sizes["data"] * sizes["fsdp"]
    return max(shards, min(most, CPU_MOST) // shards * shards) if place.platform == "cpu" else most


def settled(config: C, shape: ModelConfig, place: Place, sizes: Mapping[str, int]) -> C:
    """The configuration with a number or a name in each field that said auto."""
    rows = config.train.buckets if isinstance(config, TrainingConfig) else ()
    model: Any = computed(config.model, shape, place, rows)
    config = dataclasses.replace(config, model=model)
    many = slots(config, shape, place, sizes)
    return dataclasses.replace(config, engine=dataclasses.replace(config.engine, slots=many))


def check(config: TrainingConfig | EvaluationConfig, shape: ModelConfig, place: Place, sizes: Mapping[str, int]) -> None:
    """Raises UserError where a settled configuration cannot run on the device: a kernel of another
    platform, or weights and slots that alone exceed its memory."""
    needed = {"cudnn": "gpu", "splash": "tpu"}.get(config.model.attention, place.platform)
    if needed != place.platform:
        raise UserError(
            f"config.model.attention is {config.model.attention!r}, a kernel for a {needed.upper()}, but this device is a "
            f"{place.platform.upper()}. Set it to 'xla', with a --workdir of its own (and the same --store)."
        )
    if not place.memory:
        return
    one = kv.slot_bytes(shape, positions(config.engine), config.model.dtype, sizes["tensor"])
    weights = sum(row.device for row in sharding.table(shape, config.model.dtype, sizes))
    shards, gib = sizes["data"] * sizes["fsdp"], 2**30
    if weights >= place.memory:
        raise UserError(
            f"config.model.path: its weights take {weights / gib:.3g} GiB in {config.model.dtype}, and this device has "
            f"{place.memory / gib:.3g} GiB. Set config.mesh for more devices, or use a smaller model."
        )
    if weights + config.engine.slots // shards * one > place.memory:
        most = (place.memory - weights) // one * shards
        raise UserError(
            f"config.engine.slots is {config.engine.slots}: {weights / gib:.3g} GiB of weights and "
            f"{config.engine.slots // shards * one / gib:.3g} GiB of slots of {positions(config.engine)} positions exceed the "
            f"{place.memory / gib:.3g} GiB of this device. At most {most} slots could fit: set config.engine.slots, or a "
            "smaller config.engine.cache_length, with a --workdir of its own (and the same --store)."
        )


def positions(engine: EngineConfig) -> int:
    """Positions of a slot, in whole chunks."""
    return -(-engine.cache_length // engine.chunk) * engine.chunk


def _weights(config: TrainingConfig | EvaluationConfig, shape: ModelConfig, sizes: Mapping[str, int]) -> int:
    """Bytes on a device: the base, a second copy of the layers for each engine, and with full
    tuning the tuned model with its optimizer."""
    table = sharding.table(shape, config.model.dtype, sizes)
    base = sum(row.device for row in table)
    held = base + engines(config) * sum(row.device for row in table if row.name.startswith("layers."))
    if isinstance(config, TrainingConfig) and config.train.tuning == "full":
        # The weights again; in float32 the trained weights, two moments and gradients.
        held += base + 4 * base * (2 if config.model.dtype == "bfloat16" else 1)
    return held
