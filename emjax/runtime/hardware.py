"""The table of devices: the vendors' specifications, and the speeds that this project measured on
one of them."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from emjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Device:
    """One chip. Rates are the vendor's; `share` is the expected share of the peak that a step's
    matrix products reach."""

    name: str
    tflops: float  # dense bfloat16
    memory_gb: float  # of 2^30 bytes
    memory_rate: float  # GB/s
    link: float  # GB/s from one chip to the others of its slice or host
    share: float
    usd_hour: float | None  # list price of one chip, on demand; None: not rented by the hour
    node: int  # chips that `link` connects: the GPUs of a host, or the largest TPU slice
    far: float = 0.0  # GB/s per chip between nodes; 0: no plans beyond one node
    kinds: tuple[str, ...] = ()  # jax's device_kind

    def rate(self, span: int, count: int) -> float:
        """GB/s per chip in groups of `span` neighbours out of `count` chips: the rate of the
        slowest link that a group crosses."""
        return self.link if count <= self.node or self.node % span == 0 else self.far


# Compute, memory and links: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} and NVIDIA's data
# sheets of the H100, H200 and A100, read 2025-11; links are half of the "bidirectional" figure.
# Share: 0.45 for TPUs, which MaxText reports for Llama-3.1-8B on 256 v6e (2025-08); 0.49 for GPUs,
# measured (docs/training.md: 482 of 989 TFLOP/s, one H200, SFT). Prices:
# cloud.google.com/tpu/pricing and .../compute/gpus-pricing, US regions, recalled from 2025 and NOT
# checked since: check the prices before you rely on them. cpu: the speed of the micro-world's step
# on two cores of an AMD EPYC (docs/training.md). It has no `kinds`, because the peak and memory of
# the CPU that jax finds are unknown.
DEVICES = {
    "cpu": Device("CPU (two cores)", 0.2, 16, 20, 10, 0.40, None, 1),
    "a100": Device("NVIDIA A100 80GB", 312, 80, 2039, 300, 0.49, 5.07, 8, 12.5, kinds=("NVIDIA A100-SXM4-80GB",)),
    "h100": Device("NVIDIA H100 80GB", 989, 79, 3350, 450, 0.49, 11.06, 8, 50, kinds=("NVIDIA H100 80GB HBM3",)),
    "h200": Device("NVIDIA H200", 989, 139, 4800, 450, 0.49, 10.60, 8, 50, kinds=("NVIDIA H200",)),
    "v4": Device("TPU v4", 275, 32, 1228, 150, 0.45, 3.22, 4096, kinds=("TPU v4",)),
    "v5e": Device("TPU v5e", 197, 16, 819, 200, 0.45, 1.20, 256, kinds=("TPU v5 lite",)),
    "v5p": Device("TPU v5p", 459, 95, 2765, 600, 0.45, 4.20, 6144, kinds=("TPU v5",)),
    "v6e": Device("TPU v6e", 918, 32, 1638, 400, 0.45, 2.70, 256, kinds=("TPU v6 lite",)),
}


def by_kind(device_kind: str) -> Device | None:
    """The device that jax calls `device_kind`; None if it is not in the table."""
    return next((device for device in DEVICES.values() if device_kind in device.kinds), None)


# --- the devices of this process ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Place:
    """What the rules for `auto` fields know of the devices of a run."""

    platform: str  # "cpu", "gpu" or "tpu"
    memory: int | None  # bytes of the device that has least; None: unknown
    capability: float = 0.0  # an NVIDIA GPU's compute capability


def here() -> Place:
    """The devices that jax finds for this process."""
    import jax

    devices = jax.local_devices()
    platform = devices[0].platform
    if platform == "cpu":
        return Place("cpu", _host_memory() // len(devices))
    stats = [device.memory_stats() or {} for device in devices]
    limits = [one["bytes_limit"] for one in stats if "bytes_limit" in one]
    capability = min(float(getattr(device, "compute_capability", 0) or 0) for device in devices)
    return Place("gpu" if platform in ("gpu", "cuda", "rocm") else platform, min(limits, default=None), capability)


def planned(device: Device) -> Place:
    """The devices of a plan's target. All GPUs of the table have compute capability 8 or more."""
    kind = "cpu" if device is DEVICES["cpu"] else "tpu" if device.name.startswith("TPU") else "gpu"
    return Place(kind, int(device.memory_gb * 2**30), 8.0 if kind == "gpu" else 0.0)


def _host_memory() -> int:
    """Bytes of this machine's memory, or fewer where the control group allows fewer."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            whole = min(whole, int(file.read_text()))
    return whole


@contextlib.contextmanager
def memory_for(what: str, cure: str) -> Iterator[None]:
    """Turns running out of memory, on a device or on the host, into a UserError of one sentence.

    cure: the fields to change, such as "config.engine.slots".
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise UserError(f"{what}: out of memory. Lower {cure}, or use a device with more memory.") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether the error is jax's or Python's way to say so."""
    text = str(error)
    named = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (named and ("RESOURCE_EXHAUSTED" in text or "Out of memory" in text))


# --- measured speeds ------------------------------------------------------------------------------


class TrainingSpeed(NamedTuple):
    """Tokens per second of a whole optimizer step, by training method."""

    device: str
    tokens: dict[str, int]


class EngineSpeed(NamedTuple):
    """Tokens per second that the engine samples (decode) and reads (prefill)."""

    device: str
    decode: float
    prefill: float
    billions: float  # parameters of the measured model


# From docs/training.md: LoRA of rank 32, rows of 1,024 tokens; KTO with a cached reference, prompt
# and answer of 512 tokens each.
TRAINING = {
    "meta-llama/Llama-3.1-8B-Instruct": TrainingSpeed("one NVIDIA H200", {"sft": 16_045, "kto": 14_438}),
    "Qwen/Qwen2.5-7B-Instruct": TrainingSpeed("one NVIDIA H200", {"sft": 16_782, "kto": 15_258}),
    "Qwen/Qwen3-32B": TrainingSpeed("one NVIDIA H200", {"sft": 3_204, "kto": 2_939}),
}
# 8B shape, bfloat16, 256 rows at context 256 (12.7 ms per step), and prefill: python -m
# benchmarks.sample --model llama3.1-8b --batch 256.
ENGINE = EngineSpeed("one NVIDIA H200", 20_000, 33_800, 8.03)
