"""Configurations: what users start from, and the door through which they become typed experiments.

paper   the paper's experiments, a function each
door    ConfigDict to a typed experiment; what is missing on this machine
page    docs/fields.md
"""

from emjax.presets.door import Chosen, find_world, missing, read
from emjax.presets.page import fields_page, print_fields
from emjax.presets.paper import alpaca, direct, evaluation, grid, interaction, many, mixture, pretraining

__all__ = [
    "Chosen",
    "alpaca",
    "direct",
    "evaluation",
    "fields_page",
    "find_world",
    "grid",
    "interaction",
    "many",
    "missing",
    "mixture",
    "pretraining",
    "print_fields",
    "read",
]
