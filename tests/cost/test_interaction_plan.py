"""The plan of self-training on conversations: steps, speed, calls and money."""

import re

import pytest
from benchmarks_of_known_size import MASK
from typed_configs import MICRO, interaction

from emjax import cost
from emjax.config import Budget
from emjax.cost.interaction import calls
from emjax.design.users import scenario_names
from emjax.errors import UserError

CHANGES = [
    ({}, 12_500, 12_500),
    ({"select__count": 800, "select__scope": "user_type"}, 1_000, 2_000),  # the control has one type
    ({"interact__biased_users": 160, "interact__scheme": "fixed_biased"}, 1_000, 1_000),
    ({"method": "sft"}, 12_500, 12_500),
]


def plan(config, limits=None):
    return cost.describe(config, limits=limits, benchmarks={"mask": MASK})


@pytest.mark.parametrize(("changes", "control", "treated"), CHANGES)
def test_steps_of_each_arm(changes, control, treated):
    told = f"about {control} steps of" if control == treated else f"about {control} (control), {treated} (treated 0.1) steps of"
    assert told in plan(interaction(**changes))


@pytest.mark.parametrize(
    ("path", "speed", "rates", "says"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", {}, (20_000, 33_800), "measured on the 8.03B shape, one NVIDIA H200)"),
        ("Qwen/Qwen3-32B", {}, (4_902, 8_285), "scaled to 32.8 billion weights on one NVIDIA H200)"),
        (
            "of/mine",
            {},
            (20_000, 33_800),
            "the size of of/mine is not known here: give a folder with its config.json, or config.interact.speed)",
        ),
        ("Qwen/Qwen3-32B", {"decode": 5.0, "prefill": 50.0}, (5, 50), "(config.interact.speed)"),
    ],
)
def test_the_engine_is_planned_at_the_rate_of_its_model(path, speed, rates, says):
    changes = {f"interact__speed__{name}": value for name, value in speed.items()}
    text = plan(interaction(model__path=path, **changes))
    line = next(line for line in text.splitlines() if line.startswith("engine"))
    assert f"at {rates[0]:.0f} tokens/s drawn and {rates[1]:.0f} read" in line
    assert says in line
    drawn, read = 6_600_000 + 1_650_000 + 88_000, 18_370_000 + 10_010_000 + 28_930_000  # the assistant, users, raters
    assert f"{(drawn / rates[0] + read / rates[1]) / 3600:.1f} hours" in line


def test_the_paper_at_its_size_is_planned_and_priced():
    config = interaction(
        interact__models__user__base_url="https://api.openai.com/v1",
        interact__models__user__model="gpt-4o-mini",
        interact__models__user__budget=Budget(price_in=0.15, price_out=0.6, usd=20.0),
        interact__models__persona1__model="writer",
        interact__models__persona1__base_url="https://x/v1",
    )
    text = plan(config)
    assert "20000 with benign users, 2000 with biased users" in text
    made = calls(config, scenario_names(config, None))
    assert made["user"][0] == 22_000  # one message after the opening
    assert made["rater"][0] == 44_000
    assert made["persona1"][0] == 20_000
    money = (sum(made[r][1] for r in ("user", "rater")) * 0.15 + sum(made[r][2] for r in ("user", "rater")) * 0.6) / 1e6
    assert f"money      about {money:.2f} USD and what persona1 cost" in text
    assert "stops at 20.0 USD" in text
    assert re.search(r"engine     [\d.]+ hours .* at 20000 tokens/s", text)


def test_every_role_that_is_called():
    """The numbers that version 0.1 planned for this experiment."""
    config = interaction(
        extra_arms=("foreign_text@1.0", "none@0.5", "benign_ratings@0.2"),
        rounds__count=2,
        interact__models__guard__model="self",
        select__veto__on=True,
        **{f"interact__models__{role}__model": "gpt" for role in ("stranger", "persona1", "persona2")},
    )
    assert calls(config, scenario_names(config, None)) == {
        "user": (110_000, 50_050_000, 8_250_000),
        "rater": (316_000, 207_770_000, 632_000),
        "stranger": (80_000, 24_200_000, 6_000_000),
        "guard": (300_000, 197_250_000, 600_000),
        "persona1": (10_000, 2_600_000, 2_000_000),
        "persona2": (10_000, 2_600_000, 2_000_000),
    }
    text = plan(config)
    assert (
        "20000 with benign users, 10000 with biased users, 20000 with biased users (foreign_text), 4000 with biased users "
        "(benign_ratings)"
    ) in text
    assert "150000 conversations in all" in text


def test_personas_by_type_are_twice_as_many():
    among = scenario_names(interaction(), None)
    for by_type, number in ((False, 20_000), (True, 40_000)):
        config = interaction(interact__models__persona1__model="writer", interact__personas__by_type=by_type)
        assert calls(config, among)["persona1"].number == number


def test_scripted_users_cost_nothing_and_an_exact_judge_neither():
    text = plan(interaction("micro"), MICRO)
    assert "collect    1600 with benign users, 1600 with biased users" in text
    assert "about 75 steps of 32 examples" in text
    for word in ("assistant", "engine", "user ", "money", "judge", "mask"):
        assert f"\n{word}" not in text


def test_given_conversations_are_not_collected():
    text = plan(interaction(interact__trajectories="pool.jsonl"))
    assert "collect    nothing: conversations of pool.jsonl are used, at most 20000 with benign users" in text
    assert "\nmoney" not in text


@pytest.mark.parametrize(
    ("variant", "changes", "says"),
    [
        ("llama3.1-8b", {"select__count": 1_001, "select__scope": "user_type"},
         r"1001 best .* of 2000 \(treated 0.1, .*user_type"),
        ("micro", {"interact__turns": 11}, "config.interact.turns is 11; .*1 to 10"),
        ("micro", {"interact__preference": False}, "config.interact.preference is False, .*scripted.*Leave it at True"),
    ],
)  # fmt: skip
def test_what_no_run_could_take_is_not_planned(variant, changes, says):
    with pytest.raises(UserError, match=says):
        plan(interaction(variant, **changes), MICRO if variant == "micro" else None)
