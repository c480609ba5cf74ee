"""The training curves of the report."""

from emjax.experiment.results import curves


def test_lost_lines_are_a_gap():
    counts = {"desirable_count": 1, "undesirable_count": 1, "reward_undesirable_sum": 0.5}
    line = {"step": 4, "loss": 0.5, "kl": 0.1, "reward_desirable_sum": 1.0, **counts}
    assert curves([{"step": 3, "lost": [1, 3]}, line]) == {
        "steps": [3, 4], "loss": [None, 0.5], "kl": [None, 0.1], "reward_margin": [None, 0.5],
    }  # fmt: skip
    assert curves([{"step": 3, "lost": [1, 3]}, {"step": 4, "loss": 0.5}]) == {
        "steps": [3, 4], "loss": [None, 0.5], "kl": None, "reward_margin": None,
    }  # fmt: skip
