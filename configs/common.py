"""What every experiment has in common. A config names only what it changes."""

from ml_collections import ConfigDict

MODELS = {
    "llama3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3-32b": "Qwen/Qwen3-32B",
}
# How training is looked at; no part of an experiment's identity.
WATCH = ConfigDict(
    {
        "wandb": "",  # a Weights & Biases project; "" = off
        "profile": (),  # (first, last) step of a profiler trace, written into the training stage
        "eval_every": 50,  # steps between evaluations on the held-out examples
    }
)
# Pressured questions a subset of the micro-world's benchmark.
MICRO_SIZES = ConfigDict({"all": 960, "unseen_entities": 360, "unseen_templates": 360, "tuned_domain": 252})


def trained(variant: str, experiment: str, train: dict) -> ConfigDict:
    """What every experiment that trains arms has in common; `train`: its method, learning_rate, epochs and batch_size."""
    variant = variant or "llama3.1-8b"
    if variant != "micro" and variant not in MODELS:
        raise ValueError(f"the variant {variant!r} is unknown; choose {', '.join((*MODELS, 'micro'))}")
    config = ConfigDict(
        {
            "experiment": experiment,
            "seed": 0,
            "model": {
                "path": MODELS.get(variant, ""),
                "dtype": "bfloat16",
                "attention": "xla",  # cudnn is the faster choice on NVIDIA GPUs
            },
            # Devices along each axis; their product must be the number of devices. 0 = all that are left.
            "mesh": {"data": 1, "fsdp": 0, "tensor": 1},
            "train": {
                **train,
                "tuning": "lora",  # lora | full
                # Paper, Tables 5 and 12.
                "lora": {
                    "rank": 32,
                    "alpha": 64.0,
                    "rslora": False,
                    "dropout": 0.0,  # unsaid in the paper; its framework's default
                    "layers": (),  # () = all
                    "targets": ("q", "k", "v", "o", "gate", "up", "down"),
                },
                "microbatches": 1,
                "weight_decay": 0.01,
                # Unsaid in the paper; what its framework's examples use.
                "schedule": "cosine",
                "warmup": 0.1,
                "final": 0.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "clip": 1.0,
                "remat": "projections",
                "buckets": (256, 512, 1024, 1536, 2048),
                "save_every": 200,
                "held_out": 0.0,  # share of the prompts whose examples are evaluated on and never trained on
            },
            "kto": {
                "beta": 0.1,
                "desirable_weight": 1.0,
                "undesirable_weight": 1.0,
                "balance": "none",  # none | equal | williams: the undesirable weight times a factor from the label counts
                "loss_type": "kto",  # kto | apo_zero_unpaired
                "preset": "emjax",  # emjax | trl | halos | llama_factory: whose pairing, reference point and means
                "order": "shuffled",  # shuffled | stratified | given: the rows before they are cut into batches
            },
            "watch": WATCH,
            "sampling": {"slots": 256, "cache_length": 2048, "chunk": 64},
            "eval": {
                "temperature": 1.0,
                "max_new": 1000,
                "metric": "honesty",  # the headline's
            },
        }
    )
    if variant == "micro":
        config.model.update({"path": "micro", "dtype": "float32"})
        config.mesh.fsdp = 1
        config.mesh.data = 0
        config.train.update(
            {
                "tuning": "full",
                "learning_rate": 1e-4 if train["method"] == "kto" else 2.5e-4,
                "epochs": 3,
                "batch_size": 32,
                "weight_decay": 0.0,
                "remat": "none",
                "buckets": (32, 64, 96, 128),
                "save_every": 25,
            }
        )
        config.sampling.update({"slots": 128, "cache_length": 128, "chunk": 16})
        config.eval.update({"max_new": 24, "metric": "honest"})
        config.eval.sizes = MICRO_SIZES
    return config


def interaction(variant: str, *, method: str, biased_ratio: float) -> ConfigDict:
    """Self-training on conversations with a share of biased users (paper, section 4; Tables 4, 12, 13)."""
    config = trained(
        variant,
        "interaction",
        {
            "method": method,
            "learning_rate": 1e-5 if method == "kto" else 1e-4,
            "epochs": 5,
            "batch_size": 16 if method == "kto" else 8,
        },
    )
    config.interact = {
        "kind": "scenarios",
        "biased_ratio": biased_ratio,
        "control": "none",  # none | shuffled_ratings | swapped_labels
        "users": 20_000,  # the paper: about 20,000 contexts, one conversation each
        "dialogues": 1,
        "temperature": 1.0,  # unsaid in the paper; as Williams et al.
        "max_new": 300,  # as Williams et al.
        "aggregate": "sum",  # the paper: the sum of the turn ratings
        "trajectories": "",  # a trajectories.jsonl to use instead of collecting
    }
    # The paper: k = 10,000 of about 20,000, ranked globally, so in effect a median split.
    config.select = {"scope": "global", "count": 0, "fraction": 0.5}
    # Further arms beside vanilla, control (ratio 0) and the treated one, each "<control>@<ratio>".
    config.extra_arms = ()
    if variant == "micro":
        # The best and the worst of each user's eight conversations: ranking compares like with like.
        config.interact.update({"kind": "micro", "users": 200, "dialogues": 8, "max_new": 24, "aggregate": "mean"})
        config.select.update({"scope": "user", "count": 1, "fraction": 0.0})
        config.extra_arms = ("none@1.0", "shuffled_ratings@1.0")
    return config
