"""The embedded model in an engine, shared by the tests of conversations."""

import collecting
import pytest


@pytest.fixture(scope="session")
def micro():
    from emjax import models
    from emjax.sampling import Engine

    lm = models.load(str(collecting.CHECKPOINT), dtype="float32")
    return lm, Engine(lm, slots=16, cache_length=512, chunk=32)
