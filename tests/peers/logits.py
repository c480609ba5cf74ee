"""Reads our exports with another version of transformers and prints how far its logits are from ours.

`make peers` runs `write` with the project's Python, then `compare` with an environment that has
transformers 4 and neither emjax nor jax. One JSON line a checkpoint; status 1 if one is beyond
TOLERANCE or not what config.json says.
"""

import json
import sys
from pathlib import Path

import numpy as np

TOLERANCE = 1e-4  # of the logits' standard deviation; float32 on a CPU, sums in another order
LENGTH = 700  # beyond the original length of the scaled model, so that a lost scaling shows


def write(folder: Path) -> None:
    import dataclasses

    import jax

    from emjax import models
    from emjax.models import LanguageModel, decoder
    from emjax.models.config import ModelConfig, RopeScaling
    from emjax.worlds.micro import tokenizer
    from emjax.worlds.micro.world import World

    plain = ModelConfig(
        family="llama", V=340, D=64, L=3, H=4, K=2, h=16, F=96, norm_eps=1e-5, rope_theta=5e5, rope_scaling=None,
        max_position=2048, tied=False, qkv_bias=False, qk_norm=False, init_std=0.2,
    )  # fmt: skip
    configs = {
        "llama": plain,
        "llama3-scaled": dataclasses.replace(plain, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64), tied=True),
        "qwen2": dataclasses.replace(plain, family="qwen2", qkv_bias=True, rope_theta=1e6),
        "qwen3": dataclasses.replace(plain, family="qwen3", qk_norm=True, h=32, rope_theta=1e6),
    }
    tokens = np.random.default_rng(0).integers(0, plain.V, (2, LENGTH))
    np.save(folder / "tokens.npy", tokens)
    for name, config in configs.items():
        lm = LanguageModel(config, decoder.init(config, jax.random.key(1)), tokenizer.build(World(0)), (5,), source=name)
        models.save(lm, folder / name)
        again = models.load(str(folder / name), dtype="float32")
        np.save(folder / name / "logits.npy", np.asarray(models.logits(again, tokens.astype(np.int32))))


def compare(folder: Path) -> int:
    import torch
    import transformers

    tokens, failed = torch.from_numpy(np.load(folder / "tokens.npy")), False
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, trust_remote_code=False)
        with torch.no_grad():
            theirs = model(tokens).logits.numpy()
        ours = np.load(place / "logits.npy")
        difference = float(np.abs(ours - theirs).max() / theirs.std())
        top = float((ours.argmax(-1) == theirs.argmax(-1)).mean())
        failed |= not difference <= TOLERANCE
        line = {"model": place.name, "transformers": transformers.__version__, "difference": difference, "top1_equal": top}
        print(json.dumps(line), flush=True)
    return int(failed)


if __name__ == "__main__":
    word, place = sys.argv[1], Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    sys.exit(write(place) if word == "write" else compare(place))
