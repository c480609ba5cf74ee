"""The arms of an experiment, as its config names them."""

import dataclasses
import math
from typing import Any

from emjax.errors import UserError
from emjax.interact.selection import CONTROLS, share


@dataclasses.dataclass(frozen=True)
class Arm:
    """One model that is evaluated. vanilla: untouched; control: the same training without the cause; treated: with it."""

    name: str  # vanilla | control | treated | one of selection.CONTROLS
    ratio: float | None = None
    level: str = ""  # of a data set that comes in grades of misalignment

    @property
    def label(self) -> str:
        return self.name if self.ratio is None or self.name == "control" else f"{self.name} {self.level or f'{self.ratio:g}'}"

    @property
    def shuffling(self) -> str:
        """The control that selection applies."""
        return self.name if self.name in CONTROLS else "none"


def headline(config: Any) -> Arm:
    interact = config.interact
    if interact.control == "none" and not interact.biased_ratio:
        return Arm("control", 0.0)  # without biased users the treated arm is the control
    return Arm("treated" if interact.control == "none" else interact.control, float(interact.biased_ratio))


def arms(config: Any) -> list[Arm]:
    """vanilla, control, the config's own arm, then its extra arms ("<control>@<ratio>"); each once."""
    if config.interact.control not in CONTROLS:
        raise UserError(f"config.interact.control is {config.interact.control!r}; choose {', '.join(CONTROLS)}.")
    found = [Arm("vanilla"), Arm("control", 0.0), headline(config)]
    for text in config.extra_arms:
        control, at, ratio = str(text).partition("@")
        try:
            value = float(ratio)
        except ValueError:
            value = math.nan
        if control not in CONTROLS or not at or not 0 <= value <= 1:
            raise UserError(
                f"config.extra_arms holds {text!r}; write <control>@<ratio>, the control being "
                f"{', '.join(CONTROLS)} and the ratio "
                "a number in [0, 1], for example 'shuffled_ratings@1.0'."
            )
        found.append(Arm("treated" if control == "none" else control, value))
    unique = []
    for arm in found:
        if arm.ratio is not None:
            share(0, arm.ratio)  # refuses a ratio outside [0, 1]
        if arm.name == "treated" and arm.ratio == 0:
            arm = Arm("control", 0.0)  # without biased users the treated arm is the control
        if arm not in unique:
            unique.append(arm)
    return unique
