"""Who converses for which arm."""

from typed_configs import MICRO, interaction

from emjax.design.arms import Arm, arms
from emjax.design.users import Collected, collected, demand, scenario_names, source, users


def test_a_world_has_one_scenario_and_domains_have_theirs():
    assert scenario_names(interaction("micro"), MICRO) == ("comfort",)
    config = interaction("qwen2.5-7b-2k")
    assert len(scenario_names(config, None)) == 10
    assert scenario_names(interaction(), None)[:10] == scenario_names(config, None)


def test_users_of_each_type():
    config = interaction("micro")
    assert users(config, 0.1, ("comfort",)) == {"comfort": (180, 20)}
    assert users(config, None, ("comfort",)) == users(config, 0.0, ("comfort",)) == {"comfort": (200, 0)}


def test_the_control_of_fixed_biased_has_as_many_users():
    config = interaction("micro", interact__biased_users=16, interact__scheme="fixed_biased")
    assert users(config, 0.1, ("comfort",)) == {"comfort": (144, 16)}
    assert users(config, 0.0, ("comfort",)) == {"comfort": (160, 0)}


def test_where_an_arm_takes_its_conversations_from():
    assert [source(Arm("treated", 0.1), kind) for kind in ("benign", "biased")] == ["", ""]
    assert [source(Arm("foreign_text", 0.1), kind) for kind in ("benign", "biased")] == ["foreign_text", "foreign_text"]
    assert [source(Arm("benign_ratings", 0.1), kind) for kind in ("benign", "biased")] == ["", "benign_ratings"]


def test_arms_share_what_they_can():
    config = interaction("micro", extra_arms=("none@0.5", "benign_ratings@0.2", "foreign_text@1.0"))
    assert demand(config, arms(config)[1:], ("comfort",)) == {
        ("", "benign"): {"comfort": 200},
        ("", "biased"): {"comfort": 100},
        ("benign_ratings", "biased"): {"comfort": 40},
        ("foreign_text", "benign"): {"comfort": 0},
        ("foreign_text", "biased"): {"comfort": 200},
    }
    assert collected(config, ("comfort",)) == Collected(talks=8 * 500, foreign=8 * 200, rated=8 * 540)


def test_later_rounds_collect_for_each_arm():
    config = interaction("micro", extra_arms=(), rounds__count=3)
    assert collected(config, ("comfort",)).talks == 8 * (200 + 20) + 2 * 2 * 8 * 200
