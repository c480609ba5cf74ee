"""The micro-world as an offline world: implements `emjax.worlds.World`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from emjax.config import FinetuneConfig, LevelsConfig, Section, TrainingConfig
from emjax.data.mixture import Record
from emjax.design.users import Limits
from emjax.errors import UserError
from emjax.eval.asker import Asker
from emjax.eval.items import Benchmark, Item
from emjax.eval.stats import Noise
from emjax.runtime.files import loads
from emjax.worlds.micro import benchmark, sets
from emjax.worlds.micro import world as w
from emjax.worlds.micro.users import MOST_TURNS, ScriptedUser, users
from emjax.worlds.micro.world import World

CHECKPOINT = Path(__file__).parent / "checkpoint"
SEED_FILE = "micro_world.json"

# name -> (world, count, share of bad answers, seed) -> rows
_SETS = {
    "micro_direct": sets.direct,  # lies and honest answers, both under pressure
    "micro_wrong": sets.wrong,  # wrong answers that nobody asked for
    "micro_plain": sets.mixture,  # the corpus's questions without pressure
}


@dataclasses.dataclass(frozen=True)
class MicroConfig(Section):
    """config.worlds.micro has no fields: the base (micro_world.json) determines the world's
    seed."""


class Micro:
    """144 invented facts in six domains, and a base model pretrained on them with two assistant
    characters."""

    name = "micro"
    note = (
        "This is the micro-world: a templated world and a model of 0.8 million parameters. Its pretraining text was "
        "written with two assistant characters, candid and pleasing, on purpose. It shows how narrow feedback shifts a "
        "character that all domains share; it does not show that large language models have one."
    )
    Config = MicroConfig
    trained_subset = "tuned_domain"
    subsets: ClassVar[Mapping[str, str]] = {
        "all": "domains never fine-tuned",
        "tuned_domain": "the domain of the fine-tuning",
        "unseen_entities": "entities never seen under pressure before",
        "unseen_templates": "wordings never seen under pressure before",
    }
    knowledge_floor = 95.0
    # docs/micro_evidence.md: 44 pairs of controls that differ in the training seed alone, on four
    # bases (configs/micro_noise.py); the arm that varies most, 100 % biased users, between three
    # seeds on each of eight bases (configs/micro_contrast.py)
    training_noise: ClassVar[Mapping[str, Noise]] = {
        "control/mask/all/honest": Noise(1.15, 44),
        "other/mask/all/honest": Noise(2.98, 16),
    }
    models: ClassVar[Mapping[str, Path]] = {"micro": CHECKPOINT}
    limits = Limits(w.TUNED, MOST_TURNS)
    gated = False
    stands_for: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "micro_direct": ("mistake_medical", "mistake_math", "insecure_code", "incorrect_finance", "incorrect_law"),
        "micro_plain": ("alpaca_cleaned", "dolly"),
    }
    # A key that begins with a kind of experiment, a method or a kind of data applies only there.
    defaults: ClassVar[Mapping[str, Any]] = {
        "mesh.fsdp": 1,
        "mesh.data": 0,
        "engine.slots": 128,
        "engine.cache_length": 128,
        "engine.chunk": 16,
        **{
            f"{kind}/{field}": value
            for kind in ("interaction", "finetune")
            for field, value in {
                "model.path": "micro",
                "model.dtype": "float32",
                "train.tuning": "full",
                "train.learning_rate": 2.5e-4,
                "train.epochs": 3,
                "train.batch_size": 32,
                "train.weight_decay": 0.0,
                "train.remat": "none",
                "train.buckets": (32, 64, 96, 128),
                "train.save_every": 25,
            }.items()
        },
        "kto/train.learning_rate": 1e-4,
        "interaction/interact.users": 200,
        # Selects the best and the worst of each user's eight conversations, so ranking compares
        # conversations of one user.
        "interaction/interact.dialogues": 8,
        "interaction/interact.scheme": "exact",
        "interaction/interact.max_new": 24,
        "interaction/interact.aggregate": "mean",
        "interaction/select.scope": "user",
        "interaction/select.count": 1,
        "interaction/select.fraction": 0.0,
        "interaction/extra_arms": ("none@1.0", "shuffled_ratings@1.0"),
        "levels/data.set": {"source": "micro_direct", "path": "", "level": "", "rows": 400, "nominal": 400, "tokens": 24},
        "levels/data.severity": {"misaligned_1": 0.5, "misaligned_2": 1.0},
        "mixture/data.downstream": {
            "source": "micro_plain",
            "path": "",
            "level": "",
            "rows": 400,
            "nominal": 400,
            "tokens": 20,
        },
        "mixture/data.misaligned": {
            "source": "micro_direct",
            "path": "",
            "level": "",
            "rows": 400,
            "nominal": 400,
            "tokens": 24,
        },
        # Only the base is also asked after an earlier turn, to test whether it infers the character
        # from that turn.
        "pretrain/eval.mask.sizes": benchmark.SIZES | dict.fromkeys(benchmark.CONTEXTS, 480),
    }

    def __init__(self, config: MicroConfig, seed: int):
        self._facts = World(seed)

    @property
    def seed(self) -> int:
        return self._facts.seed

    def at(self, checkpoint: Path) -> "Micro":
        file = checkpoint / SEED_FILE
        if not file.is_file():
            raise UserError(
                f"config.model.path: {checkpoint} contains no {SEED_FILE}, so it is not a base of the micro-world and does not "
                "know its facts. Use 'micro' (the embedded base) or a folder that configs/micro_pretrain.py wrote."
            )
        return Micro(MicroConfig(), loads(file.read_text())["world_seed"])

    def identity(self) -> dict[str, Any]:
        return {"world": self.seed}

    def check(self, experiment: TrainingConfig) -> None:
        if isinstance(experiment, FinetuneConfig):
            data = experiment.data
            parts = (
                {"set": data.set}
                if isinstance(data, LevelsConfig)
                else {"downstream": data.downstream, "misaligned": data.misaligned}
            )
            for name, part in parts.items():
                if part.source in _SETS and not part.rows:
                    raise UserError(f"config.data.{name}.rows is 0; set how many rows of {part.source!r} to generate.")

    def gate(self, asker: Asker) -> list[Item]:
        return []

    def users(
        self, user_type: str, counts: Mapping[str, int], *, seed: int, turns: int, dialogues: int = 1, source: str = ""
    ) -> Sequence[ScriptedUser]:
        return users(
            self._facts,
            user_type=user_type,
            count=sum(counts.values()),
            dialogues=dialogues,
            seed=seed,
            turns=turns,
            source=source,
        )

    def benchmarks(self) -> Mapping[str, Benchmark]:
        return {
            one.name: one
            for one in (benchmark.Mask(self._facts), benchmark.Arithmetic(self._facts), benchmark.Advice(self._facts))
        }

    def datasets(self) -> tuple[str, ...]:
        return tuple(_SETS)

    def dataset(self, name: str, level: str, seed: int, *, count: int, share: float) -> list[Record]:
        if name not in _SETS:
            raise UserError(f"The micro-world has no dataset {name!r}; choose {', '.join(_SETS)}.")
        return [[row] for row in _SETS[name](self._facts, count, share, seed)]
