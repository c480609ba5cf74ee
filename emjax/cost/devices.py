"""What a run takes on the devices of --target: memory of each chip, time and money of training, a
mesh and a batch that fit.

Everything follows from shapes and from runtime.hardware; docs/scaling.md has the formulas, and how
far they are from what the compiler says.
"""

import bisect
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping

from jax.sharding import AbstractMesh

from emjax.config import EngineConfig, InteractionConfig, LoraConfig, TrainingConfig
from emjax.cost import auto
from emjax.cost.auto import ROOM
from emjax.errors import UserError
from emjax.models import decoder, sharding
from emjax.models.config import ModelConfig
from emjax.models.known import shape_of
from emjax.models.lora import shapes
from emjax.runtime.hardware import DEVICES, Device, planned
from emjax.sampling import cache as kv
from emjax.train import metrics

GB = 2**30


def target(text: str) -> tuple[Device, int]:
    """'cpu', 'h200', 'h100x8', 'v5p:2x2x4' -> (device, number of chips). Raises UserError for
    anything else."""
    found = re.fullmatch(r"(cpu)|([ah]\d+)(?:x(\d+))?|(v\d+[a-z]?):(\d+(?:x\d+)*)", text)
    name = found and (found[1] or found[2] or found[4])
    if not found or name not in DEVICES:
        raise UserError(
            f"--target is {text!r}; give cpu, a GPU and their number (h200, h100x8) or a TPU slice (v5e:4x4, v5p:2x2x4). Known "
            f"are {', '.join(DEVICES)}."
        )
    count = math.prod(map(int, found[5].split("x"))) if found[5] else int(found[3] or 1)
    if count < 1:
        raise UserError(f"--target is {text!r}, which has no chips; give at least one.")
    device = DEVICES[str(name)]
    if count > device.node and not device.far:
        raise UserError(
            f"--target is {text!r}, which has {count} chips; a slice of {name} has at most {device.node}, and a plan is for "
            "one slice. Give a smaller one."
        )
    return device, count


@dataclasses.dataclass(frozen=True)
class Step:
    """The shape of a training step: what memory and time follow from."""

    model: ModelConfig
    dtype: str
    rows: int  # of a batch
    length: int  # tokens of a row
    answer: int  # of these, scored
    remat: str = "projections"
    lora: LoraConfig | None = None  # None: full tuning
    paired: bool = False  # KTO with mismatched rows
    microbatches: int = 1

    @property
    def adapter(self) -> int:
        """Parameters of the adapter."""
        if self.lora is None:
            return 0
        sizes = shapes(self.model)
        return self.model.L * self.lora.rank * sum(sum(sizes[target]) for target in self.lora.targets)


def _weights(step: Step) -> tuple[int, int, int]:
    """Parameters of (all layers' matrices, the head, everything)."""
    tree, _ = decoder.abstract(step.model, step.dtype)
    sizes = {name: math.prod(x.shape) for name, x in tree["layers"].items() if len(x.shape) == 3}
    head = step.model.V * step.model.D
    return sum(sizes.values()), head, sum(sizes.values()) + head * (1 if step.model.tied else 2)


def memory(step: Step, sizes: Mapping[str, int]) -> dict[str, float]:
    """Bytes on each chip while a step runs, by kind. Raises UserError where the model cannot be cut
    so."""
    m, t, cut = step.model, sizes["tensor"], sizes["fsdp"] * sizes["tensor"]
    rows = step.rows / (sizes["data"] * sizes["fsdp"] * step.microbatches)
    tokens = rows * step.length
    width = 2 if step.dtype == "bfloat16" else 4
    layers, head, everything = _weights(step)
    base = sum(row.device for row in sharding.table(m, step.dtype, sizes))
    wide, narrow = (2 * m.H * m.h + 2 * m.K * m.h + 2 * m.F) / t, 2 * m.D
    low = 0 if step.lora is None else step.lora.rank * len(step.lora.targets)
    saved = {
        "full": m.D,  # what enters a layer
        "projections": wide + narrow + low,  # decoder.REMAT's names and what enters a layer
        # also the norms' results and the gated product
        "none": wide + narrow + low + (2 * m.F / t + 4 * m.D),
    }[step.remat]
    found = {"weights": float(base)}
    if step.lora is None:
        found |= {
            "optimizer": 12 * everything / cut,
            "gradients": 4 * everything / cut,
            "cast weights": width * everything / cut,
        }
    else:
        found |= {"adapter": 4.0 * step.adapter, "optimizer": 8.0 * step.adapter, "gradients": 4.0 * step.adapter}
    found["activations"] = width * tokens * (m.L * saved + (wide + narrow if step.remat == "full" else 0))
    if step.paired:
        found["keys and values"] = width * tokens * m.L * 2 * m.K * m.h / t
    # Of sharded weights the layer at work and the next one are whole on the chip, and the head.
    whole = sizes["fsdp"] > 1
    found["gathered weights"] = width * ((2 * layers / m.L if whole else 0) + (head if whole else 0)) / t
    found["logits"] = 4 * 2 * min(1024, step.rows * step.answer) / (sizes["data"] * sizes["fsdp"]) * m.V / t
    return found


def flops(step: Step) -> tuple[float, float]:
    """(arithmetic that a step needs, and what it executes) of all chips; they differ by what remat
    computes again."""
    layers, head, _ = _weights(step)
    tokens, scored = step.rows * step.length, step.rows * step.answer
    again = tokens if step.paired and step.microbatches > 1 else 0
    kl = step.paired * scored
    needed = metrics.flops(
        (layers, head), full=step.lora is None, tokens=tokens, scored=scored, kl_tokens=kl + again, kl_scored=kl
    )
    return needed, needed + (2 * layers * tokens if step.remat == "full" else 0)


def collectives(step: Step, sizes: Mapping[str, int]) -> dict[str, float]:
    """Bytes that each chip receives in a step, by the axis that causes them.

    fsdp: all layers' weights are gathered in each pass, a frozen head once. tensor: sums of [rows,
    T, D] in each layer, 2 forward and 5 backward (the gradients through q, k, v, gate and up are
    summed one by one), 2 more for mismatched rows. gradients: the trained parameters' sums over
    rows.
    """
    m, (d, f, t) = step.model, (sizes[axis] for axis in sharding.AXES)
    width = 2 if step.dtype == "bfloat16" else 4
    layers, head, everything = _weights(step)
    rows = step.rows / (d * f)
    passes = (2 + step.paired) if step.microbatches == 1 else step.microbatches * (2 + 2 * step.paired)
    heads = passes if step.lora is None else 1
    found = {"fsdp": width * (passes * layers + heads * head) / t * (f - 1) / f}
    summed = 7 * step.length + (2 * step.answer if step.paired else 0)
    found["tensor"] = width * m.L * rows * summed * m.D * 2 * (t - 1) / t
    if step.lora is None:
        found["gradients"] = 4 * everything / t * ((f - 1) / f + 2 * (d - 1) / d / f)
    else:
        found["gradients"] = 4 * step.adapter * 2 * (d * f - 1) / (d * f)
    return found


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way to run a step on a target."""

    sizes: dict[str, int]
    step: Step
    memory: dict[str, float]
    compute_s: float
    link_s: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        """Gathering weights is hidden behind arithmetic as far as that lasts; sums are waited
        for."""
        return max(self.compute_s, self.link_s["fsdp"]) + self.link_s["tensor"] + self.link_s["gradients"]


def plan(step: Step, sizes: Mapping[str, int], device: Device) -> Plan:
    count = math.prod(sizes.values())
    # Neighbours on the mesh: tensor, then fsdp. The gradients' sums are of all rows.
    spans = {"tensor": sizes["tensor"], "fsdp": sizes["fsdp"] * sizes["tensor"], "gradients": count}
    links = {name: x / (device.rate(spans[name], count) * 1e9) for name, x in collectives(step, sizes).items()}
    compute = flops(step)[1] / (count * device.tflops * device.share * 1e12)
    return Plan(dict(sizes), step, memory(step, sizes), compute, links)


def choose(step: Step, device: Device, count: int) -> list[Plan]:
    """The meshes and remats that fit, the fastest first."""
    found = []
    for tensor, fsdp in itertools.product((n for n in range(1, count + 1) if count % n == 0), repeat=2):
        if count % (tensor * fsdp) or step.rows % (count // tensor * step.microbatches):
            continue
        sizes = {"data": count // (tensor * fsdp), "fsdp": fsdp, "tensor": tensor}
        try:
            sharding.check(step.model, sizes)
        except UserError:
            continue
        tried = [plan(dataclasses.replace(step, remat=remat), sizes, device) for remat in ("projections", "full")]
        found += [one for one in tried if one.total <= ROOM * device.memory_gb * GB]
    return sorted(found, key=lambda one: one.seconds)


def in_parts(step: Step, device: Device, count: int) -> list[Plan]:
    """`choose`, with the fewest further microbatches that make the batch fit: they change results
    by rounding alone."""
    parts = [n for n in range(step.microbatches, step.rows + 1) if step.rows % n == 0 and n % step.microbatches == 0]
    plans = (choose(dataclasses.replace(step, microbatches=n), device, count) for n in parts)
    return next(filter(None, plans), [])


def nearest(step: Step, device: Device, count: int) -> int | None:
    """The number of rows nearest to the step's that spreads over the chips and fits; where no
    number does, None."""
    # by how many chips share a row
    shards = [count // n for n in range(1, count + 1) if count % n == 0]
    rows = {n * times for n in shards for times in (step.rows // n, step.rows // n + 1) if times}
    for n in sorted(rows, key=lambda n: abs(n - step.rows)):
        if in_parts(dataclasses.replace(step, rows=n, microbatches=1), device, count):
            return n
    return None


def most_rows(made: Plan, device: Device) -> int:
    """The largest batch that fits on the plan's mesh, with its remat and microbatches."""
    unit = made.sizes["data"] * made.sizes["fsdp"] * made.step.microbatches

    def total(times: int) -> float:
        return sum(memory(dataclasses.replace(made.step, rows=times * unit), made.sizes).values())

    return unit * bisect.bisect_right(range(2**20), ROOM * device.memory_gb * GB, lo=1, key=total) - unit


def sampling(engine: EngineConfig, made: Plan, device: Device, *, at_steps: bool) -> tuple[bool, int, str]:
    """(whether the sampler fits a chip on the plan's mesh, how many slots would, the line on what
    it takes).

    at_steps: whether models are measured while they train, so that the sampler runs beside the
    optimizer.
    """
    model, dtype = made.step.model, made.step.dtype
    table = sharding.table(model, dtype, made.sizes)
    # A tuned model is kept beside the base, and the sampler has a second copy of the layers.
    held = {
        "weights": sum(row.device for row in table) * (2 if made.step.lora is None else 1),
        "the layers apart": sum(row.device for row in table if row.name.startswith("layers.")),
        "adapter": 4 * made.step.adapter,
    }
    if at_steps:
        held["optimizer"] = int(made.memory["optimizer"])
    free = max(0, int(ROOM * device.memory_gb * GB) - sum(held.values()))
    length = -(-engine.cache_length // engine.chunk) * engine.chunk
    mesh = AbstractMesh(tuple(made.sizes.values()), tuple(made.sizes))
    shards = made.sizes["data"] * made.sizes["fsdp"]
    try:
        most = kv.slots_in(None if device.name == DEVICES["cpu"].name else free, model, length, dtype, mesh)
    except UserError:
        most = 0
    slots = engine.slots or most
    cache = slots // shards * kv.slot_bytes(model, length, dtype, made.sizes["tensor"])
    fits = False
    if slots % shards:
        verdict = f"config.engine.slots must be a multiple of data x fsdp, {shards}"
    elif not 0 < cache <= (1 - kv.KEPT_FREE) * free:
        verdict = f"does not fit; at most {most} slots do (config.engine.slots, cache_length)"
    else:
        fits, verdict = True, f"fits, with {kv.KEPT_FREE:.0%} of what is left kept free"
    parts = ", ".join(filter(None, (_parts(held), f"{slots} slots of {length} positions {cache / GB:.2f}")))
    return fits, most, f"sampling   {(sum(held.values()) + cache) / GB:.2f} GB a chip: {parts}: {verdict}"


def _parts(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {size / GB:.2f}" for kind, size in sizes.items() if size >= GB / 200)


def step_of(config: TrainingConfig, device: Device = DEVICES["cpu"]) -> Step:
    """The step of a config that trains a model whose shape is known; a dtype that is auto follows
    from the device."""
    train, shape = config.train, shape_of(config.model.path)
    length = max(train.buckets)
    answer = min(config.interact.max_new if isinstance(config, InteractionConfig) else length // 2, length - 1)
    return Step(
        model=shape,
        dtype=auto.computed(config.model, shape, planned(device)).dtype,
        rows=train.batch_size,
        length=length,
        answer=answer,
        remat=train.remat,
        lora=None if train.tuning == "full" else train.lora,
        paired=train.method == "kto" and config.kto.paired,
        microbatches=train.microbatches,
    )


def describe(config: TrainingConfig, text: str, steps: int) -> str:
    """The plan's lines for --target: memory a chip, the mesh, and what `steps` steps of training
    take."""
    device, count = target(text)
    step = step_of(config, device)
    plans = in_parts(step, device, count)
    heading = f"on {count} x {device.name} ({device.memory_gb:g} GB each)"
    if not plans:
        other = nearest(step, device, count)
        if other is None:
            return f"target     {heading}: training does not fit at any batch size. Use more or larger chips."
        return (
            f"target     {heading}: config.train.batch_size ({step.rows}) does not fit or does not spread over the chips; the "
            f"nearest that does is {other}, which is another experiment. Or use other chips."
        )

    def sampler(one: Plan) -> tuple[bool, int, str]:
        engine = _settled(config, one, device).engine if auto.is_auto(config) else config.engine
        return sampling(engine, one, device, at_steps=bool(config.eval.at_steps))

    def room(one: Plan) -> tuple[bool, int]:
        fits, most, _ = sampler(one)
        return fits, 0 if fits else most

    # A mesh is for the whole run: the fastest that has room for the sampler, or else the one with
    # room for most slots.
    best = max(plans, key=room)
    lines = [f"target     {heading}", *_training(best, device, count, steps), sampler(best)[2]]
    if auto.is_auto(config):
        made = _settled(config, best, device)
        lines.append(
            f"auto       --config.model.dtype={made.model.dtype} --config.model.attention={made.model.attention} "
            f"--config.engine.slots={made.engine.slots}"
        )
    return "\n".join(lines)


def _settled(config: TrainingConfig, made: Plan, device: Device) -> TrainingConfig:
    """The configuration as a run on the plan's mesh would record it; no slots where none fits."""
    try:
        return auto.settled(config, made.step.model, planned(device), made.sizes)
    except UserError:
        return config


def _training(best: Plan, device: Device, count: int, steps: int) -> list[str]:
    """The lines on memory, mesh, batch, time and money of training."""
    mesh = " ".join(f"--config.mesh.{axis}={size}" for axis, size in best.sizes.items())
    shards = best.sizes["data"] * best.sizes["fsdp"]
    rows, parts = best.step.rows, best.step.microbatches
    shared = f", each row shared by {count // shards} chips" if shards < count else ""
    sums = best.link_s["tensor"] + best.link_s["gradients"]
    hours = best.seconds * steps / 3600
    money = (
        "" if device.usd_hour is None else f", about ${hours * count * device.usd_hour:,.0f} at ${device.usd_hour} a chip-hour"
    )
    return [
        f"memory     {best.total / GB:.2f} GB a chip: {_parts(best.memory)}",
        f"mesh       {mesh} --config.train.remat={best.step.remat}",
        f"batch      {rows} rows, --config.train.microbatches={parts}: {rows // (shards * parts)} at a time on each of "
        f"{shards} shards{shared}; at most {most_rows(best, device)} fit",
        f"step       {best.seconds:.2f} s: arithmetic {best.compute_s:.2f} s at {device.share:.0%} of "
        f"{device.tflops:g} TFLOP/s; gathering {best.link_s['fsdp']:.2f} s beside it; sums {sums:.2f} s",
        f"training   {steps} steps, all arms: {hours:.1f} hours{money}",
        "           with rows as long as the largest bucket; sampling, judging and loading come on top",
    ]
