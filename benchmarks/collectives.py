"""Counts the bytes that a training step communicates on a mesh of virtual CPU devices.

python -m benchmarks.collectives --model llama3.1-8b --mesh 1,8,1
    [--batch B] [--seq T] [--method kto|sft]

Compiles a training step (LoRA, no weights needed) and prints one JSON line: the bytes that each
device receives per step by kind of collective, the bytes predicted by the scaling model
(emjax/cost/devices.py), and the largest gathered arrays. The partitioner that inserts the
collectives is the same for every backend. The figures do not show how a backend then combines,
splits or overlaps them.
"""

import argparse
import collections
import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from emjax.config import CheckpointConfig, InteractionConfig, MeshConfig, TrainConfig

_WIDTH = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
}
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]  # of the results
    group: int  # participating devices
    times: int  # executions per step
    source: str  # its origin in the program

    @property
    def size(self) -> int:
        """Bytes of one result."""
        return sum(_WIDTH[dtype] * math.prod(shape) for dtype, shape in self.shapes)

    @property
    def received(self) -> float:
        """Bytes that a device receives per step with ring algorithms."""
        n = self.group
        share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}.get(self.kind, (n - 1) / n)
        return self.times * self.size * share


def read(hlo: str) -> list[Collective]:
    """The collectives in a compiled module's text; those in loops count once per iteration."""
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        if found := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = found[2]
            bodies[name] = []
            entry = name if found[1] else entry
        elif name:
            bodies[name].append(line)
    made = []

    def walk(computation: str, times: int) -> None:
        for line in bodies.get(computation, []):
            if " while(" in line:
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                body = re.search(r"body=%?([\w.\-]+)", line)
                if not trips or not body:
                    raise ValueError(f"a loop of unknown length: {line[:200]}")
                walk(body[1], times * int(trips[1]))
                continue
            for called in re.findall(
                r"(?:to_apply|calls|called_computations=\{|true_computation|false_computation)=?%?([\w.\-]+)", line
            ):
                if " all-reduce" not in line and " reduce" not in line:
                    walk(called, times)
            found = re.match(rf"\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(_KINDS)})(?:-start)?\(", line)
            if not found:
                continue
            shapes = tuple(
                (dtype, tuple(int(n) for n in dims.split(",") if n))
                for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", found[1])
                if dtype in _WIDTH
            )
            source = re.search(r'op_name="([^"]*)"', line)
            made.append(Collective(found[2], shapes, _group(line), times, source[1] if source else ""))

    walk(entry, 1)
    return made


def _group(line: str) -> int:
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    return 2  # a permutation between pairs


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default="llama3.1-8b", help="micro, llama3.1-8b, qwen2.5-7b, qwen3-32b, or a directory")
    parser.add_argument("--mesh", default="1,8,1", help="data,fsdp,tensor")
    parser.add_argument("--batch", type=int, default=0, help="0: one row per data x fsdp shard, at least two")
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--method", choices=("kto", "sft"), default="kto")
    options = parser.parse_args(argv)
    sizes = dict(zip(("data", "fsdp", "tensor"), map(int, options.mesh.split(",")), strict=True))
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={math.prod(sizes.values())} --xla_backend_optimization_level=0"
    )
    from emjax.models.known import KNOWN

    path = KNOWN[options.model].path if options.model in KNOWN else options.model
    batch = options.batch or max(2, sizes["data"] * sizes["fsdp"])
    print(json.dumps(compare(config_of(path, options.method, sizes, batch, options.seq)) | {"model": options.model}))


def config_of(path: str, method: str, mesh: Mapping[str, int], batch: int, seq: int) -> InteractionConfig:
    """An experiment with the training step given on the command line. A CPU program gathers
    bfloat16 as float32, so the dtype here is float32; halve the bytes for bfloat16."""
    return InteractionConfig(
        experiment="interaction",
        model=CheckpointConfig(path=path, dtype="float32"),
        mesh=MeshConfig(**mesh),
        train=TrainConfig(method=method, batch_size=batch, buckets=(seq,)),
    )


def compare(config: InteractionConfig) -> dict[str, Any]:
    """The bytes of a config's training step on its mesh: counted, and predicted by the scaling
    model."""
    from emjax import aot
    from emjax.cost import devices
    from emjax.experiment.common import mesh_of

    mesh = mesh_of(config.mesh)
    step, arguments, settings, _ = aot.abstract_step(config, mesh)
    found = read(step.lower(*arguments, **settings).compile().as_text())
    kinds: dict[str, float] = collections.defaultdict(float)
    for one in found:
        kinds[one.kind] += one.received
    gathered = sorted((one for one in found if one.kind == "all-gather"), key=lambda one: -one.size)
    return {
        "mesh": dict(mesh.shape),
        "batch": config.train.batch_size,
        "counted_gb": {kind: round(size / 2**30, 3) for kind, size in kinds.items()},
        "counted_total_gb": round(sum(kinds.values()) / 2**30, 3),
        "model_gb": {
            kind: round(size / 2**30, 3)
            for kind, size in devices.collectives(devices.step_of(config), dict(mesh.shape)).items()
        },
        "largest_gathered": [
            {"shape": f"{dtype}{list(shape)}", "gb": round(one.size / 2**30, 3), "times": one.times}
            for one in gathered[:4]
            for dtype, shape in one.shapes[-1:]
        ],
    }


if __name__ == "__main__":
    main(sys.argv[1:])
