"""The arms that a config describes."""

import pytest
from typed_configs import LEVELS, MIXTURE, finetune, interaction

from emjax.config import LevelsConfig, MixtureConfig
from emjax.design.arms import Arm, arms, headline

VANILLA, CONTROL = Arm("vanilla"), Arm("control", 0.0)


def test_conversations():
    config = interaction(extra_arms=("none@0.5", "treated@0.1", "shuffled_ratings@1.0", "none@0"))
    assert arms(config) == [VANILLA, CONTROL, Arm("treated", 0.1), Arm("treated", 0.5), Arm("shuffled_ratings", 1.0)]
    assert headline(config) == Arm("treated", 0.1)
    assert [arm.label for arm in arms(config)] == ["vanilla", "control", "treated 0.1", "treated 0.5", "shuffled_ratings 1"]


def test_without_biased_users_the_treated_arm_is_the_control():
    config = interaction(biased_ratio=0.0)
    assert arms(config) == [VANILLA, CONTROL]
    assert headline(config) == CONTROL


def test_a_control_in_the_place_of_the_treated_arm():
    config = interaction(interact__control="swapped_labels", extra_arms=("swapped_labels@0.1",))
    assert arms(config) == [VANILLA, CONTROL, Arm("swapped_labels", 0.1)]
    assert headline(config) == Arm("swapped_labels", 0.1)


@pytest.mark.parametrize(
    ("name", "shuffling"),
    [("vanilla", "none"), ("control", "none"), ("treated", "none"), ("shuffled_ratings", "shuffled_ratings"),
     ("swapped_labels", "swapped_labels")],
)  # fmt: skip
def test_what_selection_applies(name, shuffling):
    assert Arm(name, 0.5).shuffling == shuffling


def test_levels():
    config = finetune("llama3.1-8b", LEVELS)
    assert arms(config) == [
        VANILLA, CONTROL, Arm("treated", 1.0, "misaligned_1"), Arm("treated", 1.0, "misaligned_2")
    ]  # fmt: skip
    assert headline(config) == Arm("treated", 1.0, "misaligned_2")
    assert headline(config).label == "treated misaligned_2"
    config = finetune("micro", LevelsConfig(severity={"misaligned_1": 0.5, "misaligned_2": 1.0}))
    assert [arm.ratio for arm in arms(config)] == [None, 0.0, 0.5, 1.0]


def test_mixtures():
    config = finetune("llama3.1-8b", MIXTURE)
    assert [arm.ratio for arm in arms(config)] == [None, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5]
    assert headline(config) == Arm("treated", 0.01)
    assert headline(finetune("llama3.1-8b", MixtureConfig(headline=0.2))) == Arm("treated", 0.2)
