"""The sections of a configuration that several kinds of experiments have."""

import dataclasses
import json
from typing import Any, ClassVar

from emjax.config import names
from emjax.config.fields import Section, option
from emjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ComputeConfig(Section):
    """How models are computed with."""

    dtype: str = option(
        "bfloat16",
        "Type of weights and activations; auto: float32 on a CPU, bfloat16 elsewhere.",
        choices=(*names.DTYPES, names.AUTO),
    )
    attention: str = option("xla", "Attention kernel: xla runs everywhere, cudnn on NVIDIA GPUs, splash on TPUs; auto takes "
                            "the device's where it serves the model.", choices=(*names.ATTENTION, names.AUTO))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(ComputeConfig):
    """config.model: the checkpoint that an experiment starts from, and how it is computed with."""

    path: str = option("", "A Hugging Face folder, a hub id (OWNER/NAME), or a checkpoint that the world brings.")


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """config.mesh: devices along each axis. Their product is the number of devices."""

    data: int = option(1, "Copies of the model, each with its rows; 0 takes all devices that are left.", low=0)
    fsdp: int = option(0, "Shards of the weights, each with its rows; 0 takes all devices that are left.", low=0)
    tensor: int = option(1, "Devices that share each row; 0 takes all devices that are left.", low=0)

    def check(self) -> None:
        if [self.data, self.fsdp, self.tensor].count(0) > 1:
            raise UserError("data, fsdp and tensor: only one of them may be 0 (all devices that are left).")


@dataclasses.dataclass(frozen=True)
class LoraConfig(Section):
    """config.train.lora: low-rank adapters (Hu et al. 2021); the defaults are the paper's (Tables 5
    and 12)."""

    rank: int = option(32, "Rank of the adapters.", low=1)
    alpha: float = option(64.0, "Scale: the update is multiplied by alpha / rank.", above=0)
    rslora: bool = option(False, "Scale by alpha / sqrt(rank) instead.")
    targets: tuple[str, ...] = option(names.TARGETS, "Projections that are adapted.", choices=names.TARGETS)
    layers: tuple[int, ...] = option((), "Layers that are adapted; () adapts all.", low=0)
    dropout: float = option(0.0, "Share of a projection's inputs hidden from the adapter in training. The paper does not "
                            "say; 0 is its framework's default.", low=0, below=1)  # fmt: skip

    def check(self) -> None:
        if not self.targets:
            raise UserError(f"targets is empty; choose of {', '.join(names.TARGETS)}.")
        for name, given in (("targets", self.targets), ("layers", self.layers)):
            if len(set(given)) < len(given):
                raise UserError(f"{name} is {given!r}, which holds a value twice.")

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """config.train: how a model is fine-tuned. What the paper does not say follows its framework's
    examples."""

    method: str = option("sft", "Supervised fine-tuning, or KTO on desirable and undesirable answers.", choices=names.METHODS)
    tuning: str = option("lora", "Train adapters, or all weights.", choices=names.TUNINGS)
    lora: LoraConfig = option(LoraConfig(), "The adapters.")
    learning_rate: float = option(1e-4, "Peak learning rate.", above=0)
    epochs: int = option(1, "Passes over the examples.", low=1)
    batch_size: int = option(16, "Examples of one optimizer step.", unit="rows", low=1)
    microbatches: int = option(1, "Equal parts in which a batch is computed; results differ by rounding alone.", low=1)
    weight_decay: float = option(0.01, "AdamW's weight decay, not applied to norms and biases.", low=0)
    schedule: str = option("cosine", "Learning rate after warm-up.", choices=names.SCHEDULES)
    warmup: float = option(0.1, "Share of the steps in which the learning rate rises.", low=0, high=1)
    final: float = option(0.0, "Learning rate at the end, as a share of its peak.", low=0, high=1)
    b1: float = option(0.9, "AdamW's first decay rate.", low=0, below=1)
    b2: float = option(0.999, "AdamW's second decay rate.", low=0, below=1)
    eps: float = option(1e-8, "AdamW's epsilon.", above=0)
    clip: float = option(1.0, "Largest global norm of the gradient; 0 does not clip.", low=0)
    remat: str = option("projections", "Activations that are kept for the backward pass.", choices=names.REMAT)
    buckets: tuple[int, ...] = option((256, 512, 1024, 1536, 2048), "Lengths that rows are padded to; the last one is the "
                                      "longest row.", unit="tokens", low=1)  # fmt: skip
    save_every: int = option(200, "Steps between checkpoints; 0 saves none on the way.", unit="steps", low=0)
    held_out: float = option(0.0, "Share of the prompts whose examples are evaluated on and never trained on.", low=0, below=1)

    def check(self) -> None:
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)):
            raise UserError(f"buckets is {self.buckets!r}; give different lengths, the shortest first.")
        if self.batch_size % self.microbatches:
            raise UserError(f"batch_size is {self.batch_size}; it must be a multiple of microbatches ({self.microbatches}).")


@dataclasses.dataclass(frozen=True)
class KtoConfig(Section):
    """config.kto: Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    beta: float = option(0.1, "Strength of the pull towards the reference model.", above=0)
    desirable_weight: float = option(1.0, "Weight of desirable answers.", low=0)
    undesirable_weight: float = option(1.0, "Weight of undesirable answers.", low=0)
    loss_type: str = option("kto", "apo_zero_unpaired has no reference point (arXiv:2408.06266).", choices=names.LOSS_TYPES)
    preset: str = option("emjax", "Whose pairing, reference point and means are used.", choices=names.PRESETS)
    order: str = option("shuffled", "Order of the rows before they are cut into batches.", choices=names.ORDERS)
    balance: str = option("none", "Scales the undesirable weight by label counts: n_D / n_U (equal) or n_D / (1.05 n_U) "
                          "(williams, arXiv:2411.02306).", choices=names.BALANCES)  # fmt: skip

    @property
    def paired(self) -> bool:
        """Whether the loss has a reference point, and so mismatched pairs."""
        return self.loss_type == "kto"


@dataclasses.dataclass(frozen=True)
class Watch(Section):
    """config.watch: how a run is monitored. It changes nothing that is trained and is not part of
    stage hashes."""

    wandb: str = option("", "A Weights & Biases project; empty logs to files only.")
    profile: tuple[int, ...] = option((), "First and last step of a profiler trace; () traces none.", unit="steps", low=1)
    eval_every: int = option(50, "Steps between evaluations on the held-out examples.", unit="steps", low=1)
    checkpoints: str = option("", "A folder, local or gs://, for training states; empty keeps them in the stage's own.")
    restore: str = option("latest", "Of a damaged checkpoint: latest refuses it, sound deletes it and takes the one before.",
                          choices=names.RESTORE)  # fmt: skip
    stall: int = option(1800, "Several processes give up after so long without a finished step; 0 never does.", unit="s", low=0)

    def check(self) -> None:
        if self.profile and not (len(self.profile) == 2 and self.profile[0] <= self.profile[1]):
            raise UserError(f"profile is {self.profile}; give the first and the last step of the trace, such as (10, 12).")


@dataclasses.dataclass(frozen=True)
class EngineConfig(Section):
    """config.engine: the sampler's sizes."""

    slots: int = option(
        256, "Sequences decoded at a time; 0 (auto) takes as many as fit beside training, on a CPU at most 16.", low=0
    )
    cache_length: int = option(2048, "Longest prompt and answer together.", unit="tokens", low=2)
    chunk: int = option(64, "Tokens of a prompt that are prefilled at a time.", unit="tokens", low=1)


@dataclasses.dataclass(frozen=True)
class Draw(Section):
    """How answers are drawn. Greedy decoding would hide a minority behaviour, so the temperature is
    1 unless a published protocol says otherwise."""

    temperature: float = option(1.0, "Softmax temperature; 0 decodes greedily.", low=0)
    top_p: float = option(1.0, "Smallest set of tokens with this probability; 1 takes all.", above=0, high=1)
    top_k: int = option(0, "So many of the likeliest tokens; 0 takes all.", low=0)
    min_p: float = option(0.0, "Tokens at least so likely, relative to the likeliest.", low=0, high=1)
    from_model: bool = option(False, "Draw as the model's generation_config.json says, instead of the four fields above; "
                              "only in the engine.")  # fmt: skip

    @property
    def sent(self) -> dict[str, Any]:
        """What an endpoint is sent, and what cache keys hold: the temperature, and of the others
        what is not neutral. A draw from the model is one field: the model is in the key's other
        parts."""
        if self.from_model:
            return {"from_model": True}
        more = {"top_p": (self.top_p, 1.0), "top_k": (self.top_k, 0), "min_p": (self.min_p, 0.0)}
        return {"temperature": self.temperature} | {name: value for name, (value, usual) in more.items() if value != usual}


@dataclasses.dataclass(frozen=True)
class Budget(Section):
    """What one client may spend. Cached replies are free."""

    tokens: int = option(0, "Prompt and completion tokens together; 0 is no limit.", unit="tokens", low=0)
    usd: float = option(0.0, "Money; 0 is no limit.", unit="USD", low=0)
    price_in: float = option(0.0, "Price of prompt tokens.", unit="USD a million", low=0)
    price_out: float = option(0.0, "Price of completion tokens.", unit="USD a million", low=0)

    def check(self) -> None:
        if self.usd and not (self.price_in or self.price_out):
            raise UserError(f"usd is {self.usd:g}, which is never reached without prices: give price_in and price_out too.")


@dataclasses.dataclass(frozen=True)
class Rates(Section):
    """How many requests an endpoint gets, and how long a client waits."""

    concurrent: int = option(16, "Calls in flight, those waiting for a retry included.", low=1)
    per_minute: float = option(0.0, "Requests a minute, retries included; 0 is no limit.", low=0)
    retries: int = option(6, "Retries of connection errors, timeouts, 408, 409, 429 and 5xx. Retry-After up to two minutes "
                          "is honoured.", low=0)  # fmt: skip
    timeout: float = option(120.0, "Without a byte, one request.", unit="s", above=0)
    deadline: float = option(900.0, "One call with all its retries.", unit="s", above=0)


@dataclasses.dataclass(frozen=True)
class JudgeConfig(Section):
    """config.eval.judges.<name>: who reads answers. An absent (None) sampling field is not sent."""

    kind: str = option("endpoint", "rule: the benchmark's own rule; endpoint: a model at base_url; engine: a checkpoint here.",
                       choices=names.JUDGES)  # fmt: skip
    base_url: str = option("", "Address of an OpenAI-compatible endpoint, .../v1.")
    model: str = option("", "The endpoint's name of the model, or a checkpoint.")
    api_key_env: str = option("", "Environment variable with the key; empty for a server without one.", needs="variable")
    structured: bool = option(True, "The endpoint holds its answers to a JSON schema.")
    match: str = option("last", "Which verdict of a free text counts: its last, or by MASK's original pattern.",
                        choices=names.MATCHES)  # fmt: skip
    temperature: float | None = option(0.0, "Sent with each call.", low=0)
    top_p: float | None = option(None, "Sent with each call.", above=0, high=1)
    max_tokens: int | None = option(1024, "Longest answer.", unit="tokens", low=1)
    max_completion_tokens: int | None = option(None, "Longest answer, hidden reasoning included: reasoning models take this "
                                               "instead of max_tokens.", unit="tokens", low=1)  # fmt: skip
    reasoning_effort: str | None = option(None, "Sent with each call.")
    extra: str = option("", "Further fields of the request, as a JSON object; one that is null is not sent.")
    collect: str = option("", "A file: calls are written there in the Batch API's format instead of being made.", pace=True)
    replay: tuple[str, ...] = option((), "Output files of such a batch.", needs="file", pace=True)
    budget: Budget = option(Budget(), "What the judge may spend.", pace=True)
    rates: Rates = option(Rates(), "How fast it is asked.", pace=True)

    def check(self) -> None:
        if self.kind == "endpoint" and self.model and not self.base_url:
            raise UserError("base_url is empty; give the endpoint's address, or set kind to 'engine' for a checkpoint.")
        if self.kind == "engine" and self.structured:
            raise UserError("structured is set, but the engine has no structured output: set it to False.")
        json_object("extra", self.extra)

    nullable: ClassVar[tuple[str, ...]] = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "reasoning_effort")

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields that go with each call."""
        given = {name: getattr(self, name) for name in self.nullable}
        return sent_fields(given | json_object("extra", self.extra))


def sent_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request that are sent: those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def json_object(name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}", parse_constant=_no_number)
    except ValueError as error:
        raise UserError(f"{name} is {text!r}, which is not valid JSON ({error}).") from error
    if not isinstance(found, dict):
        raise UserError(f"{name} is {text!r}; give a JSON object.")
    return found


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(Section):
    """config.eval.<benchmark>: what every benchmark's section has; a benchmark's file declares the
    rest."""

    draw: Draw = option(Draw(), "How answers are drawn.")
    max_new: int = option(1000, "Longest answer; longer ones are cut and counted.", unit="tokens", low=1)
    judge: str = option("main", "Who reads the answers: a name of config.eval.judges.")


@dataclasses.dataclass(frozen=True)
class EvalConfig(Section):
    """config.eval: what models are measured on, and by whom."""

    benchmarks: tuple[str, ...] = option((), "Benchmarks by name, or by the import path of a module that is one.")
    metric: str = option("honesty", "The headline's metric: of the first benchmark that has it.")
    seed: int | None = option(None, "Seed of the answers that are drawn; None: the experiment's. One seed for several "
                              "trainings leaves their difference to training alone.", low=0)  # fmt: skip
    at_steps: tuple[int, ...] = option((), "Training steps after which the model is measured too.", unit="steps", low=1)
    panel: tuple[str, ...] = option((), "Further judges of every benchmark that a model judges: names of config.eval.judges.")
    sheet: str = option("", "Answers labelled by people, as emjax.eval.agreement reads them.", needs="file", pace=True)
    failures: int = option(0, "Items that may stay without a verdict, counted and reported.", unit="items", low=0, pace=True)
    judges: dict[str, JudgeConfig] = option({}, "Judges by name.")
    sections: dict[str, BenchmarkConfig] = option({}, "The benchmarks' own fields.", open=True)

    def check(self) -> None:
        if not self.benchmarks:
            raise UserError("benchmarks is empty; name at least one.")
        if len(set(self.benchmarks)) < len(self.benchmarks):
            raise UserError(f"benchmarks names one twice: {', '.join(self.benchmarks)}.")
        for field, wanted in (("panel", self.panel), *((f"{n}.judge", (s.judge,)) for n, s in self.sections.items())):
            for name in wanted:
                if name not in self.judges:
                    raise UserError(f"{field} names the judge {name!r}; config.eval.judges has {', '.join(self.judges)}.")
