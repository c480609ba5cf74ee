"""The shapes that are used without weights are those of the checkpoints they stand for."""

import json

from emjax.models.config import ModelConfig
from emjax.models.known import KNOWN
from emjax.worlds.micro.offline import CHECKPOINT


def test_micro_is_the_checkpoint_that_is_shipped():
    raw = json.loads((CHECKPOINT / "config.json").read_text())
    assert KNOWN["micro"].config == ModelConfig.from_hf(raw)
    assert KNOWN["micro"].dtype == raw["dtype"]
