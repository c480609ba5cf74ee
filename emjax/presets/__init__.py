"""Configurations: what users start from, and the door through which they become typed experiments.

paper     the paper's experiments, a function each
door      ConfigDict to a typed experiment; what is missing on this machine
coverage  which printed rows the configs measure
page      docs/fields.md
"""

from emjax.presets.door import Chosen, data_sets, find_world, place, read
from emjax.presets.page import fields_page, print_fields
from emjax.presets.paper import admitting_unknown, alpaca, direct, evaluation, grid, interaction, many, mixture, pretraining

__all__ = [
    "Chosen",
    "admitting_unknown",
    "alpaca",
    "data_sets",
    "direct",
    "evaluation",
    "fields_page",
    "find_world",
    "grid",
    "interaction",
    "many",
    "mixture",
    "place",
    "pretraining",
    "print_fields",
    "read",
]
