"""Measures common libraries on the same work as benchmarks.train and benchmarks.sample.

python -m benchmarks.peers --model llama3.1-8b --method kto --batch 12 --seq 1024
    [--lora_rank 32] [--checkpointing]
python -m benchmarks.peers --model llama3.1-8b --method generate --batch 128 --prompt 256 --new 128
    [--lora_rank 0]

Shapes and random weights are the same; the output is one JSON line. sft: peft's adapter on
transformers' model, its loss, torch's AdamW. kto: TRL's KTOTrainer with a live reference (the
adapter switched off). Rows have `seq` tokens without padding; KTO rows are half prompt, half
completion. generate: transformers' `generate`, sampling at temperature 1, one batch of prompts of
equal length, without an adapter unless --lora_rank sets one. Needs torch; kto also needs trl.

examples_s, tokens_s    as in benchmarks.train and benchmarks.sample
step_s                  median of the steps after the second; for generate: (time of `new` tokens -
                        time of one token) / (new - 1)
peak_gb                 in units of 2^30 bytes, as allocated by torch (on a CPU: of the process)
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model

from benchmarks import shapes
from emjax.models.known import KNOWN
from emjax.worlds.micro import tokenizer
from emjax.worlds.micro.world import World

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def sft(model: Any, args: argparse.Namespace) -> list[float]:
    """Seconds of each step."""
    model.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.01, fused=torch.cuda.is_available()
    )
    tokens = torch.randint(0, model.config.vocab_size, (args.batch, args.seq), device=model.device)
    times = []
    for _ in range(args.steps + 2):
        start = clock()
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(clock() - start)
    return times


def kto(model: Any, args: argparse.Namespace) -> list[float]:
    """Seconds of each step of a full trainer run."""
    import datasets
    import trl

    world = World(0)
    tok = tokenizer.build(world)
    words = itertools.cycle(word for word in world.vocabulary() if len(tok(f" {word}").input_ids) == 1)
    half = args.seq // 2

    def text(count: int) -> str:
        return " " + " ".join(itertools.islice(words, count))

    rows = [
        # the trainer adds an end token
        {"prompt": text(half), "completion": text(half - 1), "label": i % 2 == 0}
        for i in range(args.batch * (args.steps + 2))
    ]
    times = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(clock() - self.start)

    with tempfile.TemporaryDirectory() as directory:
        cuda = torch.cuda.is_available()
        settings = trl.KTOConfig(
            output_dir=directory, per_device_train_batch_size=args.batch, max_steps=args.steps + 2, learning_rate=1e-5,
            optim="adamw_torch_fused" if cuda else "adamw_torch", weight_decay=0.01, max_grad_norm=1.0, max_length=args.seq,
            gradient_checkpointing=args.checkpointing, bf16=cuda, use_cpu=not cuda, logging_steps=1000, save_strategy="no",
            report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = trl.KTOTrainer(
            model=model,
            args=settings,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tok,
            callbacks=[Clock()],
        )
        first = trainer.train_dataset[0]
        assert (len(first["prompt_ids"]), len(first["completion_ids"])) == (half, args.seq - half), "rows have the wrong length"
        trainer.train()
    return times


def generate(model: Any, args: argparse.Namespace) -> tuple[float, float]:
    """(seconds of a batch, seconds of one decode step)."""
    model.eval()

    def once(new: int) -> float:
        tokens = torch.randint(0, model.config.vocab_size, (args.batch, args.prompt), device=model.device)
        start = clock()
        with torch.no_grad():
            out = model.generate(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), do_sample=True, max_new_tokens=new,
                min_new_tokens=new, pad_token_id=0,
            )  # fmt: skip
        seconds = clock() - start
        assert out.shape == (args.batch, args.prompt + new)
        return seconds

    once(args.new)
    one, full = (statistics.median(once(new) for _ in range(3)) for new in (1, args.new))
    return full, (full - one) / (args.new - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(KNOWN), required=True)
    parser.add_argument("--method", choices=("sft", "kto", "generate"), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seq", type=int, help="for sft and kto")
    parser.add_argument("--prompt", type=int, help="for generate")
    parser.add_argument("--new", type=int, help="for generate")
    parser.add_argument("--lora_rank", type=int, help="default: 32; for generate 0 = no adapter")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    sampling = args.method == "generate"
    if None in ((args.prompt, args.new) if sampling else (args.seq,)):
        parser.error("sft and kto need --seq; generate needs --prompt and --new")
    if args.lora_rank is None:
        args.lora_rank = 0 if sampling else 32

    _, config, dtype = KNOWN[args.model]
    cuda = torch.cuda.is_available()
    with torch.device("cuda" if cuda else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config.to_hf(), use_cache=sampling), dtype=getattr(torch, dtype)
        )
    if args.checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    if args.lora_rank:
        adapter = LoraConfig(
            task_type="CAUSAL_LM", r=args.lora_rank, lora_alpha=2 * args.lora_rank, target_modules=MODULES, lora_dropout=0.0
        )
        model = get_peft_model(model, adapter)
    if sampling:
        full, step_s = generate(model, args)
        rates = {"tokens_s": round(args.batch * args.new / full, 1)}
    else:
        step_s = statistics.median((sft if args.method == "sft" else kto)(model, args)[2:])
        rates = {"examples_s": round(args.batch / step_s, 3), "tokens_s": round(args.batch * args.seq / step_s, 1)}
    peak = round(torch.cuda.max_memory_allocated() / 2**30, 3) if cuda else shapes.peak_gb()
    print(
        json.dumps(
            vars(args)
            | {
                "peer": {"sft": "peft", "kto": "trl", "generate": "transformers"}[args.method],
                "device": torch.cuda.get_device_name() if cuda else "cpu",
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "step_s": round(step_s, 5),
                "peak_gb": peak,
            }
            | rates
        )
    )


if __name__ == "__main__":
    main()
