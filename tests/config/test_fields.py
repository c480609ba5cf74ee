"""What a field knows of itself: missing things, what only watches, the generated page."""

from pathlib import Path

from emjax import config as cfg
from emjax import presets

ROOT = Path(__file__).parents[2]


def test_missing_files_and_variables_are_listed_by_field(tmp_path):
    there = tmp_path / "there.jsonl"
    there.touch()
    config = cfg.InteractConfig(
        trajectories=str(tmp_path / "gone.jsonl"),
        models=cfg.RolesConfig(user=cfg.RoleConfig(model="m", base_url="http://x/v1", api_key_env="NO_SUCH_KEY")),
    )
    assert cfg.missing(config, {}, "config.interact") == [
        f"config.interact.trajectories: there is no file {tmp_path / 'gone.jsonl'}.",
        "config.interact.models.user.api_key_env: the environment variable NO_SUCH_KEY is not set; put the key there.",
    ]
    assert cfg.missing(cfg.InteractConfig(trajectories=str(there)), {}) == []


def test_a_section_within_one_that_only_paces_does_so_too():
    marked = {name for name, _, known in cfg.walk(cfg.InteractConfig()) if known.pace}
    assert {"config.models.user.budget.usd", "config.models.rater.rates.concurrent", "config.failures"} <= marked
    assert "config.turns" not in marked
    played = {name for name, _, known in cfg.walk(cfg.InteractConfig()) if known.played}
    assert "config.rating.low" in played
    assert "config.users" not in played


def test_the_page_of_fields_is_that_of_the_code():
    assert (ROOT / "docs" / "fields.md").read_text() == presets.fields_page(), "run: emjax fields > docs/fields.md"


def test_every_field_is_documented_in_a_sentence():
    for name, _, known in [*cfg.walk(cfg.InteractionConfig(experiment="interaction")), *cfg.walk(cfg.PretrainConfig())]:
        assert known.doc.endswith((".", ";", '"')), f"{name}: {known.doc!r}"
