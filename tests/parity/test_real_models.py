"""SmolLM2-135M-Instruct, a real chat model, against transformers in float32. Skipped where its wheel cannot be had."""

import pytest

from emjax.models import gguf
from tests import smollm2
from tests.parity import real_models

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2") / "folder"
    assert not gguf.main([str(smollm2.gguf()), str(folder)])
    return real_models.compare(str(folder))


# 1e-4 of the logits' spread: float32 rounding over 30 layers, in another order of sums; measured 1.2e-5.
@pytest.mark.parametrize("reading", ["chats", "prose"])
def test_logits(found, reading):
    assert found[reading]["difference"] <= 1e-4
    assert found[reading]["top_1_differs"] == 0


def test_greedy_answers(found):
    """Equal, or different first where the reference's two likeliest tokens are a rounding apart."""
    assert all(gap < 1e-3 for gap in found["greedy"]["gaps"])


def test_masks_hold_exactly_what_the_assistant_said(found):
    assert found["masks"]["exact"] == found["masks"]["turns"] == 5


def test_served_answers(found):
    assert found["served"]["right"] == 5, found["served"]["answers"]
