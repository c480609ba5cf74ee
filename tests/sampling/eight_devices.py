"""Run by test_meshes.py in a process that has eight virtual devices."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks import collectives
from emjax.errors import UserError
from emjax.models import LanguageModel, decoder, sharding
from emjax.sampling import Engine, programs
from emjax.sampling import cache as kv

from .conftest import CONFIG, EOS, Words, mixed, random_adapter, teacher_forced

SHAPE = {"slots": 8, "cache_length": 96, "chunk": 8}
# The vocabulary of the tests' model cannot be split.
MODEL = dataclasses.replace(CONFIG, V=68)


@pytest.fixture(scope="module")
def one():
    return LanguageModel(MODEL, decoder.init(MODEL, jax.random.key(0)), Words(), (EOS, 5))


@pytest.fixture(scope="module", params=[(2, 2, 2), (1, 8, 1)], ids=str)
def eight(request, one):
    """The cut over tensor also with matrices side by side, as on accelerators."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param[2] > 1:
            patch.setattr(kv, "groups", lambda: kv.TOGETHER)
        yield spread(one, request.param)


def spread(one, sizes):
    data, fsdp, tensor = sizes
    mesh = sharding.make_mesh(data, fsdp, tensor)
    specs = sharding.parameter_specs(decoder.abstract(MODEL, "float32")[1])
    return one.replace(params=jax.device_put(one.params, sharding.shardings(mesh, specs)), mesh=mesh)


def by_id(results):
    return {result.id: result for result in results}


def test_one_and_eight_devices_agree(one, eight):
    adapter = random_adapter(7) if eight.mesh.shape["tensor"] > 1 else None
    one, eight = one.replace(adapter=adapter), eight.replace(adapter=adapter)
    requests = mixed(24)
    requests[1::5] = [dataclasses.replace(r, id=r.id + "n", tokens=(*r.tokens, 9)) for r in requests[::5]]
    engine = Engine(eight, **SHAPE)
    found = by_id(engine.generate(requests))
    alone = by_id(Engine(one, **SHAPE).generate(requests))
    expected = teacher_forced(one, [(r.tokens, found[r.id].tokens) for r in requests])
    for r, logprobs in zip(requests, expected, strict=True):
        assert found[r.id].tokens == alone[r.id].tokens
        np.testing.assert_allclose(found[r.id].logprobs, logprobs, atol=1e-4)
    assert engine.stats.reused_tokens
    size = programs.decode._cache_size()
    assert by_id(engine.generate(requests[::-1])) == found  # bit for bit on a mesh too
    assert programs.decode._cache_size() == size
    prompt, options = requests[3].tokens, [[7, 8], [9], [10, 11, 12]]
    np.testing.assert_allclose(engine.score(prompt, options), Engine(one, **SHAPE).score(prompt, options), atol=1e-4)
    np.testing.assert_allclose(
        engine.next_token_probs(prompt, [6, 7]), Engine(one, **SHAPE).next_token_probs(prompt, [6, 7]), atol=1e-6
    )


def test_the_cache_is_spread_and_stays_where_it_is(eight):
    engine = Engine(eight.replace(config=dataclasses.replace(MODEL, max_position=1024)), slots=64, cache_length=1024)
    before = [x.sharding for x in jax.tree.leaves((engine._caches, engine._state))]
    list(engine.generate(mixed(20)))
    assert [x.sharding for x in jax.tree.leaves((engine._caches, engine._state))] == before
    x = engine._caches[0][0]
    assert x.addressable_shards[0].data.size == x.size / 8
    R = 8
    n_R = np.zeros(R, np.int32)
    memory = programs.prefill_layer.lower(
        engine.config, "xla", 512, engine._mesh, engine._layers[0], None, np.zeros((R, 64, 32), np.float32),
        engine._caches[0], n_R, n_R,
    ).compile().memory_analysis()  # fmt: skip
    gathered, scores = 2 * R * 2 * 512 * 8 * 4, R * 4 * 64 * 512 * 4
    assert memory.temp_size_in_bytes < 3 * gathered + 4 * scores
    decode = programs.decode.lower(
        engine.config, "xla", engine._vocabulary, engine._mesh, engine._layers, engine._top, None, engine._caches,
        engine._state, np.ones(64, bool), np.int32(8), engine._eos_E,
    ).compile().memory_analysis()  # fmt: skip
    cache = sum(x.nbytes for x in jax.tree.leaves(engine._caches)) / 8
    assert decode.temp_size_in_bytes < 0.2 * cache


def test_a_device_prefills_its_own_slots_and_sends_no_cache(eight):
    engine = Engine(eight.replace(config=dataclasses.replace(MODEL, max_position=1024)), slots=64, cache_length=1024)
    R, reach = engine._blocks_a_call, 512
    n_R, x_RxCxD = np.zeros(R, np.int32), np.zeros((R, 64, 32), np.float32)
    program = programs.prefill_layer.lower(
        engine.config, "xla", reach, engine._mesh, engine._layers[0], None, x_RxCxD, engine._caches[0], n_R, n_R
    ).compile()
    sent = sum(one.received for one in collectives.read(program.as_text()))
    # Weights are gathered over fsdp; over tensor two sums of a device's activations, each received at most twice.
    weights = sum(x.nbytes for x in jax.tree.leaves(engine._layers[0]))
    read = 2 * R * MODEL.K * reach * MODEL.h * 4
    assert sent < weights + 4 * x_RxCxD.nbytes / engine._shards < read  # so none of what is read was sent


def test_slots_that_cannot_be_split(eight):
    with pytest.raises(UserError, match="multiple of data x fsdp"):
        Engine(eight, slots=6, cache_length=96)


def test_slots_from_free_memory_are_a_multiple(eight):
    spread = eight.mesh.shape["data"] * eight.mesh.shape["fsdp"]
    assert Engine(eight, slots=0, cache_length=96).slots % spread == 0
