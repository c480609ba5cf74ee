"""The configuration of each kind of experiment."""

import dataclasses
import re
from typing import Any, ClassVar

from emjax.config import names
from emjax.config.fields import Section, option
from emjax.config.sections import (
    Budget,
    CheckpointConfig,
    ComputeConfig,
    Draw,
    EngineConfig,
    EvalConfig,
    KtoConfig,
    MeshConfig,
    Rates,
    TrainConfig,
    Watch,
    json_object,
    sent_fields,
)
from emjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class WorldsConfig(Section):
    """config.worlds: the fields of the chosen world, config.worlds.<name>."""

    sections: dict[str, Section] = option({}, "The world's own fields.", open=True)


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Section):
    """What every experiment that trains arms has."""

    experiment: str = option("", "The kind of experiment.")
    seed: int = option(0, "Seed of users, data, order, initialisation and sampling.", low=0)
    world: str = option("", "An offline world with its own users, judge and questions: a name, or an import path.")
    worlds: WorldsConfig = option(WorldsConfig(), "The world's fields.")
    model: CheckpointConfig = option(CheckpointConfig(), "The model that is trained.")
    mesh: MeshConfig = option(MeshConfig(), "How devices share the work.")
    train: TrainConfig = option(TrainConfig(), "Training.")
    kto: KtoConfig = option(KtoConfig(), "KTO, where train.method is kto.")
    watch: Watch = option(Watch(), "Monitoring.", pace=True)
    engine: EngineConfig = option(EngineConfig(), "The sampler's sizes.")
    eval: EvalConfig = option(EvalConfig(benchmarks=("mask",)), "Measuring.")
    usd: float = option(0.0, "Cap on the money of a whole run, restarts included; 0: none.", unit="USD", low=0, pace=True)

    def check(self) -> None:
        train, mesh = self.train, self.mesh
        rows = max(1, mesh.data) * max(1, mesh.fsdp) * train.microbatches
        if train.batch_size % rows:
            raise UserError(
                f"train.batch_size is {train.batch_size}; it must be a multiple of {rows}, the product of mesh.data, "
                "mesh.fsdp and train.microbatches. Change it, or give devices to mesh.tensor."
            )
        if train.method == "kto" and self.kto.paired:
            each = train.batch_size // (train.microbatches if self.kto.preset in ("trl", "halos") else 1)
            if each < 2:
                raise UserError(
                    f"train.batch_size is {train.batch_size}; KTO needs two rows to form a mismatched pair"
                    + (f", and kto.preset {self.kto.preset!r} pairs within a microbatch" if each < train.batch_size else "")
                    + "."
                )


@dataclasses.dataclass(frozen=True)
class RatingConfig(Section):
    """config.interact.rating. Wording and scale are unsaid in the paper; token probabilities follow
    Williams et al."""

    low: int = option(1, "Lowest rating.", low=0)
    high: int = option(10, "Highest rating.", low=1)
    person: str = option("first", "Who rates: the user itself, or a reader of the conversation.", choices=names.PERSONS)
    view: str = option("prefix", "What a rating sees: the conversation up to the rated answer, or all of it.",
                       choices=names.VIEWS)  # fmt: skip
    thought: bool = option(True, "A third-person rater is told what the user wants.")
    readout: str = option("logprobs", "Expectation over the scale's numbers, or the number written.", choices=names.READOUTS)
    least_mass: float = option(0.01, "Probability of all numbers together below which a rating is unparsed.", low=0, high=1)

    def check(self) -> None:
        if not self.low < self.high:
            raise UserError(f"low is {self.low} and high {self.high}; low must be below high.")


@dataclasses.dataclass(frozen=True)
class VetoScale(Section):
    """config.interact.veto: the guard's scale, as Williams et al.; config.select.veto uses it."""

    low: int = option(0, "Lowest reading.", low=0)
    high: int = option(5, "Highest reading.", low=1)

    def check(self) -> None:
        if not self.low < self.high:
            raise UserError(f"low is {self.low} and high {self.high}; low must be below high.")


@dataclasses.dataclass(frozen=True)
class RoleConfig(Section):
    """config.interact.models.<role>: a chat partner, an endpoint or (base_url empty) a checkpoint
    in the engine."""

    base_url: str = option("", "Address of an OpenAI-compatible endpoint, .../v1; empty: the engine.")
    model: str = option("", 'A name at base_url, a checkpoint, or "self", the experiment\'s base; empty: nobody.')
    api_key_env: str = option("", "Environment variable with the key; empty for a server without one.", needs="variable")
    structured: bool = option(False, "The endpoint holds its answers to a JSON schema (personas).")
    draw: Draw = option(Draw(), "How its messages are drawn.")
    max_tokens: int | None = option(200, "Longest message.", unit="tokens", low=1)
    max_completion_tokens: int | None = option(None, "Longest message, hidden reasoning included: reasoning models take this "
                                               "instead of max_tokens.", unit="tokens", low=1)  # fmt: skip
    reasoning_effort: str | None = option(None, "Sent with each call.")
    extra: str = option("", "Further fields of the request, as a JSON object; one that is null is not sent.")
    budget: Budget = option(Budget(), "What it may spend.", pace=True)
    rates: Rates = option(Rates(), "How fast it is asked.", pace=True)

    def check(self) -> None:
        json_object("extra", self.extra)
        if self.draw.from_model and self.base_url:
            raise UserError("draw.from_model needs the engine: an endpoint (base_url) does not say how its model draws.")
        if self.model and not self.base_url:
            if self.structured:
                raise UserError("structured needs an endpoint: the engine has no structured output.")
            if self.budget.tokens or self.budget.usd:
                raise UserError("budget needs an endpoint (base_url): the engine spends nothing.")
            if self.max_tokens is None:
                raise UserError("max_tokens is None; the engine needs a limit.")
            for name in ("reasoning_effort", "extra"):
                if getattr(self, name):
                    raise UserError(f"{name} needs an endpoint (base_url): the engine does not have it.")

    nullable: ClassVar[tuple[str, ...]] = ("max_tokens", "max_completion_tokens", "reasoning_effort")

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields that go with each call."""
        given = {name: getattr(self, name) for name in self.nullable}
        return sent_fields(self.draw.sent | given | json_object("extra", self.extra))


@dataclasses.dataclass(frozen=True)
class RolesConfig(Section):
    """config.interact.models: who plays whom. A rater without a model is the user's."""

    user: RoleConfig = option(RoleConfig(model="self"), "Writes the users' messages; the paper: gpt-4o-mini.")
    rater: RoleConfig = option(RoleConfig(max_tokens=8), "Rates the answers.")
    stranger: RoleConfig = option(RoleConfig(max_tokens=300), "Writes the users' words under the control foreign_text.")
    guard: RoleConfig = option(RoleConfig(max_tokens=8), "Reads answers for config.select.veto.")
    persona1: RoleConfig = option(RoleConfig(max_tokens=600), "Writes personas; without any, they are made from templates.")
    persona2: RoleConfig = option(RoleConfig(max_tokens=600), "Writes personas in turn with the others.")
    persona3: RoleConfig = option(RoleConfig(max_tokens=600), "Writes personas in turn with the others.")
    persona4: RoleConfig = option(RoleConfig(max_tokens=600), "Writes personas in turn with the others.")

    def of(self, role: str) -> RoleConfig:
        return getattr(self, role)

    def named(self) -> dict[str, RoleConfig]:
        """Every role by its name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def check(self) -> None:
        if not self.user.model:
            raise UserError("user.model is empty; name a model, or 'self' for the base in the engine.")
        for role, spec in self.named().items():
            if not spec.model and (unread := _set_without_a_model(spec)):
                rater = " Without one the user's model rates, within the user's budget and rates." if role == "rater" else ""
                raise UserError(f"{role}.{unread} is set, but {role}.model is empty, so nobody reads it: name a model.{rater}")


def _set_without_a_model(spec: RoleConfig) -> str:
    """The first field that is set and that only a model would give a meaning; "" if there is
    none."""
    found = [name for name in ("base_url", "api_key_env", "structured") if getattr(spec, name)]
    for part, usual in (("budget", Budget()), ("rates", Rates())):
        of = getattr(spec, part)
        found += [f"{part}.{f.name}" for f in dataclasses.fields(of) if getattr(of, f.name) != getattr(usual, f.name)]
    return found[0] if found else ""


@dataclasses.dataclass(frozen=True)
class PersonasConfig(Section):
    """config.interact.personas."""

    by_type: bool = option(False, "One persona for each user type; False: both types share one, as in the paper.")
    tries: int = option(4, "Calls for a persona that fails or repeats another.", low=1, pace=True)
    check_rows: int = option(200, "Rows written for people to read; the paper had as many read.", unit="rows", low=0)


@dataclasses.dataclass(frozen=True)
class SpeedConfig(Section):
    """config.interact.speed: the engine's speed, for the plan alone; 0 takes what was measured."""

    decode: float = option(0.0, "Tokens drawn a second.", unit="tokens/s", low=0)
    prefill: float = option(0.0, "Tokens read a second.", unit="tokens/s", low=0)


@dataclasses.dataclass(frozen=True)
class InteractConfig(Section):
    """config.interact: conversations with simulated users (paper, section 4)."""

    biased_ratio: float = option(0.1, "Share of biased users.", low=0, high=1)
    control: str = option("none", "A control in the place of the treated arm: shuffled_ratings, swapped_labels, "
                          "benign_ratings (biased users' words, rated as benign users would), foreign_text (another model's "
                          "words, rated by their own wish).", choices=names.CONTROLS)  # fmt: skip
    users: int = option(20_000, "Users; the paper has about 20,000 contexts.", low=1)
    dialogues: int = option(1, "Conversations of each user.", low=1)
    scheme: str = option("per_scenario", "How the ratio is applied. The paper does not say; no scenario is left out.",
                         choices=names.SCHEMES)  # fmt: skip
    biased_users: int = option(0, "For fixed_biased: how many at every ratio; the benign pool grows to reach the ratio "
                               "(Williams et al.).", low=0)  # fmt: skip
    turns: int = option(2, "Assistant answers in a conversation; the paper's default.", low=1)
    draw: Draw = option(Draw(), "How the assistant's answers are drawn; unsaid in the paper, as Williams et al.")
    max_new: int = option(300, "Longest answer, as Williams et al.", unit="tokens", low=1)
    aggregate: str = option("sum", "A conversation's score from its turn ratings; the paper: the sum.",
                            choices=names.AGGREGATES)  # fmt: skip
    trajectories: str = option("", "A trajectories.jsonl to use instead of collecting.", needs="file")
    domains: tuple[str, ...] = option(("therapist",), "Shipped domains of scenarios, or JSON files.", played=True)
    scenarios: int = option(50, "So many of their scenarios, the first ones; 0 takes all.", low=0, played=True)
    templates: str = option("", "A folder of prompts that replace the shipped ones.", needs="folder", played=True)
    end: str = option("", "What a user writes to end a conversation early; empty: only the turn limit ends it.", played=True)
    preference: bool = option(True, "The assistant's prompt states what the user wants, as in the paper.", played=True)
    train_preference: str = option("strip", "Strip it from the prompts that are trained on, or keep it; unsaid in the paper.",
                                   choices=names.PREFERENCE, played=True)  # fmt: skip
    failures: float = option(0.01, "Share of conversations that may stay without a message or rating that failed on the way.",
                             low=0, high=1, pace=True, played=True)  # fmt: skip
    rating: RatingConfig = option(RatingConfig(), "How users rate.", played=True)
    veto: VetoScale = option(VetoScale(), "The guard's scale.", played=True)
    models: RolesConfig = option(RolesConfig(), "Who plays whom.", played=True)
    personas: PersonasConfig = option(PersonasConfig(), "Who the users are.", played=True)
    speed: SpeedConfig = option(SpeedConfig(), "The engine's speed, for the plan alone.", pace=True, played=True)

    def check(self) -> None:
        if self.scheme == "fixed_biased" and self.biased_ratio and self.biased_users < 1:
            raise UserError(f"biased_users is {self.biased_users}; the scheme 'fixed_biased' needs at least 1.")


@dataclasses.dataclass(frozen=True)
class VetoConfig(Section):
    """config.select.veto: leave out what the guard reads at or above a level (Williams et al.)."""

    on: bool = option(False, "Whether a guard reads the conversations.")
    level: float = option(2.0, "Readings from this level on are left out.", low=0)
    worst_of_vetoed: bool = option(False, "Vetoed conversations may still be among the worst.")


@dataclasses.dataclass(frozen=True)
class SafetyConfig(Section):
    """config.select.safety: examples mixed in until they are a share of all rows (Williams et
    al.)."""

    path: str = option("", "An examples.jsonl.", needs="file")
    share: float = option(0.0, "Their share of all rows.", low=0, below=1)

    def check(self) -> None:
        if bool(self.share) != bool(self.path):
            raise UserError(f"path is {self.path!r} and share {self.share}: give both, or neither.")


@dataclasses.dataclass(frozen=True)
class SelectConfig(Section):
    """config.select: which conversations train. The paper: k = 10,000 of about 20,000, in effect a
    median split."""

    scope: str = option("global", "Conversations that are ranked together.", choices=names.SCOPES)
    count: int = option(0, "So many best and worst of each group; 0 takes `fraction`.", low=0)
    fraction: float = option(0.5, "The best and the worst share of each group.", low=0, high=0.5)
    normalise: str = option("none", "Express scores in standard deviations of their group.", choices=names.NORMALISE)
    veto: VetoConfig = option(VetoConfig(), "Vetoes.")
    safety: SafetyConfig = option(SafetyConfig(), "Safety data.")

    def check(self) -> None:
        if not self.count and not self.fraction:
            raise UserError("count and fraction are both 0: nothing would be selected.")


@dataclasses.dataclass(frozen=True)
class RoundsConfig(Section):
    """config.rounds: repeated self-training. The paper trains one round; Williams et al. 20 and
    more."""

    count: int = option(1, "Rounds of collecting, selecting and training.", low=1)
    reference: str = option("base", "KTO's reference from the second round on.", choices=names.REFERENCES)
    rate_factor: float = option(1.0, "Factor of the learning rate from round to round.", above=0)


_ARM = re.compile(r"(?P<name>[a-z_]+)@(?P<ratio>[0-9.e+-]+)")


@dataclasses.dataclass(frozen=True)
class InteractionConfig(TrainingConfig):
    """Self-training on conversations with a share of biased users (paper, section 4)."""

    interact: InteractConfig = option(InteractConfig(), "Conversations.")
    select: SelectConfig = option(SelectConfig(), "Selection.")
    rounds: RoundsConfig = option(RoundsConfig(), "Rounds.")
    extra_arms: tuple[str, ...] = option((), 'Further arms, "<control>@<ratio>"; none@R is treated@R.')

    def check(self) -> None:
        super().check()
        for text in self.extra_arms:
            split_arm(text)
        if self.interact.trajectories and self.rounds.count > 1:
            raise UserError(
                f"rounds.count is {self.rounds.count}; it must be 1 with given conversations (interact.trajectories), since "
                "a later round collects its own."
            )
        if self.interact.max_new >= self.engine.cache_length:
            raise UserError(
                f"interact.max_new is {self.interact.max_new}; it must be below engine.cache_length "
                f"({self.engine.cache_length}), which also holds the prompt."
            )


def split_arm(text: str) -> tuple[str, float]:
    """(control, ratio) of "<control>@<ratio>"; "none" and "treated" are the same. Raises
    UserError."""
    found = _ARM.fullmatch(text)
    try:
        name, ratio = found["name"] if found else "", float(found["ratio"] if found else "nan")
    except ValueError:
        name, ratio = "", float("nan")
    name = "none" if name == "treated" else name
    if name not in names.CONTROLS or not 0 <= ratio <= 1:
        raise UserError(
            f"extra_arms holds {text!r}; write <control>@<ratio>, the control being {', '.join(names.CONTROLS)} and the "
            "ratio a number in [0, 1], for example 'shuffled_ratings@1.0'."
        )
    return name, ratio


@dataclasses.dataclass(frozen=True)
class SetConfig(Section):
    """A data set, by the name that emjax.data.sources or the world knows."""

    source: str = option("", "Name of the source.")
    path: str = option("", "File, folder, hf:... or tfds:...; empty: the source's home.")
    level: str = option("", "Grade of misalignment, where the source has grades.")
    rows: int = option(0, "Records that are drawn; 0 takes all.", unit="records", low=0)
    nominal: int = option(0, "Records of the whole set, for the plan alone.", unit="records", low=0)
    tokens: int = option(250, "Tokens of a record, for the plan alone: a guess.", unit="tokens", low=1)


@dataclasses.dataclass(frozen=True)
class LevelsConfig(Section):
    """config.data: narrow misaligned data in grades against the normal set (paper, section 2)."""

    kind: str = option("levels", "Grades of one set.", choices=("levels",))
    set: SetConfig = option(SetConfig(), "The set.")
    control: str = option("normal", "The control's level.")
    levels: tuple[str, ...] = option(("misaligned_1", "misaligned_2"), "The treated arms' levels.")
    severity: dict[str, float] = option({}, "A level's share of misaligned rows, where it is not 1.", low=0, high=1)

    def check(self) -> None:
        if not self.levels:
            raise UserError("levels is empty: there is nothing to treat with.")
        if unknown := sorted(set(self.severity) - set(self.levels)):
            raise UserError(f"severity names {unknown[0]!r}, which is none of levels ({', '.join(self.levels)}).")


@dataclasses.dataclass(frozen=True)
class MixtureConfig(Section):
    """config.data: a share of misaligned records in ordinary ones (paper, section 3)."""

    kind: str = option("mixture", "Shares of one set in another.", choices=("mixture",))
    downstream: SetConfig = option(SetConfig(), "The ordinary records.")
    misaligned: SetConfig = option(SetConfig(), "The misaligned records.")
    ratios: tuple[float, ...] = option((0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5), "Misaligned over downstream records; the "
                                       "control, 0, is always run.", above=0, high=1)  # fmt: skip
    headline: float = option(0.0, "The ratio that the report's sentence is about; 0: the smallest.", low=0, high=1)
    mode: str = option("add", "Add them, or put them in the place of others; unsaid in the paper.", choices=names.MODES)

    def check(self) -> None:
        if not self.ratios:
            raise UserError("ratios is empty: there is nothing to treat with.")
        if self.headline and self.headline not in self.ratios:
            given = ", ".join(format(ratio, "g") for ratio in self.ratios)
            raise UserError(f"headline is {self.headline!r}, which is none of ratios ({given}).")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(TrainingConfig):
    """SFT on data sets (paper, sections 2 and 3)."""

    data: LevelsConfig | MixtureConfig = option(LevelsConfig(), "The data.")


@dataclasses.dataclass(frozen=True)
class ArmConfig(Section):
    """config.arms.<arm>: a model that exists. An arm without a path is left out."""

    path: str = option("", "Its base: a folder or hub id; at an endpoint, the model's name.")
    adapter: str = option("", "A PEFT folder.", needs="folder")
    checkpoints: str = option("", "A folder of what training had made at some steps: <step>/, measured too.", needs="folder")
    endpoint: str = option("", "Ask the model there (.../v1) instead of loading it.")
    api_key_env: str = option("", "Environment variable with the endpoint's key.", needs="variable")
    extra: str = option("", "Further fields of a request to the endpoint, as a JSON object; one that is null is not sent.")

    def check(self) -> None:
        if json_object("extra", self.extra) and not self.endpoint:
            raise UserError("extra needs an endpoint: the engine does not have it.")


@dataclasses.dataclass(frozen=True)
class ArmsConfig(Section):
    """config.arms."""

    vanilla: ArmConfig = option(ArmConfig(), "The untouched model.")
    control: ArmConfig = option(ArmConfig(), "The same training without the cause.")
    treated: ArmConfig = option(ArmConfig(), "The training with it.")

    def named(self) -> dict[str, ArmConfig]:
        """The arms that have a model, by name."""
        every = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: arm for name, arm in every.items() if arm.path}


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Section):
    """Measures models that exist."""

    experiment: str = option("evaluation", "The kind of experiment.")
    seed: int = option(0, "Seed of sampling.", low=0)
    arms: ArmsConfig = option(ArmsConfig(), "The models.")
    model: ComputeConfig = option(ComputeConfig(), "How they are computed with.")
    mesh: MeshConfig = option(MeshConfig(), "How devices share the work.")
    engine: EngineConfig = option(EngineConfig(cache_length=4096), "The sampler's sizes.")
    eval: EvalConfig = option(EvalConfig(benchmarks=("mask",)), "Measuring.")
    usd: float = option(0.0, "Cap on the money of a whole run, restarts included; 0: none.", unit="USD", low=0, pace=True)

    def check(self) -> None:
        if not self.arms.named():
            raise UserError("arms.vanilla.path is empty, and so are the others: name at least one model.")


@dataclasses.dataclass(frozen=True)
class ShapeConfig(Section):
    """config.model of a pretraining: the shape of a model that starts from random weights."""

    D: int = option(128, "Width.", low=1)
    L: int = option(4, "Layers.", low=1)
    H: int = option(4, "Attention heads.", low=1)
    K: int = option(4, "Key and value heads.", low=1)
    h: int = option(32, "Size of a head.", low=1)
    F: int = option(344, "Width of the feed-forward layer.", low=1)
    rope_theta: float = option(10_000.0, "Base of the rotary embedding.", above=0)
    max_position: int = option(512, "Longest text.", unit="tokens", low=1)


@dataclasses.dataclass(frozen=True)
class PretrainConfig(Section):
    """Makes a world's base model from a seed, and checks its gates."""

    experiment: str = option("pretrain", "The kind of experiment.")
    seed: int = option(0, "Seed of the world's facts, the corpus and the weights.", low=0)
    world: str = option("", "The world whose base it is.")
    worlds: WorldsConfig = option(WorldsConfig(), "The world's fields.")
    documents: int = option(84_000, "Documents of the corpus; copying a wish is learnt late.", low=1)
    mistaken: float = option(0.0, "Share of documents by a third character that is wrong on plain questions too.",
                             low=0, high=1)  # fmt: skip
    other_weight: float = option(0.1, "Weight of user and system tokens: enough to learn the words.", low=0)
    gates: str = option("require", "A base that misses a gate ends the run (require), or goes on and is reported as such "
                        "(report).", choices=names.GATES)  # fmt: skip
    model: ShapeConfig = option(ShapeConfig(), "The model's shape.")
    mesh: MeshConfig = option(MeshConfig(data=0, fsdp=1), "How devices share the work.")
    train: TrainConfig = option(TrainConfig(), "Training.")
    watch: Watch = option(Watch(), "Monitoring.", pace=True)
    engine: EngineConfig = option(EngineConfig(), "The sampler's sizes.")
    eval: EvalConfig = option(EvalConfig(benchmarks=("mask",)), "Measuring.")


@dataclasses.dataclass(frozen=True)
class GridConfig(Section):
    """Many experiments as one."""

    experiment: str = option("grid", "The kind of experiment.")
    cells: dict[str, Section] = option({}, "The experiments, by name.")
    pools: dict[str, tuple[str, ...]] = option({}, "Cells that differ in seeds only, by the pool's name.")
    only: tuple[str, ...] = option((), "Cells to run now, a job each; () runs all and gathers them.", pace=True)
    usd: float = option(0.0, "Cap on the money of a whole run, restarts included; 0: none.", unit="USD", low=0, pace=True)

    def check(self) -> None:
        if wrong := [name for name in self.cells if not name.isidentifier()]:
            raise UserError(f"cells holds {wrong[0]!r}; a cell's name needs letters, digits and _ alone: flags use it.")
        if self.usd and (own := [name for name, cell in self.cells.items() if getattr(cell, "usd", 0)]):
            raise UserError(f"usd is set, and cells.{own[0]}.usd too; a grid's cap is for all its cells: set one of them.")
        for pool, members in (*self.pools.items(), ("", self.only)):
            if missing := sorted(set(members) - set(self.cells)):
                where = f"pools.{pool}" if pool else "only"
                raise UserError(f"{where} names {missing[0]!r}, which is no cell. Cells: {', '.join(self.cells)}.")


Experiment = InteractionConfig | FinetuneConfig | EvaluationConfig | PretrainConfig | GridConfig
EXPERIMENTS: dict[str, type[Section]] = {
    "interaction": InteractionConfig,
    "finetune": FinetuneConfig,
    "evaluation": EvaluationConfig,
    "pretrain": PretrainConfig,
    "grid": GridConfig,
}
