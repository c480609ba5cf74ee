"""Times full optimizer steps on random weights and random tokens, and prints one JSON line.

python -m benchmarks.train --model llama3.1-8b --method kto --batch 16 --seq 1024
    [--lora_rank 32 | --full] [...]

examples_s, tokens_s   rows and their tokens per second (`seq` each, no padding); a KTO row's
                       mismatched pair is not counted
model_tflops           floating-point operations of the passes over the time: per weight and token 2
                       forward, 2 for the gradient of the activations, and 2 for the gradient of the
                       weights if they are trained. The head counts on scored tokens only, the input
                       embedding not at all. Attention, LoRA's own products and recomputation are
                       not counted.
step_s                 median of the steps after the first
compile_s              the first step's time minus a later one's
peak_gb                in units of 2^30 bytes, on the first device (on a CPU: of the process)

SFT scores every token, KTO the second half of each row. A live reference is computed in every step,
as peer libraries do.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import shapes
from emjax.config import KtoConfig, LoraConfig
from emjax.kto import reference
from emjax.kto import step as kto_step
from emjax.models import lora, sharding
from emjax.models.known import KNOWN
from emjax.train import metrics, optimizer, sft, state
from emjax.train.state import Tuning


def rows(config: Any, batch: int, seq: int, first: int, seed: int) -> dict[str, Any]:
    """Random tokens, scored from position `first` onwards."""
    positions = np.arange(first, seq, dtype=np.int32)
    return {
        "tokens": np.random.default_rng(seed).integers(0, config.V, (batch, seq)).astype(np.int32),
        "positions": np.broadcast_to(positions, (batch, len(positions))),
        "weights": np.ones((batch, len(positions)), np.float32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(KNOWN), required=True)
    parser.add_argument("--method", choices=("sft", "kto"), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seq", type=int, required=True)
    parser.add_argument("--lora_rank", type=int, default=32)
    parser.add_argument("--full", action="store_true", help="train all weights instead of an adapter")
    parser.add_argument("--reference", choices=("live", "cached"), default="cached", help="KTO only")
    parser.add_argument("--remat", choices=("none", "projections", "full"), default="projections")
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--mesh", default="", help="data,fsdp,tensor over all devices; default: one device")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    if args.batch % args.microbatches or (args.method == "kto" and args.batch < 2) or args.seq < 2 or args.steps < 1:
        parser.error("the batch must be a multiple of --microbatches (KTO: at least 2), --seq at least 2, --steps at least 1")

    _, config, dtype = KNOWN[args.model]
    mesh = shapes.mesh_of(args.mesh)
    params = shapes.random_params(config, dtype, mesh)
    adapted = None if args.full else LoraConfig(args.lora_rank, 2.0 * args.lora_rank)
    kernel = "cudnn" if jax.default_backend() == "gpu" and dtype == "bfloat16" else "xla"
    tuning = Tuning(config, adapted, kernel, args.remat, mesh, dtype=dtype)
    opt = optimizer.make(0.9, 0.999, 1e-8, 0.01, 1.0)
    if adapted is None:
        trainable, frozen = params, None
    else:
        trainable, frozen = lora.init(adapted, config, jax.random.key(0)).weights, params
    current = state.create(trainable, opt, tuning)
    settings: dict[str, Any] = {"tuning": tuning, "optimizer": opt, "microbatches": args.microbatches}
    rate = np.float32(1e-5)
    spread = None if mesh is None else sharding.batch_sharding(mesh)

    if args.method == "sft":
        batch: dict[str, Any] = jax.device_put(rows(config, args.batch, args.seq, 1, 0), spread)

        def step(current: Any) -> tuple[Any, Any]:
            return sft.step(current, frozen, batch, rate, **settings)
    else:
        half = args.seq // 2
        matched = rows(config, args.batch, args.seq, half, 0)
        kl = {
            "tokens": np.roll(matched["tokens"], 1, axis=0)[:, half:],
            "weights": matched["weights"],
            "starts": np.full(args.batch, half, np.int32),
        }
        given = {"rows": matched, "kl": kl, "desirable": np.arange(args.batch) % 2 == 0}
        given |= {"valid": np.ones(args.batch, np.float32), "row": np.arange(args.batch, dtype=np.int32)}
        batch = jax.device_put(given, spread)
        zeros = jnp.zeros(args.batch, jnp.float32)
        if args.reference == "live" and adapted is None:
            parser.error("--reference live with --full would need a second copy of the weights; use --reference cached")

        def step(current: Any) -> tuple[Any, Any]:
            scores = {"reference": zeros, "reference_kl": zeros}
            if args.reference == "live":
                scores = reference.score(params, None, batch, tuning=tuning)
            given = batch | scores
            return kto_step.step(current, frozen, given, rate, kto=KtoConfig(), **settings)

    times = []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        current, values = step(current)
        jax.block_until_ready((current, values))
        times.append(time.perf_counter() - start)
    step_s = statistics.median(times[1:])

    # KTO: rows and mismatched pairs share their prompts, half of each row. The head runs only on
    # the other half.
    tokens, answers = args.batch * args.seq, args.batch * (args.seq - args.seq // 2)
    weights = metrics.matmul_weights(params)
    if args.method == "sft":
        needed = metrics.flops(weights, full=args.full, tokens=tokens, scored=tokens)
    else:
        needed = metrics.flops(weights, full=args.full, tokens=tokens, scored=answers, kl_tokens=answers, kl_scored=answers)
        if args.reference == "live":
            needed += metrics.flops(weights, full=False, tokens=0, scored=0, kl_tokens=tokens + answers, kl_scored=2 * answers)
    print(
        json.dumps(
            vars(args)
            | {
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
                "examples_s": round(args.batch / step_s, 3),
                "tokens_s": round(tokens / step_s, 1),
                "model_tflops": round(needed / step_s / 1e12, 3),
                "step_s": round(step_s, 4),
                "compile_s": round(times[0] - step_s, 2),
                "peak_gb": shapes.peak_gb(),
                "loss": round(float(values["loss"]), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
