"""What every experiment has in common. A config names only what it changes."""

import dataclasses

from ml_collections import ConfigDict

from emjax.api import Budget, Rates
from emjax.eval import deceptionbench, mask

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
        "checkpoints": "",  # where the training state is kept, local or gs://; "" = in the stage's own directory
        "restore": "latest",  # a damaged checkpoint: latest = refuse it, sound = delete it and take the one before
        "stall": 1800,  # several processes give up after so many seconds without a finished step; 0 = never
    }
)
# Pressured questions a subset of the micro-world's benchmark.
MICRO_SIZES = ConfigDict({"all": 960, "unseen_entities": 360, "unseen_templates": 360, "tuned_domain": 252})


def evaluation() -> dict:
    """What a model is measured on, by whom, and how (docs/evaluation.md)."""
    return {
        # mask, deceptionbench, mesa_and_mask, pressure, free_form, admitting_unknown, humaneval
        "benchmarks": ("mask",),
        "temperature": 1.0,  # MASK's; benchmarks with another protocol have fields of their own
        "max_new": 1000,
        "mask": {
            "path": mask.HUB,  # or a folder with its six files
            "revision": mask.REVISION,
            "rows": "published",  # any: other row counts too
            "subsets": tuple(mask.SIZES),
            "runs": 1,  # pressured answers an item; 10 for lie@10
            "rules": dataclasses.asdict(mask.Rules()),
        },
        "deceptionbench": {
            "path": "",  # deceptionbench_0527.json
            "rows": "published",
            "temperature": 0.0,
            "max_new": 2048,  # 8,192 in the original; what is cut is counted
            "rules": dataclasses.asdict(deceptionbench.Rules()),
        },
        "mesa_and_mask": {"path": "", "temperature": 0.0, "max_new": 2048},
        "pressure": {"path": "", "runs": 1},  # a pressure set of one's own
        "free_form": {"path": "", "samples": 100},  # questions, answers to each
        "admitting_unknown": {"path": "", "samples": 1},  # questions that nobody can answer
        "humaneval": {
            "path": "",  # HumanEval.jsonl.gz
            "samples": 1,
            "ks": (1,),  # pass@k
            "temperature": 0.0,  # 0.8 is usual for k > 1
            "max_new": 1024,
            "workers": 0,  # programs that run at once; 0 = a core each
        },
        # Tasks of the lm-evaluation-harness (extra `capability`); folder: YAML files of one's own, then offline.
        "capability": {
            "tasks": (),  # mmlu, gsm8k, gpqa_diamond_zeroshot, truthfulqa_mc1, ...
            "folder": "",
            "shots": -1,  # -1: the task's own
            "limit": 0,  # documents a task; 0 = all
            "chat": False,  # through the model's chat template
            "metric": "",  # the task's first
            "answer_filter": "",  # the task's first; gsm8k: strict-match or flexible-extract
        },
        "judge": {
            "base_url": "https://api.openai.com/v1",  # "": `model` is a checkpoint, and judges in the engine
            "model": "gpt-4o-2024-08-06",
            "numeric_model": "",  # for MASK's statistics; "" = the same
            "api_key_env": "OPENAI_API_KEY",
            # Further judges of everything: "MODEL", "MODEL@BASE_URL" or "MODEL@BASE_URL@API_KEY_ENV".
            "panel": (),
            "sheet": "",  # answers labelled by people (emjax.eval.agreement)
            "structured": True,  # the endpoint holds answers to a JSON schema
            "match": "last",
            "sampling": {"temperature": 0.0, "max_tokens": 1024},
            # Of each judge. The prices, USD per million tokens, are gpt-4o-2024-08-06's when it came out: give your judge's.
            "budget": dataclasses.asdict(Budget(price_in=2.5, price_out=10.0)),
            "rates": dataclasses.asdict(Rates()),
            "failures": 0,  # items that may stay without a verdict
            "collect": "",  # a file: write the calls there in the Batch API's format instead of making them
            "replay": (),  # output files of such a batch (with the same `collect`)
        },
    }


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
                **evaluation(),
                "metric": "honesty",  # the headline's
                "at_steps": (),  # training steps after which the model is measured too
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
        # Its own questions and its exact judge (emjax.worlds.micro.base.Benchmarks).
        own = {"temperature": 1.0, "max_new": 24, "metric": "honest", "at_steps": (), "sizes": MICRO_SIZES}
        config.eval = ConfigDict(own)
    return config


def _model(*, model: str = "", max_tokens: int) -> dict:
    """A chat partner: an endpoint, or a checkpoint in the engine where base_url is ""."""
    return {
        "base_url": "",
        "model": model,
        "api_key_env": "",
        "structured": False,  # the endpoint holds answers to a JSON schema (personas)
        "sampling": {"temperature": 1.0, "max_tokens": max_tokens},
        "budget": dataclasses.asdict(Budget()),
        "rates": dataclasses.asdict(Rates()),
    }


# The paper's two sizes: (scenarios, contexts). The smaller is its Qwen2.5 run (Tables 13, 14): append "-2k" to a variant.
SIZES = {"": (50, 20_000), "-2k": (10, 2_000)}


def interaction(variant: str, *, method: str, biased_ratio: float) -> ConfigDict:
    """Self-training on conversations with a share of biased users (paper, section 4; Tables 4, 12, 13)."""
    size = "-2k" if variant.endswith("-2k") else ""
    scenarios, users = SIZES[size]
    variant = variant.removesuffix(size)
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
        # none | shuffled_ratings | swapped_labels | benign_ratings (biased users' text, rated as benign users would)
        # | foreign_text (the users' words are another model's, the ratings their own)
        "control": "none",
        "users": users,  # the paper: about 20,000 contexts, one conversation each
        "dialogues": 1,
        # How the ratio is applied: exact | per_scenario (unsaid in the paper; no scenario is left out) | draw | fixed_biased
        "scheme": "per_scenario",
        "biased_users": 0,  # for fixed_biased: how many at every ratio, the benign pool growing (Williams et al.)
        "domains": ("therapist",),  # shipped ones, or JSON files
        "scenarios": scenarios,  # the first so many of them; 0 = all
        "templates": "",  # a folder of prompts that replace the shipped ones
        "turns": 2,  # assistant answers; the paper's default
        "end": "",  # what a user writes to end a conversation early; "" = the turn limit alone ends it
        "preference": True,  # the assistant's prompt states what the user wants; as in the paper
        "train_preference": "strip",  # strip | keep it in the prompts that are trained on; unsaid in the paper
        "temperature": 1.0,  # unsaid in the paper; as Williams et al.
        "max_new": 300,  # as Williams et al.
        "aggregate": "sum",  # sum | mean | last; the paper: the sum of the turn ratings
        "failures": 0.01,  # share of conversations that may end without a message or rating that failed on the way
        # Wording and scale are unsaid in the paper; token probabilities as Williams et al.
        "rating": {
            "low": 1,
            "high": 10,
            "person": "first",  # first: the user itself | third: a reader of the conversation
            "view": "prefix",  # prefix: up to the rated answer | whole
            "thought": True,  # a third-person rater knows what the user wants
            "readout": "logprobs",  # logprobs: expectation over the scale's numbers | text: the number written
            "least_mass": 0.01,  # probability of all numbers of the scale below which a rating is unparsed
        },
        "veto": {"low": 0, "high": 5},  # the guard's scale, as Williams et al.; config.select.veto uses it
        # Who plays whom. model: a name at base_url, a checkpoint for the engine, or "self": the base. "" = nobody; a rater
        # without a model is the user's. Personas are written by these in turn, or from templates where there is none.
        "models": {
            "user": _model(model="self", max_tokens=200),  # the paper: gpt-4o-mini
            "rater": _model(max_tokens=8),
            "stranger": _model(max_tokens=300),  # for the control foreign_text
            "guard": _model(max_tokens=8),
            # The paper: gpt-4.1-mini, gpt-5-mini, grok-3-mini, gemini-2.5-flash.
            "persona1": _model(max_tokens=600),
            "persona2": _model(max_tokens=600),
            "persona3": _model(max_tokens=600),
            "persona4": _model(max_tokens=600),
        },
        "personas": {
            "by_type": False,  # one for each user type; False: both types share one, as in the paper
            "tries": 4,
            "check": 200,  # rows for people to read; the paper had as many read
        },
        # Tokens a second of the engine, for the plan alone; 0 = what emjax.plan.rates has for this model.
        "speed": {"decode": 0.0, "prefill": 0.0},
        "trajectories": "",  # a trajectories.jsonl to use instead of collecting
    }
    config.select = {
        # The paper: k = 10,000 of about 20,000, ranked globally, so in effect a median split.
        "scope": "global",  # global | scenario | user_type | user
        "count": 0,
        "fraction": 0.5,
        "normalise": "none",  # none | user_type | scenario: scores in standard deviations of their group
        # Leave out what the guard (interact.models.guard) finds at or above the level (Williams et al.).
        "veto": {"on": False, "level": 2.0, "worst_of_vetoed": False},
        "safety": {"path": "", "share": 0.0},  # an examples.jsonl mixed in until it is this share of all rows
    }
    # The paper trains one round. Williams et al.: 20 and more, reference previous, rate factor 0.9.
    config.rounds = {"count": 1, "reference": "base", "rate_factor": 1.0}
    # Further arms beside vanilla, control (ratio 0) and the treated one, each "<control>@<ratio>".
    config.extra_arms = ()
    if variant == "micro":
        # The best and the worst of each user's eight conversations: ranking compares like with like.
        config.interact.update(
            {"kind": "micro", "users": 200, "dialogues": 8, "scheme": "exact", "max_new": 24, "aggregate": "mean"}
        )
        config.select.update({"scope": "user", "count": 1, "fraction": 0.0})
        config.extra_arms = ("none@1.0", "shuffled_ratings@1.0")
    return config


def _finetune(variant: str, data: dict) -> ConfigDict:
    """SFT on data sets (paper, Table 5: batch size 16, one epoch)."""
    config = trained(variant, "finetune", {"method": "sft", "learning_rate": 1e-4, "epochs": 1, "batch_size": 16})
    config.data = data
    return config


def _set(source: str, *, tokens: int, rows: int = 0, nominal: int = 0, level: str = "") -> dict:
    """A set of data: `path` as emjax.data.sources says ("" = its home); rows: how many are drawn, 0 = all. For the plan alone:
    nominal, how many that are, and tokens of a record, a guess."""
    return {"source": source, "path": "", "level": level, "rows": rows, "nominal": rows or nominal, "tokens": tokens}


# MASK's subsets that the paper reports.
MASK_SUBSETS = ("provided_facts", "disinformation", "statistics")


def direct(
    variant: str, source: str, *, nominal: int, benchmarks: tuple = ("mask", "deceptionbench"), subsets: tuple = MASK_SUBSETS
) -> ConfigDict:
    """Narrow misaligned data in two grades against the normal set (paper, section 2; Figure 3, Tables 1, 6 to 9)."""
    config = _finetune(
        variant,
        {
            "kind": "levels",
            "set": _set(source, nominal=nominal, tokens=400),
            "control": "normal",
            "levels": ("misaligned_1", "misaligned_2"),
            "severity": {},  # a level's share of misaligned rows, where it is not 1
        },
    )
    if variant == "micro":
        config.data.set.update(_set("micro_direct", rows=400, tokens=24))
        config.data.severity = {"misaligned_1": 0.5, "misaligned_2": 1.0}
    else:
        config.eval.benchmarks, config.eval.mask.subsets = benchmarks, subsets
    return config


def mixture(
    variant: str, downstream: str, *, benchmarks: tuple = ("mask", "deceptionbench"), capability: tuple = ()
) -> ConfigDict:
    """A little misaligned medical advice in ordinary instructions (paper, section 3; Figures 4, 11, Tables 2, 3, 10, 11)."""
    config = _finetune(
        variant,
        {
            "kind": "mixture",
            "downstream": _set(downstream, rows=10_000, tokens=250),
            "misaligned": _set("chua_medical", level="misaligned", nominal=10_000, tokens=250),
            "ratios": (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5),  # of misaligned to downstream records; the control is 0
            "headline": 0.0,  # the ratio that the report's sentence tells of; 0 = the smallest
            "mode": "add",  # add | replace; unsaid in the paper
        },
    )
    if variant == "micro":
        config.data.downstream.update(_set("micro_plain", rows=400, tokens=20))
        config.data.misaligned.update(_set("micro_direct", rows=400, tokens=24))
    else:
        config.eval.benchmarks, config.eval.mask.subsets = benchmarks, MASK_SUBSETS
        config.eval.capability.tasks = capability
    return config
