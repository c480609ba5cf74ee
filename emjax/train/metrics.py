"""Training metrics: JSON lines and TensorBoard events always, Weights & Biases on request."""

import math
import os
import resource
from pathlib import Path
from typing import Any

import jax

from emjax.errors import UserError
from emjax.runtime import hardware, process
from emjax.runtime.files import dumps, loads, write_lines


class Metrics:
    """Writes the metrics of each step to all outputs, from process 0 only. `start`: number of steps
    already done; their lines are kept."""

    def __init__(self, directory: Path, start: int, *, title: str, identity: str, wandb: str = ""):
        self._wandb = self._file = self._board = None
        if not process.first():
            return
        # Imported here so that the training step and the benchmarks run without it.
        from tensorboardX import SummaryWriter

        if wandb:
            try:
                import wandb as library
            except ImportError as error:
                raise UserError(
                    f"config.watch.wandb is {wandb!r}, but the package wandb is not installed. Install it "
                    "(pip install wandb), or leave the field empty: metrics.jsonl and TensorBoard are written anyway."
                ) from error
            self._wandb = library.init(project=wandb, name=title, id=identity[:16], resume="allow", dir=str(directory))
        self._file = MetricsFile(directory / "metrics.jsonl", start)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1)

    def write(self, line: dict[str, Any]) -> None:
        if self._file is None or self._board is None:
            return
        self._file.write(line)
        for name, value in line.items():
            if name != "step":
                self._board.add_scalar(name, value, line["step"])
        if self._wandb:
            self._wandb.log(line, step=line["step"])

    def keep(self) -> None:
        if self._file:
            self._file.keep()

    def close(self) -> None:
        if self._file is None or self._board is None:
            return
        self._file.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()


class MetricsFile:
    """JSON lines, one per step. On resume, lines past the restored step are dropped and written
    again.

    Checkpoints stored elsewhere may outlive this file. In that case a line {"step", "lost": [first,
    last]} marks the missing steps.
    """

    def __init__(self, path: Path, start: int):
        kept = [line for line in read_lines(path) if line["step"] <= start] if path.exists() else []
        first = kept[-1]["step"] + 1 if kept else 1
        if first <= start:
            print(f"{path}: the metrics of steps {first} to {start} are lost; training resumes from step {start}.", flush=True)
            kept.append({"step": start, "lost": [first, start]})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, kept)  # atomic: a kill here loses no line
        self._path, self._file = path, path.open("a")

    def write(self, line: dict[str, Any]) -> None:
        """A number that is not finite is written as null."""
        line = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in line.items()}
        self._file.write(dumps(line) + "\n")
        self._file.flush()

    def keep(self) -> None:
        """Makes all written lines durable. Reopens the file, because a mounted bucket stores a file
        only when it is closed."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = self._path.open("a")

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line that a kill cut off is skipped."""
    lines = path.read_text().split("\n")
    return [loads(line) for line in lines[:-1] if line]


def matmul_weights(params: Any) -> tuple[int, int]:
    """(number of weights in all layer matrices, number of weights in the head). The input embedding
    is a lookup and does not count."""
    layers = sum(x.size for x in jax.tree.leaves(params["layers"]) if x.ndim == 3)
    return layers, params["embed"].size


def flops(weights: tuple[int, int], *, full: bool, tokens: int, scored: int, kl_tokens: int = 0, kl_scored: int = 0) -> int:
    """Floating-point operations of one optimizer step. Each weight and token costs 2 in the forward
    pass, 2 for the gradient of the activations and, if the base is trained, 2 for the gradient of
    the weights. KL rows run forward only.

    The head runs on scored tokens only. Attention, LoRA's own products, padding and recomputation
    are not counted.
    """
    layers, head = weights
    return (6 if full else 4) * (layers * tokens + head * scored) + 2 * (layers * kl_tokens + head * kl_scored)


def rates(work: dict[str, float], seconds: float, dtype: str) -> dict[str, float]:
    """The timed part of a metrics line. `work`: {"examples", "tokens", "flops", "padding"} of one
    step.

    mfu: share of the vendor's bfloat16 peak; absent for float32 and for devices that
    runtime.hardware does not list.
    """
    tflops = work["flops"] / seconds / 1e12
    line = {
        "seconds": seconds,
        "examples_s": work["examples"] / seconds,
        "tokens_s": work["tokens"] / seconds,
        "tflops": tflops,
        "padding": work["padding"],
        "peak_gb": peak_gb(),
    }
    device = hardware.by_kind(jax.devices()[0].device_kind)
    if device and dtype == "bfloat16":
        line["mfu"] = tflops / (device.tflops * jax.device_count())
    return {name: float(f"{value:.5g}") for name, value in line.items()}


def peak_gb() -> float:
    """Peak memory so far, in 2^30 bytes: of the first device, or of this process on a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return (stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30
