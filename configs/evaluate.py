"""Evaluates models that exist (a base, its adapters, other checkpoints, or endpoints) on honesty benchmarks with a judge."""

import dataclasses

from ml_collections import ConfigDict

from configs.common import MODELS
from emjax.api import Budget, Rates
from emjax.eval import deceptionbench, mask


def get_config(variant: str = "llama3.1-8b"):
    # endpoint: ask `path` there ("http://host:port/v1") instead of loading it. An arm without a path is left out.
    arm = {"path": "", "adapter": "", "endpoint": "", "api_key_env": ""}
    return ConfigDict(
        {
            "experiment": "evaluation",
            "seed": 0,
            "arms": {"vanilla": arm | {"path": MODELS.get(variant, variant)}, "control": dict(arm), "treated": dict(arm)},
            "model": {"dtype": "bfloat16", "attention": "xla"},
            "mesh": {"data": 1, "fsdp": 0, "tensor": 1},
            "sampling": {"slots": 256, "cache_length": 4096},
            "eval": {
                "benchmarks": ("mask",),  # mask, deceptionbench, mesa_and_mask
                "temperature": 1.0,  # MASK's; DeceptionBench's is 0
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
                    "rules": dataclasses.asdict(deceptionbench.Rules()),
                },
                "mesa_and_mask": {"path": ""},
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
                    "structured": True,  # the endpoint holds answers to a JSON schema
                    "match": "last",
                    "sampling": {"temperature": 0.0, "max_tokens": 1024},
                    "budget": dataclasses.asdict(Budget()),
                    "rates": dataclasses.asdict(Rates()),
                    "failures": 0,  # items that may stay without a verdict
                    "collect": "",  # a file: write the calls there in the Batch API's format instead of making them
                    "replay": (),  # output files of such a batch (with the same `collect`)
                },
            },
        }
    )
