"""The arms of an experiment, as its config names them."""

import dataclasses

from emjax.config import FinetuneConfig, InteractionConfig, LevelsConfig, names, split_arm


@dataclasses.dataclass(frozen=True)
class Arm:
    """One model that is evaluated. vanilla: untouched; control: the same training without the
    cause; treated: with it."""

    name: str  # vanilla | control | treated | one of config.names.CONTROLS
    ratio: float | None = None
    level: str = ""  # grade of misalignment, where the data set has grades

    @property
    def label(self) -> str:
        return self.name if self.ratio is None or self.name == "control" else f"{self.name} {self.level or f'{self.ratio:g}'}"

    @property
    def shuffling(self) -> str:
        """The control that selection applies."""
        return self.name if self.name in names.CONTROLS else "none"


VANILLA = Arm("vanilla")
CONTROL = Arm("control", 0.0)


def arms(config: InteractionConfig | FinetuneConfig) -> list[Arm]:
    """vanilla, control, then the treated arms and further controls, each once.

    Of conversations: the config's own arm, then its extra arms. Of data sets: every level, or every
    ratio. All rows of a level have that grade, so its ratio is 1 unless config.data.severity gives
    another.
    """
    if isinstance(config, InteractionConfig):
        extra = (_arm(*split_arm(text)) for text in config.extra_arms)
        return list(dict.fromkeys([VANILLA, CONTROL, headline(config), *extra]))
    data = config.data
    if isinstance(data, LevelsConfig):
        treated = [Arm("treated", data.severity.get(level, 1.0), level) for level in data.levels]
    else:
        treated = [Arm("treated", ratio) for ratio in data.ratios]
    return list(dict.fromkeys([VANILLA, CONTROL, *treated]))


def headline(config: InteractionConfig | FinetuneConfig) -> Arm:
    """The arm that the headline is about: the config's own; of data sets the last level, or
    config.data.headline, or the smallest ratio."""
    if isinstance(config, InteractionConfig):
        return _arm(config.interact.control, config.interact.biased_ratio)
    data = config.data
    if isinstance(data, LevelsConfig):
        return arms(config)[-1]
    return Arm("treated", data.headline or min(data.ratios))


def _arm(control: str, ratio: float) -> Arm:
    if control == "none":
        # without biased users the treated arm is the control
        return Arm("treated", ratio) if ratio else CONTROL
    return Arm(control, ratio)
