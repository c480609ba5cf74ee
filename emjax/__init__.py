"""emjax: measure how language models become dishonest by accident (arXiv:2510.08211)."""

import os

__version__ = "0.2.0"

# XLA reads these flags when JAX creates its first array. Flags that the user sets come later in the
# string and win. Reasons: docs/decisions.md, "The same bits on GPUs" and "Several processes share
# compiled programs".
_GPU_FLAGS = "--xla_gpu_exclude_nondeterministic_ops=true --xla_gpu_shard_autotuning=false"
if _GPU_FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{_GPU_FLAGS} {os.environ.get('XLA_FLAGS', '')}"
