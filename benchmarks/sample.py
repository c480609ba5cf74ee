"""Times the sampling engine on random weights and prints one JSON line.

python -m benchmarks.sample --model llama3.1-8b --batch 128 --prompt 256 --new 128
    [--lora_rank 32]

--batch is the number of slots; each slot has room for --prompt + --new tokens.

tokens_s           new tokens per second of one full batch, prefill included
step_ms            one decode step, host time included: (time of `new` tokens - time of one token) /
                   (new - 1)
roofline_fraction  floor / step; floor = max(weight bytes / copy rate, 2 N batch / matmul rate)
                   + cache bytes / copy rate. N: the weights that a step reads, all except the input
                   embedding; cache: at the run's mean context; this call measures both rates. On a
                   mesh each device has its part of the rows and, over tensor, of the weights;
                   communication between devices is not included
prefill_tokens_s   prompt tokens per second, including the first sampled token
compile_s          the first batch's time minus a later one's
peak_gb            in units of 2^30 bytes, on the first device (on a CPU: of the process)

With --ragged N, N requests of random lengths (prompts from prompt / 32 to prompt tokens, answers
from new / 32 to new tokens) go through the slots. The figures above are then measured at the mean
lengths with the same cache, and these are added:

total_s            from the first request to the last result
ideal_s            prompt tokens / prefill_tokens_s + answer tokens / (batch / step)
total_over_ideal   their ratio
occupied           share of decoded slot-steps that a row used
"""

import argparse
import dataclasses
import json
import time
from typing import Any

import jax
import numpy as np

from benchmarks import shapes
from emjax.config import LoraConfig
from emjax.models import LanguageModel, lora
from emjax.models.known import KNOWN
from emjax.sampling import Engine, Request, Sampling


class _NoText:
    """A stand-in tokenizer with the model's vocabulary size; the benchmark needs no text."""

    def __init__(self, size: int):
        self._size = size

    def __len__(self) -> int:
        return self._size

    def decode(self, tokens: list[int], **_: Any) -> str:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(KNOWN), required=True)
    parser.add_argument("--batch", type=int, required=True, help="slots, and requests")
    parser.add_argument("--prompt", type=int, required=True, help="tokens of each prompt")
    parser.add_argument("--new", type=int, required=True, help="tokens sampled for each prompt, at least 2")
    parser.add_argument("--lora_rank", type=int, default=0, help="0 = no adapter")
    parser.add_argument("--ragged", type=int, default=0, metavar="N", help="also time N requests of random lengths")
    parser.add_argument("--mesh", default="", help="data,fsdp,tensor over all devices; default: one device")
    parser.add_argument("--chunk", type=int, default=64, help="prompt tokens in one prefilled block")
    args = parser.parse_args()
    if args.new < 2:
        parser.error("--new must be at least 2")

    _, config, dtype = KNOWN[args.model]
    copy_rate, matmul_rate = shapes.device_rates()
    mesh = shapes.mesh_of(args.mesh)
    params = shapes.random_params(config, dtype, mesh, stacked=False)
    adapter = None
    if args.lora_rank:
        adapter = lora.init(LoraConfig(args.lora_rank, 2.0 * args.lora_rank), config, jax.random.key(0))
    lm = LanguageModel(config, params, _NoText(config.V), eos_ids=(), adapter=adapter, mesh=mesh)
    kernel = "cudnn" if jax.default_backend() == "gpu" and dtype == "bfloat16" else "xla"
    engine = Engine(lm, slots=args.batch, cache_length=args.prompt + args.new, chunk=args.chunk, attention=kernel)
    rng = np.random.default_rng(0)

    def run(lengths: list[tuple[int, int]]) -> float:
        """Seconds of one run. Every run has new prompts: otherwise the engine would find the
        previous run's prompts already prefilled."""
        requests = [
            Request(str(i), tuple(rng.integers(0, config.V, prompt).tolist()), Sampling(seed=i, max_new=new))
            for i, (prompt, new) in enumerate(lengths)
        ]
        start = time.perf_counter()
        for _ in engine.generate(requests):
            pass
        return time.perf_counter() - start

    prompt, new = args.prompt, args.new
    first = run([(prompt, 2)] * args.batch)
    compile_s = first - run([(prompt, 2)] * args.batch)
    if args.ragged:
        lengths = [
            (int(rng.integers(max(1, prompt // 32), prompt + 1)), int(rng.integers(max(1, new // 32), new + 1)))
            for _ in range(args.ragged)
        ]
        prompts, answers = (sum(x) for x in zip(*lengths, strict=True))
        prompt, new = round(prompts / args.ragged), round(answers / args.ragged)
    one = float(np.median([run([(prompt, 1)] * args.batch) for _ in range(3)]))
    full = float(np.median([run([(prompt, new)] * args.batch) for _ in range(3)]))
    step = (full - one) / (new - 1)
    prefill_rate = args.batch * prompt / one

    ragged = {}
    if args.ragged:
        engine.stats = dataclasses.replace(engine.stats, steps=0, row_steps=0)
        total, ideal = run(lengths), prompts / prefill_rate + answers * step / args.batch
        ragged = {
            "prompt_tokens": prompts, "new_tokens": answers, "total_s": round(total, 3), "ideal_s": round(ideal, 3),
            "total_over_ideal": round(total / ideal, 3), "occupied": round(engine.stats.occupied, 3),
        }  # fmt: skip

    table = () if config.tied else (params["embed"],)
    read = sum(x.nbytes for x in jax.tree.leaves((params, adapter))) - sum(x.nbytes for x in table)
    N = sum(x.size for x in jax.tree.leaves((params, adapter))) - sum(x.size for x in table)
    context = prompt + new / 2
    cache = args.batch * context * config.L * 2 * config.K * config.h * np.dtype(params["embed"].dtype).itemsize
    devices, shards = (1, 1) if mesh is None else (mesh.size, mesh.shape["tensor"])
    floor = max(read / shards / copy_rate, 2 * N * args.batch / devices / matmul_rate) + cache / devices / copy_rate
    print(
        json.dumps(
            vars(args)
            | {
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
                "tokens_s": round(args.batch * new / full, 1),
                "step_ms": round(1e3 * step, 3),
                "roofline_fraction": round(floor / step, 3),
                "prefill_tokens_s": round(prefill_rate, 1),
                "compile_s": round(compile_s, 2),
                "peak_gb": shapes.peak_gb(),
                "copy_gb_s": round(copy_rate / 1e9, 1),
                "matmul_tflops": round(matmul_rate / 1e12, 3),
            }
            | ragged
        )
    )


if __name__ == "__main__":
    main()
