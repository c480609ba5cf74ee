"""Offline worlds: users, data, questions and an exact judge that need no network.

config.world selects a world once: a name below, or the import path of a class that implements
`World`. No other code checks which world it is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from emjax.config import Section, TrainingConfig
from emjax.data.mixture import Record
from emjax.design.users import Limits
from emjax.eval.asker import Asker
from emjax.eval.items import Benchmark, Item
from emjax.eval.stats import Noise
from emjax.interact.users import User


class World(Protocol):
    """The interface of a world. An instance is created once, as World(config.worlds.<name>,
    seed)."""

    name: str
    note: str  # a caveat to print with its results
    Config: type[Section]
    trained_subset: str  # the subset from the domain of the training data; "" if there is none
    subsets: Mapping[str, str]  # subset -> its description in the report
    # Accuracy in percent below which an arm has lost its beliefs; None: judge by differences.
    knowledge_floor: float | None
    # "<arm>/<benchmark>/<subset>/<metric>" -> how far another training seed moves the arm's
    # difference to another, where that was measured; arm "other": every arm but the control. A
    # world may lack it.
    training_noise: Mapping[str, Noise]
    # Dotted fields that the world's variant sets, including model.path if the world provides a
    # model. "KIND/field" is set only in experiments of that kind (config.experiment), that method
    # (train.method) or that kind of data (data.kind).
    defaults: Mapping[str, Any]
    models: Mapping[str, Path]  # checkpoints of the world, by their name in model.path
    limits: Limits
    gated: bool  # whether `gate` asks the model anything
    # its dataset -> the paper's datasets that it replaces
    stands_for: Mapping[str, tuple[str, ...]]

    def __init__(self, config: Section, seed: int) -> None: ...

    @property
    def seed(self) -> int | None:
        """The seed of its facts and of a base trained on them; None for a world of real facts."""
        ...

    def at(self, checkpoint: Path) -> "World":
        """The world whose facts the base in this folder was trained on. Raises UserError for a base
        of another kind."""
        ...

    def identity(self) -> dict[str, Any]:
        """The values that identify the world in stage hashes."""
        ...

    def check(self, experiment: TrainingConfig) -> None:
        """Raises UserError if its users, data or questions do not support this experiment. Needs no
        weights."""
        ...

    def gate(self, asker: Asker) -> list[Item]:
        """The items that the base model can be asked. They are frozen before training and passed to
        Benchmark.load."""
        ...

    def users(
        self, user_type: str, counts: Mapping[str, int], *, seed: int, turns: int, dialogues: int = 1, source: str = ""
    ) -> Sequence[User]:
        """counts[scenario] users, each in `dialogues` conversations. source: a control that changes
        what users say or how they rate."""
        ...

    def benchmarks(self) -> Mapping[str, Benchmark]: ...

    def dataset(self, name: str, level: str, seed: int, *, count: int, share: float) -> list[Record]:
        """`count` records of a training set; the share `share` of them is bad. Raises UserError for
        an unknown name."""
        ...

    def datasets(self) -> tuple[str, ...]:
        """The names that `dataset` accepts."""
        ...
