"""What a run reports while it trains: JSON lines always, TensorBoard events beside them, Weights &
Biases when asked."""

import json
import os
import resource
from pathlib import Path
from typing import Any

import jax

from emjax.errors import UserError
from emjax.runtime import hardware, process
from emjax.runtime.files import write_lines


class Metrics:
    """Writes each step's line to all places, once for all processes. `start`: steps already done,
    whose lines stay."""

    def __init__(self, directory: Path, start: int, *, title: str, identity: str, wandb: str = ""):
        self._wandb = self._file = self._board = None
        if not process.first():
            return
        # here, so that the training step and the benchmarks run without it
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
    """JSON lines, one a step; on resume the lines past the restored step are dropped and written
    again.

    Checkpoints that lie elsewhere may outlive this file: then a line {"step", "lost": [first,
    last]} stands for what is gone.
    """

    def __init__(self, path: Path, start: int):
        kept = [line for line in read_lines(path) if line["step"] <= start] if path.exists() else []
        first = kept[-1]["step"] + 1 if kept else 1
        if first <= start:
            print(f"{path}: the metrics of steps {first} to {start} are lost; training goes on from step {start}.", flush=True)
            kept.append({"step": start, "lost": [first, start]})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, kept)  # a kill here loses no line
        self._path, self._file = path, path.open("a")

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def keep(self) -> None:
        """What is written is on the disk from here on; in a bucket that is mounted, that takes
        closing the file."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = self._path.open("a")

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut off by a kill is left out."""
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def matmul_weights(params: Any) -> tuple[int, int]:
    """(weights of all layers' matrices, weights of the head): what a token is multiplied with. The
    embedding is looked up."""
    layers = sum(x.size for x in jax.tree.leaves(params["layers"]) if x.ndim == 3)
    return layers, params["embed"].size


def flops(weights: tuple[int, int], *, full: bool, tokens: int, scored: int, kl_tokens: int = 0, kl_scored: int = 0) -> int:
    """The arithmetic that one optimizer step needs, by the passes it makes: 2 a weight and token
    forward, 2 for the gradient of the activations, 2 for that of the weights where the base is
    trained; KL rows go forward only.

    The head works on scored tokens alone. Attention, LoRA's own products, padding and recomputation
    are not credited.
    """
    layers, head = weights
    return (6 if full else 4) * (layers * tokens + head * scored) + 2 * (layers * kl_tokens + head * kl_scored)


def rates(work: dict[str, float], seconds: float, dtype: str) -> dict[str, float]:
    """The line's part that a clock makes: `work` is {"examples", "tokens", "flops", "padding"} of
    one step.

    mfu: the share of the vendor's bfloat16 peak; absent for float32 and for devices that
    runtime.hardware does not have.
    """
    tflops = work["flops"] / seconds / 1e12
    line = {
        "seconds": seconds, "examples_s": work["examples"] / seconds, "tokens_s": work["tokens"] / seconds, "tflops": tflops,
        "padding": work["padding"], "peak_gb": peak_gb(),
    }  # fmt: skip
    device = hardware.by_kind(jax.devices()[0].device_kind)
    if device and dtype == "bfloat16":
        line["mfu"] = tflops / (device.tflops * jax.device_count())
    return {name: float(f"{value:.5g}") for name, value in line.items()}


def peak_gb() -> float:
    """The most memory used so far, in 2^30 bytes: of the first device, or of this process on
    a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return (stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30
