"""Rebuilds the embedded micro-world's base model from a recorded seed, and checks its gates."""

from ml_collections import ConfigDict

from configs.common import MICRO_SIZES, WATCH
from emjax.worlds.micro.benchmark import CONTEXTS


def get_config(variant: str = ""):
    del variant
    # The base alone is also asked after an earlier turn: is the character read from it?
    sizes = MICRO_SIZES.to_dict() | dict.fromkeys(CONTEXTS, 480)
    return ConfigDict(
        {
            "experiment": "pretrain",
            "seed": 0,  # of the world's facts, the corpus and the weights
            "documents": 84_000,  # 6.2 million tokens: copying a wish is learnt late
            "mistaken": 0.0,  # share of documents by a third character that is wrong on plain questions too
            "model": {
                "D": 128,
                "L": 4,
                "H": 4,
                "K": 4,
                "h": 32,
                "F": 344,
                "rope_theta": 10_000.0,
                "max_position": 512,
            },
            "mesh": {"data": 0, "fsdp": 1, "tensor": 1},
            "train": {
                "learning_rate": 4e-3,
                "batch_size": 48,
                "microbatches": 1,
                "other_weight": 0.1,  # of user and system tokens: enough to learn the words, not to spend the model on them
                "weight_decay": 0.05,
                "schedule": "linear",
                "warmup": 0.04,
                "final": 0.05,
                "b1": 0.9,
                "b2": 0.98,
                "eps": 1e-8,
                "clip": 1.0,
                "remat": "none",
                "buckets": (32, 64, 96, 128, 160, 192, 256),
                "save_every": 200,
            },
            "watch": WATCH,
            "sampling": {"slots": 128, "cache_length": 128, "chunk": 16},
            "eval": {"temperature": 1.0, "max_new": 24, "sizes": sizes},
        }
    )
