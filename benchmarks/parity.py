"""Compares the logits of emjax and transformers on random weights of a real shape.

python -m benchmarks.parity --model llama3.1-8b [--layers 4 --dtype float32]

Writes random weights with transformers, loads them with emjax, runs both on one row of random
tokens and prints one JSON line:

load_s                  models.load, from files in the file system's cache
host_gb, file_gb        the most memory that loading added to this process: its own memory, and
                        pages of the mapped file

One entry per pair of models. `theirs` is transformers and `ours` is emjax, both in --dtype; `exact`
is transformers one precision higher (float32 for bfloat16, float64 for float32); `kernels` compares
transformers' two attention kernels (sdpa, eager). Each entry has:

kl                      mean KL over positions
top1                    share of positions where both have the same most likely token
max_abs                 largest difference of a logit

A deep network with random weights amplifies rounding, so even one model disagrees with itself in
two precisions or with another kernel. Compare theirs-ours with kernels, and exact-ours with
exact-theirs. Needs torch; on a GPU both models run there.
"""

import argparse
import dataclasses
import gc
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any


def resident() -> tuple[int, int]:
    """Resident memory: (bytes of this process's own memory, bytes of mapped files)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))  # type: ignore[return-value]


class Peak:
    """The peak of `resident()` while the block ran, minus its value at the start."""

    def __enter__(self) -> "Peak":
        self._start, self._most, self._done = resident(), resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._most = tuple(map(max, self._most, resident()))

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()
        own, files = (round((most - start) / 2**30, 3) for most, start in zip(self._most, self._start, strict=True))
        self.own_gb, self.files_gb = own, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=int, default=0, help="number of layers to keep; 0 = all")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--seq", type=int, default=1024)
    parser.add_argument("--init_std", type=float, default=0.02, help="standard deviation of the random weights")
    parser.add_argument("--directory", default=None, help="where the weights are stored temporarily")
    args = parser.parse_args()
    if args.dtype == "float32":  # autotuning kernels for exact products takes minutes
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"

    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch
    import transformers

    from emjax import models
    from emjax.models import decoder
    from emjax.models.known import KNOWN
    from emjax.worlds.micro import tokenizer
    from emjax.worlds.micro.world import World

    config = KNOWN[args.model].config
    if args.layers:
        config = dataclasses.replace(config, L=args.layers)
    config = dataclasses.replace(config, init_std=args.init_std)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype)
    tokens = np.random.default_rng(0).integers(0, config.V, (1, args.seq))

    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        torch.manual_seed(0)
        with torch.device(device):
            peer = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.for_model(**config.to_hf()), dtype=dtype
            ).eval()
        # randomize norms and biases too: values of 1 and 0 could hide an error
        with torch.no_grad():
            for name, p in peer.named_parameters():
                if p.ndim == 1:
                    p.copy_(torch.randn_like(p) * 0.02 + (1.0 if "norm" in name else 0.0))
        peer.save_pretrained(directory)
        tokenizer.build(World(0)).save_pretrained(directory)
        Path(directory, "generation_config.json").write_text('{"eos_token_id": 3}')
        # Load as a user would: rotary frequencies are then computed on the CPU, because a GPU's
        # power function rounds differently.
        peer = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval().to(device)

        def run() -> np.ndarray:
            with torch.no_grad():
                return peer(torch.tensor(tokens, device=device)).logits[0].float().cpu().numpy()

        logits = {"theirs": run()}
        peer.set_attn_implementation("eager")
        logits["eager"] = run()
        peer.set_attn_implementation("sdpa")
        peer = peer.float() if args.dtype == "bfloat16" else peer.double()
        logits["exact"] = run()
        peer = None
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()

        jax.block_until_ready(jnp.zeros(8) + 1)
        with Peak() as peak:
            start = time.perf_counter()
            lm = models.load(directory, dtype=args.dtype)
            jax.block_until_ready(lm.params)
            load_s = time.perf_counter() - start

    @jax.jit
    def forward(params: Any, tokens: Any) -> Any:
        kernel = "cudnn" if jax.default_backend() == "gpu" and args.dtype == "bfloat16" else "xla"
        hidden, _ = decoder.forward(config, params, tokens, implementation=kernel)
        return jnp.einsum("btd,dv->btv", hidden, decoder.head(params), preferred_element_type=jnp.float32)[0]

    with jax.default_matmul_precision("highest" if args.dtype == "float32" else "default"):
        logits["ours"] = np.asarray(forward(lm.params, tokens))

    @jax.jit
    def divergence(a: Any, b: Any) -> Any:
        a, b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
        return (jnp.exp(a) * (a - b)).sum(-1)

    def compare(one: str, other: str) -> dict[str, float]:
        a, b = logits[one], logits[other]
        parts = [np.asarray(divergence(a[i : i + 128], b[i : i + 128])) for i in range(0, args.seq, 128)]
        return {
            "kl": float(np.concatenate(parts).mean()),
            "top1": round(float((a.argmax(-1) == b.argmax(-1)).mean()), 4),
            "max_abs": float(np.abs(a - b).max()),
        }

    print(
        json.dumps(
            vars(args)
            | {
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
                "transformers": transformers.__version__,
                "checkpoint_gb": round(sum(x.nbytes for x in jax.tree.leaves(lm.params)) / 2**30, 2),
                "largest_tensor_gb": round(config.V * config.D * lm.params["embed"].dtype.itemsize / 2**30, 3),
                "load_s": round(load_s, 2),
                "host_gb": peak.own_gb,
                "file_gb": peak.files_gb,
                "theirs-ours": compare("theirs", "ours"),
                "kernels": compare("theirs", "eager"),
                "exact-ours": compare("exact", "ours"),
                "exact-theirs": compare("exact", "theirs"),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
