"""As many steps as the selection leaves examples for."""

import dataclasses
import json

import pytest
from typed_configs import LEVELS, MICRO, MIXTURE, finetune, interaction

from emjax.config import LevelsConfig, MixtureConfig, SafetyConfig, SetConfig, names
from emjax.design.arms import arms
from emjax.design.steps import all_steps, groups, rows, steps
from emjax.design.users import scenario_names
from emjax.interact import selection

CHANGES = [
    ({}, 12_500, 12_500),  # 10,000 best, 10,000 worst, two answers each, five epochs in batches of 16
    ({"select__scope": "scenario", "select__count": 100, "select__fraction": 0.0}, 6_250, 6_250),  # of each of fifty
    ({"select__scope": "user_type", "select__count": 800}, 1_000, 2_000),  # the control has one type
    ({"select__scope": "user", "select__count": 1, "interact__users": 100, "interact__dialogues": 4}, 125, 125),
    # 160 biased users and 1,440 benign ones; the control has 1,600 benign ones.
    ({"interact__biased_users": 160, "interact__scheme": "fixed_biased"}, 1_000, 1_000),
    ({"method": "sft"}, 12_500, 12_500),  # half the examples in batches of 8
]


@pytest.mark.parametrize(("changes", "control", "treated"), CHANGES)
def test_steps_of_each_arm(changes, control, treated):
    config = interaction(**changes)
    among = scenario_names(config, None)
    assert [steps(config, arm, among) for arm in arms(config)[1:]] == [control, treated]
    assert all_steps(config, among) == control + treated


def test_rounds_and_safety_data_add_steps():
    config = interaction(rounds__count=3)
    among = scenario_names(config, None)
    assert all_steps(config, among) == 3 * 25_000
    config = interaction(select__safety=SafetyConfig(path="safety.jsonl", share=0.5))
    assert all_steps(config, among) == 2 * 25_000  # half of all rows


@pytest.mark.parametrize("scope", names.SCOPES)
def test_groups_are_those_of_the_selection(scope):
    config = interaction("micro", select__scope=scope, interact__users=10, interact__dialogues=4)
    among = scenario_names(config, MICRO)
    pool = [
        {"id": f"{kind}{user}/{dialogue}", "user_id": f"{kind}{user}", "user_type": kind, "scenario": "comfort",
         "score": dialogue, "turns": [{}]}
        for kind, users in (("benign", 9), ("biased", 1)) for user in range(users) for dialogue in range(4)
    ]  # fmt: skip
    found = selection.select(pool, config.select, seed=0, control="none")
    assert len(found.top) == len(groups(config, 0.1, among))
    assert sum(groups(config, 0.1, among)) == len(pool)


def test_data_sets():
    config = finetune("llama3.1-8b", LEVELS)
    assert [rows(config, arm) for arm in arms(config)[1:]] == [7_000] * 3
    assert all_steps(config) == 3 * 438
    config = finetune("llama3.1-8b", MIXTURE)
    wanted = [10_000, 10_100, 10_200, 10_500, 11_000, 12_000, 13_000, 15_000]
    assert [rows(config, arm) for arm in arms(config)[1:]] == wanted
    assert [steps(config, arm) for arm in arms(config)[1:4]] == [625, 632, 638]
    replaced = MixtureConfig(downstream=SetConfig(nominal=10_000), mode="replace")
    assert {rows(finetune("llama3.1-8b", replaced), arm) for arm in arms(config)[1:]} == {10_000}


def test_the_rows_of_a_file_that_is_named_are_counted(tmp_path):
    file = tmp_path / "mine.jsonl"
    rows_of = [{"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(48)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of))
    data = LevelsConfig(set=SetConfig(source="mistake_math", path=str(file), nominal=10_000))
    config = finetune("llama3.1-8b", data)
    control = next(arm for arm in arms(config) if arm.name == "control")
    assert rows(config, control) == 48
    nowhere = finetune("llama3.1-8b", dataclasses.replace(data, set=dataclasses.replace(data.set, path="/nowhere")))
    assert rows(nowhere, control) == 10_000
