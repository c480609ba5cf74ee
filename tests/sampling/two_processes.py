"""Run twice by test_meshes.py: `two_processes.py PORT RANK`. Requests enter on process 0; the other follows."""

import asyncio
import dataclasses
import sys

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from emjax.errors import UserError  # noqa: E402
from emjax.models import LanguageModel, decoder, sharding  # noqa: E402
from emjax.sampling import Engine  # noqa: E402
from tests.sampling.conftest import CONFIG, EOS, Words, mixed, random_adapter  # noqa: E402

SHAPE = {"slots": 8, "cache_length": 96, "chunk": 8}
MODEL = dataclasses.replace(CONFIG, V=68)


def by_id(results):
    return {result.id: result for result in results}


def spread(params, mesh):
    """Every process holds its part of the weights."""
    specs = sharding.parameter_specs(decoder.abstract(MODEL, "float32")[1])
    return jax.tree.map(
        lambda x, place: jax.make_array_from_callback(x.shape, place, lambda at: np.asarray(x)[at]),
        params, sharding.shardings(mesh, specs),
    )  # fmt: skip


async def asked(engine, requests):
    return by_id(await asyncio.gather(*(engine.submit(r) for r in requests)))


def main():
    mesh = sharding.make_mesh(2, 1, 2)
    params = decoder.init(MODEL, jax.random.key(0))
    alone = LanguageModel(MODEL, params, Words(), (EOS, 5))
    engine = Engine(alone.replace(params=spread(params, mesh), mesh=mesh), **SHAPE)
    engine.set_adapter("a", adapter := random_adapter(7))
    requests = mixed(16, max_new=8)
    requests[::4] = [dataclasses.replace(r, adapter="a") for r in requests[::4]]

    if jax.process_index():
        with pytest.raises(UserError, match="process 0"):
            next(engine.generate(requests))
        engine.follow()
        assert engine.stats.requests > 30
        assert engine._free.keys() == set(range(8))
        engine.follow()  # a second time
        assert engine.stats.requests > 38
    else:
        local = Engine(alone, **SHAPE)
        local.set_adapter("a", adapter)
        expected, found = by_id(local.generate(requests)), by_id(engine.generate(requests))
        for name, result in expected.items():
            assert found[name].tokens == result.tokens
            np.testing.assert_allclose(found[name].logprobs, result.logprobs, atol=1e-4)
        assert asyncio.run(asked(engine, requests[::-1])) == found
        some = engine.generate(mixed(12, seed=9, max_new=20))
        next(some)
        some.close()  # the others are cancelled on both processes
        prompt, options = requests[3].tokens, [[7, 8], [9], [10, 11, 12]]
        np.testing.assert_allclose(engine.score(prompt, options), local.score(prompt, options), atol=1e-4)
        engine.close()
        assert by_id(engine.generate(requests[:8])) == {r.id: found[r.id] for r in requests[:8]}
        engine.close()
    print("done")


main()
