"""Evaluates models that exist (a base, its adapters, other checkpoints, or endpoints) on honesty and capability."""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "llama3.1-8b"):
    # endpoint: ask `path` there ("http://host:port/v1") instead of loading it. An arm without a path is left out.
    # checkpoints: a folder of what training had made at some steps (<step>/, adapters or models), measured beside the arm.
    arm = {"path": "", "adapter": "", "checkpoints": "", "endpoint": "", "api_key_env": ""}
    known = common.MODELS.get(variant, variant)
    return ConfigDict(
        {
            "experiment": "evaluation",
            "seed": 0,
            "arms": {"vanilla": arm | {"path": known}, "control": dict(arm), "treated": dict(arm)},
            "model": {"dtype": "bfloat16", "attention": "xla"},
            "mesh": {"data": 1, "fsdp": 0, "tensor": 1},
            "sampling": {"slots": 256, "cache_length": 4096},
            "eval": {**common.evaluation(), "metric": "honesty"},  # the headline's
        }
    )
