"""Full fine-tuning of a bfloat16 base keeps weights and moments in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emjax.data.batches import rows
from emjax.models import decoder
from emjax.models.logprobs import row_logprobs
from emjax.train import optimizer, sft, state
from emjax.train.state import Tuning

OPT = optimizer.make(0.9, 0.99, 1e-8, 0.0, 0.0)
BATCH = rows([(tuple(range(5, 15)), (0.0,) * 3 + (1.0,) * 7), (tuple(range(30, 38)), (1.0,) * 8)], 2, (16,), "it")


@pytest.fixture(scope="module")
def base(tiny):
    return decoder.init(tiny.config, jax.random.key(0), jnp.bfloat16)


def test_small_updates_add_up(tiny, base):
    """At 1e-4 an update is less than half a bfloat16 step of most weights: kept in bfloat16 they would never move."""
    tuning = Tuning(tiny.config, None, dtype="bfloat16")
    now = state.create(base, OPT, tuning)
    assert {str(x.dtype) for x in jax.tree.leaves((now["trainable"], now["opt"]))} == {"float32", "int32"}
    start = np.asarray(now["trainable"]["layers"]["up"])
    for _ in range(4):
        now, metrics = sft.step(now, None, BATCH, np.float32(1e-4), tuning=tuning, optimizer=OPT)
    moved = np.abs(np.asarray(now["trainable"]["layers"]["up"]) - start)
    large = np.abs(start) > 0.1  # a bfloat16 step there is 5e-4 or more
    assert large.any()
    assert np.mean(moved[large] > 1e-4) > 0.9  # the rest turned back
    assert {str(x.dtype) for x in jax.tree.leaves(now["trainable"])} == {"float32"}
    assert {str(x.dtype) for x in jax.tree.leaves(state.cast(now["trainable"], "bfloat16"))} == {"bfloat16"}


def test_the_forward_pass_is_that_of_the_base(tiny, base):
    """Cast there and back, nothing is lost: the same log-probs, bit for bit."""
    tuning = Tuning(tiny.config, None, dtype="bfloat16")
    params, adapter = tuning.assemble(state.create(base, optax.sgd(1.0), tuning)["trainable"], None)
    assert adapter is None
    jax.tree.map(np.testing.assert_array_equal, params, base)
    score = jax.jit(lambda p: row_logprobs(tiny.config, p, None, BATCH))
    np.testing.assert_array_equal(score(params), score(base))


def test_a_dtype_that_is_not_the_base_s(tiny, base):
    with pytest.raises(ValueError, match=r"base is bfloat16.*float32"):
        state.create(base, OPT, Tuning(tiny.config, None))
