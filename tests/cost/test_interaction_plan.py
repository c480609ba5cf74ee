"""The plan of self-training on conversations: as many steps as the selection leaves examples for."""

import pytest

from configs import common
from emjax import plan
from emjax.errors import UserError
from emjax.interact import selection
from emjax.plan import interaction


def config_of(variant="llama3.1-8b", method="kto", *, select=(), interact=()):
    config = common.interaction(variant, method=method, biased_ratio=0.1)
    config.select.update(dict(select))
    config.interact.update(dict(interact))
    return config


@pytest.mark.parametrize(
    ("changes", "control", "treated"),
    [
        ({}, 12_500, 12_500),  # 10,000 best, 10,000 worst, two answers each, five epochs in batches of 16
        ({"select": {"scope": "scenario", "count": 100, "fraction": 0.0}}, 6_250, 6_250),  # of each of fifty
        ({"select": {"scope": "user_type", "count": 800}}, 1_000, 2_000),  # the control has one type
        ({"select": {"scope": "user", "count": 1}, "interact": {"users": 100, "dialogues": 4}}, 125, 125),
        # 160 biased users and 1,440 benign ones; the control has 1,600 benign ones.
        ({"interact": {"scheme": "fixed_biased", "biased_users": 160}}, 1_000, 1_000),
        ({"method": "sft"}, 12_500, 12_500),  # half the examples in batches of 8
    ],
)
def test_steps_of_each_arm(changes, control, treated):
    config = config_of(**changes)
    assert [interaction.steps(config, ratio) for ratio in (0.0, 0.1)] == [control, treated]
    assert interaction.all_steps(config) == control + treated
    told = f"about {control} steps of" if control == treated else f"about {control} (control), {treated} (treated 0.1) steps of"
    assert told in plan.describe(config)


@pytest.mark.parametrize(
    ("path", "speed", "rates", "says"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", {}, (20_000, 33_800), "measured on the 8B shape, one NVIDIA H200)"),
        ("Qwen/Qwen3-32B", {}, (20_000 * 8 / 32.8, 33_800 * 8 / 32.8), "not on this one: scaled to 32.8 billion weights)"),
        ("of/mine", {}, (20_000, 33_800), "of/mine was not: give config.interact.speed)"),
        ("Qwen/Qwen3-32B", {"decode": 5.0, "prefill": 50.0}, (5, 50), "(config.interact.speed)"),
    ],
)
def test_the_engine_is_planned_at_the_rate_of_its_model(path, speed, rates, says):
    config = config_of(interact={"speed": speed})
    config.model.path = path
    text = plan.describe(config)
    line = next(line for line in text.splitlines() if line.startswith("engine"))
    assert f"at {rates[0]:.0f} tokens/s drawn and {rates[1]:.0f} read" in line
    assert says in line
    drawn, read = 6_600_000 + 1_650_000 + 88_000, 18_370_000 + 10_010_000 + 28_930_000  # the assistant, users, raters
    assert f"{(drawn / rates[0] + read / rates[1]) / 3600:.1f} hours" in line


@pytest.mark.parametrize("scope", selection.GROUPS)
def test_groups_are_those_of_the_selection(scope):
    config = config_of("micro", select={"scope": scope, "count": 1}, interact={"users": 10, "dialogues": 4})
    pool = [
        {"id": f"{kind}{user}/{dialogue}", "user_id": f"{kind}{user}", "user_type": kind, "scenario": "comfort",
         "score": dialogue, "turns": [{}]}
        for kind, users in (("benign", 9), ("biased", 1)) for user in range(users) for dialogue in range(4)
    ]  # fmt: skip
    found = selection.select(pool, scope=scope, count=1, fraction=0, seed=0, control="none")
    assert len(found.top) == len(interaction.groups(config, 0.1))
    assert sum(interaction.groups(config, 0.1)) == len(pool)


@pytest.mark.parametrize(
    ("variant", "changes", "says"),
    [
        ("llama3.1-8b", {"interact": {"turns": 0}}, "config.interact.turns is 0"),
        ("llama3.1-8b", {"interact": {"users": 0}}, "config.interact.users is 0"),
        ("llama3.1-8b", {"interact": {"dialogues": -1}}, "config.interact.dialogues is -1"),
        ("llama3.1-8b", {"interact": {"rating": {"person": "second"}}}, "config.interact.rating.person"),
        ("llama3.1-8b", {"select": {"scope": "zodiac"}}, "config.select.scope is 'zodiac'; choose global"),
        ("llama3.1-8b", {"select": {"scope": "user_type", "count": 1_001}}, r"1001 best .* of 2000 \(treated 0.1, .*user_type"),
        ("llama3.1-8b", {"select": {"fraction": 0.0}}, "config.select asks for the 0 best"),
        ("micro", {"interact": {"users": 0}}, "config.interact.users is 0"),
        ("micro", {"interact": {"turns": 11}}, "config.interact.turns is 11; .*1 to 10"),
        ("micro", {"interact": {"preference": False}}, "config.interact.preference is False, .*scripted.*Leave it at True"),
        ("micro", {"interact": {"rating": {"readout": "text"}}}, "config.interact.rating.readout is 'text'"),
        ("micro", {"interact": {"domains": ("nowhere",)}}, "config.interact.domains is .'nowhere'"),
        ("micro", {"interact": {"models": {"user": {"model": "gpt-4o-mini"}}}}, "config.interact.models.user.model"),
    ],
)
def test_what_no_run_could_take_is_not_planned(variant, changes, says):
    with pytest.raises(UserError, match=says):
        plan.describe(config_of(variant, **changes))
