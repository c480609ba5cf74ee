"""Offline worlds: users, data, questions and an exact judge that need no network.

A world is chosen once, as config.world: a name below, or the import path of a class that implements
`World`. Nothing else asks which one it is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from emjax.config import Section, TrainingConfig
from emjax.data.mixture import Record
from emjax.design.users import Limits
from emjax.eval.asker import Asker
from emjax.eval.items import Benchmark, Item
from emjax.interact.users import User


class World(Protocol):
    """Built once, as World(config.worlds.<name>, seed)."""

    name: str
    note: str  # what must be said of its results
    Config: type[Section]
    trained_subset: str  # the subset that shares its domain with the training; "" if none does
    subsets: Mapping[str, str]  # subset -> what it means, in the report's words
    # accuracy in percent below which an arm has lost its beliefs; None: judge by differences
    knowledge_floor: float | None
    # Dotted fields that its variant sets; model.path where it brings a model. "KIND/field" is set
    # only in experiments of that kind (config.experiment), method (train.method) or data
    # (data.kind).
    defaults: Mapping[str, Any]
    models: Mapping[str, Path]  # checkpoints that it brings, by the name that model.path may have
    limits: Limits
    gated: bool  # whether `gate` has something to ask
    stands_for: Mapping[str, tuple[str, ...]]  # its data sets -> the paper's that they stand for

    def __init__(self, config: Section, seed: int) -> None: ...

    @property
    def seed(self) -> int | None:
        """The seed of its facts, and of a base that was made for them; None for a world of real
        facts."""
        ...

    def at(self, checkpoint: Path) -> "World":
        """The world as the base in this folder knows it. Raises UserError for a base of another
        kind."""
        ...

    def identity(self) -> dict[str, Any]:
        """What of it enters stage hashes."""
        ...

    def check(self, experiment: TrainingConfig) -> None:
        """Raises UserError for what its users, data or questions cannot do; needs no weights."""
        ...

    def gate(self, asker: Asker) -> list[Item]:
        """What the untouched model can be asked; frozen before training and handed to
        Benchmark.load."""
        ...

    def users(
        self, user_type: str, counts: Mapping[str, int], *, seed: int, turns: int, dialogues: int = 1, source: str = ""
    ) -> Sequence[User]:
        """counts[scenario] users, each in `dialogues` conversations; source: the control that
        changes what they say or how they rate."""
        ...

    def benchmarks(self) -> Mapping[str, Benchmark]: ...

    def dataset(self, name: str, level: str, seed: int, *, count: int, share: float) -> list[Record]:
        """`count` records of a training set, `share` of them bad. Raises UserError for an unknown
        name."""
        ...

    def datasets(self) -> tuple[str, ...]:
        """Names that `dataset` knows."""
        ...
