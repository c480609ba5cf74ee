"""One process of a small training; test_processes.py runs one or two of them.

worker.py DIRECTORY [STEP WHAT]: on the last process, before STEP, sends itself the signal WHAT, or stands still (HANG), or
fails (RAISE). VISIT: training stops after STEP to look at what it has made, and SIGTERM comes to the last process there.
"""

import os
import signal
import sys
import time
from pathlib import Path

from emjax.config import LoraConfig, Watch  # noqa: E402
from emjax.runtime import process, stopping

process.HEARTBEAT_S = 6
stopping.listen()
process.join()

import functools  # noqa: E402
import json  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from emjax.data import batches  # noqa: E402
from emjax.data.batches import Example  # noqa: E402
from emjax.errors import UserError  # noqa: E402
from emjax.models import decoder, lora, sharding  # noqa: E402
from emjax.models.config import ModelConfig  # noqa: E402
from emjax.runtime.files import write_atomically  # noqa: E402
from emjax.runtime.store import Store  # noqa: E402
from emjax.train import loop, optimizer, sft, state  # noqa: E402
from emjax.train.state import Tuning  # noqa: E402

CONFIG = ModelConfig(
    family="llama", V=64, D=16, L=2, H=2, K=2, h=8, F=32, norm_eps=1e-5, rope_theta=1e4, rope_scaling=None,
    max_position=64, tied=True, qkv_bias=False, qk_norm=False, init_std=0.2,
)  # fmt: skip
LORA = LoraConfig(2, 4.0, targets=("q", "down"))
STEPS = 8


def main(root: Path, step: int, what: str) -> None:
    mesh = sharding.make_mesh(jax.device_count(), 1, 1)
    opt = optimizer.make(0.9, 0.999, 1e-8, 0.01, 1.0)
    params = decoder.init(CONFIG, jax.random.key(0))
    specs = sharding.shardings(mesh, sharding.parameter_specs(decoder.abstract(CONFIG, "float32")[1]))
    params = jax.tree.map(
        lambda x, place: jax.make_array_from_callback(x.shape, place, np.asarray(x).__getitem__), params, specs
    )
    rng = np.random.default_rng(0)
    data = [Example(f"e{i}", tuple(rng.integers(0, 64, 8).tolist()), (1.0,) * 8) for i in range(16)]
    rows = batches.plan([8] * 16, 4, 2, 0, group=False)
    build = batches.sft(data, rows, 4, (8,))

    def serve(start):
        for number in range(start, STEPS):
            if number + 1 == step and what != "VISIT" and process.index == process.count - 1:
                if what == "HANG":
                    time.sleep(3600)
                if what == "RAISE":
                    raise ValueError("a defect on one of the processes")
                os.kill(os.getpid(), getattr(signal, what))
                time.sleep(0.1)
            yield build(number)

    def visit(number: int, _: state.State) -> None:
        print(f"visit after step {number}", flush=True)
        if process.index == process.count - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        process.together("visit")

    def make(directory: Path) -> None:
        tuning = Tuning(CONFIG, LORA, mesh=mesh)
        start = state.create(lora.init(LORA, CONFIG, jax.random.key(1)).weights, opt, tuning)
        train = functools.partial(sft.step, tuning=tuning, optimizer=opt)
        now = loop.run(
            lambda s, batch, rate: train(s, params, batch, rate), start, serve, np.full(STEPS, 1e-2, np.float32),
            directory=directory, identity="run", put=functools.partial(sharding.put, sharding=sharding.batch_sharding(mesh)),
            examples=lambda n: [data[i].id for i in rows[n]], save_every=2, title="train",
            work=lambda n, batch: {"examples": 4, "tokens": 32, "flops": 1e6, "padding": 0.0},
            watch=Watch(stall=int(os.environ.get("STALL", "600"))),
            visits=(step,) if what == "VISIT" else (), visit=visit,
        )  # fmt: skip
        weights = jax.tree.map(lambda x: np.asarray(x).tolist(), now["trainable"])
        write_atomically(directory / "weights.json", json.dumps(weights))

    Store(root / "store").run("train", {}, [], make)


if __name__ == "__main__":
    code = 0
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, sys.argv[3] if len(sys.argv) > 3 else "")
    except stopping.Stopped:
        print("stopped", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Exception as error:
        code = process.failed(error)
    sys.exit(stopping.leave(code))
