"""What no run could take is refused before it starts."""

import pytest
from typed_configs import MICRO, interaction

from emjax.design.check import check
from emjax.errors import UserError

MICRO_ONLY = "config.world is 'micro', whose users are scripted and do not read it. Leave it at"


def limits_of(variant):
    return MICRO if variant == "micro" else None


@pytest.mark.parametrize("variant", ["llama3.1-8b", "qwen2.5-7b-2k", "qwen3-32b", "micro"])
@pytest.mark.parametrize("method", ["kto", "sft"])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.2, 0.4, 0.5, 0.8, 1.0])
def test_the_paper_s_experiments_pass(variant, method, ratio):
    check(interaction(variant, method=method, biased_ratio=ratio), limits_of(variant))


@pytest.mark.parametrize(
    ("variant", "changes", "says"),
    [
        # Parsing refuses these, when the section is made.
        ("llama3.1-8b", {"interact__turns": 0}, "turns is 0"),
        ("llama3.1-8b", {"interact__users": 0}, "users is 0"),
        ("llama3.1-8b", {"interact__dialogues": -1}, "dialogues is -1"),
        ("llama3.1-8b", {"interact__rating__person": "second"}, "person is 'second'; choose first, third"),
        ("llama3.1-8b", {"select__scope": "zodiac"}, "scope is 'zodiac'; choose global"),
        ("llama3.1-8b", {"select__fraction": 0.0}, "count and fraction are both 0"),
        ("micro", {"interact__users": 0}, "users is 0"),
        # The design refuses these.
        ("llama3.1-8b", {"select__count": 1_001, "select__scope": "user_type"},
         r"1001 best .* of 2000 \(treated 0.1, .*user_type"),
        ("llama3.1-8b", {"select__fraction": 0.00001}, "config.select asks for the 0 best"),
        ("llama3.1-8b", {"interact__domains": ("nowhere",)}, "config.interact.domains has 'nowhere'"),
        ("llama3.1-8b", {"select__veto__on": True}, "config.select.veto.on .*config.interact.models.guard.model"),
        ("llama3.1-8b", {"extra_arms": ("foreign_text@1.0",)}, "foreign_text, .*config.interact.models.stranger.model"),
        ("micro", {"interact__turns": 11}, "config.interact.turns is 11; .*1 to 10"),
        ("micro", {"select__veto__on": True}, "config.select.veto.on .*config.world is 'micro'.*Switch it off"),
        ("micro", {"interact__preference": False}, f"config.interact.preference is False, but {MICRO_ONLY} True"),
        ("micro", {"interact__rating__readout": "text"}, f"config.interact.rating.readout is 'text', but {MICRO_ONLY}"),
        ("micro", {"interact__domains": ("nowhere",)}, "config.interact.domains is .'nowhere'"),
        ("micro", {"interact__models__user__model": "gpt-4o-mini"}, "config.interact.models.user.model"),
        ("micro", {"interact__personas__tries": 5}, f"config.interact.personas.tries is 5, but {MICRO_ONLY} 4"),
        ("micro", {"interact__models__rater__draw__top_k": 5}, f"models.rater.draw.top_k is 5, but {MICRO_ONLY} 0"),
        ("micro", {"interact__speed__decode": 5.0}, f"config.interact.speed.decode is 5.0, but {MICRO_ONLY} 0.0"),
    ],
)  # fmt: skip
def test_what_no_run_could_take_is_refused(variant, changes, says):
    with pytest.raises(UserError, match=says):
        check(interaction(variant, **changes), limits_of(variant))


def test_what_scripted_users_do_read_may_differ():
    changes = {"users": 100, "draw__temperature": 0.5, "max_new": 12, "aggregate": "last", "scheme": "exact", "turns": 10}
    check(interaction("micro", **{f"interact__{name}": value for name, value in changes.items()}), MICRO)
    check(interaction("micro", extra_arms=("foreign_text@1.0", "benign_ratings@1.0")), MICRO)


@pytest.mark.parametrize(
    "what",
    [
        {"extra_arms": ("foreign_text@1.0",), "interact__models__stranger__model": "self"},
        {"extra_arms": ("benign_ratings@1.0",)},
        {"interact__models__guard__model": "self", "select__veto__on": True},
    ],
)
def test_given_conversations_are_not_changed_by_what_cannot_change_them(what):
    """They would be reported as if they had been."""
    with pytest.raises(UserError, match="config.interact.trajectories gives conversations as they are"):
        check(interaction(interact__trajectories="pool.jsonl", **what), None)


def test_given_conversations_have_groups_of_their_own():
    check(interaction(interact__trajectories="pool.jsonl", select__count=100_000), None)


def test_templates_are_read_where_they_are_and_otherwise_only_missing(tmp_path):
    check(interaction(interact__templates=str(tmp_path / "none")), None)
    (tmp_path / "user.j2").write_text("{{ nonsense }}")
    with pytest.raises(UserError, match=r"user\.j2: uses the field 'nonsense'"):
        check(interaction(interact__templates=str(tmp_path)), None)
