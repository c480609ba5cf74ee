"""The engine against teacher forcing and transformers; determinism, ends, one compilation, submit."""

import asyncio
import dataclasses
import functools
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emjax.errors import UserError
from emjax.models import LanguageModel, attention, decode_kernel, decoder, lora
from emjax.models.config import ModelConfig
from emjax.sampling import Engine, Request, Sampling, programs
from emjax.sampling import cache as kv

from .conftest import CONFIG, EOS, NO_EOS, SHAPE, WORDS, Words, mixed, random_adapter, tables, teacher_forced


def by_id(results):
    return {result.id: result for result in results}


# --- decode equals forward --------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["lm", "tuned"])
def test_logprobs_are_the_teacher_forced_ones(which, request):
    model = request.getfixturevalue(which)
    requests = mixed(40)  # 40 rows through 8 slots: every slot is used again
    results = by_id(Engine(model, **SHAPE).generate(requests))
    assert len(results) == 40
    expected = teacher_forced(model, [(r.tokens, results[r.id].tokens) for r in requests])
    for r, logprobs in zip(requests, expected, strict=True):
        np.testing.assert_allclose(results[r.id].logprobs, logprobs, atol=1e-4, err_msg=r.id)
    reasons = {r.stop_reason for r in results.values()}
    assert reasons == {"eos", "length"}


def test_bfloat16(lm):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), lm.params)
    model = lm.replace(params=params)
    requests = mixed(10, longest=32)
    results = by_id(Engine(model, **SHAPE).generate(requests))
    expected = teacher_forced(model, [(r.tokens, results[r.id].tokens) for r in requests])
    for r, logprobs in zip(requests, expected, strict=True):
        np.testing.assert_allclose(results[r.id].logprobs, logprobs, atol=0.25, err_msg=r.id)


def test_greedy_takes_the_likeliest_known_token(lm):
    requests = mixed(10, temperature=0.0, top_k=0, max_new=12)
    results = sorted_like(requests, Engine(lm, **SHAPE))
    expected = tables(lm, [(r.tokens, result.tokens) for r, result in zip(requests, results, strict=True)])
    for result, table in zip(results, expected, strict=True):
        assert result.tokens == tuple(table[:, :WORDS].argmax(-1))


def sorted_like(requests, engine):
    results = by_id(engine.generate(requests))
    return [results[r.id] for r in requests]


def test_greedy_equals_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    hf_config = transformers.LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.3, rope_theta=1e4,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(hf_config).eval()
    config = ModelConfig.from_hf(hf_config.to_dict())
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    names = {
        "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "q": "self_attn.q_proj",
        "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj",
        "up": "mlp.up_proj", "down": "mlp.down_proj",
    }  # fmt: skip
    layers = {
        ours: jnp.stack([jnp.asarray(state[f"model.layers.{i}.{theirs}.weight"].T) for i in range(config.L)])
        for ours, theirs in names.items()
    }
    params = {
        "embed": jnp.asarray(state["model.embed_tokens.weight"]),
        "layers": layers,
        "final_norm": jnp.asarray(state["model.norm.weight"]),
        "head": jnp.asarray(state["lm_head.weight"].T),
    }

    class Everything(Words):
        def __len__(self):
            return 90

    engine = Engine(LanguageModel(config, params, Everything(), (1,)), **SHAPE)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(2, 90, n).tolist() for n in (1, 5, 32, 33, 41, 48)]
    requests = [Request(str(i), tuple(p), Sampling(temperature=0, max_new=20)) for i, p in enumerate(prompts)]
    for prompt, result in zip(prompts, sorted_like(requests, engine), strict=True):
        with torch.no_grad():
            out = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
        assert result.tokens == tuple(out[0, len(prompt) :].tolist())


# --- determinism ------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_neighbours_order_or_window(lm, monkeypatch):
    requests = mixed(60, seed=3)
    engine = Engine(lm, **SHAPE)
    together = by_id(engine.generate(requests))
    shuffled = requests[:]
    random.Random(0).shuffle(shuffled)
    assert by_id(engine.generate(shuffled)) == together  # bit for bit, log-probs included
    for r in requests[:12]:
        assert list(engine.generate([r])) == [together[r.id]]
    monkeypatch.setattr(programs, "STEPS", 2)
    assert by_id(Engine(lm, **SHAPE).generate(shuffled[::-1])) == together


def test_other_slots_chunks_and_cache_lengths_agree(lm):
    """To float32 rounding: the programs are others."""
    requests = mixed(24, seed=12)
    wanted = by_id(Engine(lm, **SHAPE).generate(requests))
    for shape in ({"slots": 3, "cache_length": 96, "chunk": 8}, {"slots": 8, "cache_length": 128, "chunk": 48}):
        found = by_id(Engine(lm, **shape).generate(requests))
        for name, result in wanted.items():
            assert found[name].tokens == result.tokens
            np.testing.assert_allclose(found[name].logprobs, result.logprobs, atol=1e-4)


def test_slots_from_free_memory(lm, monkeypatch):
    assert Engine(lm, slots=0, cache_length=96).slots == kv.CPU_SLOTS
    device = type("Device", (), {"memory_stats": lambda self: {"bytes_limit": 9 * 2**20, "bytes_in_use": 2**20}})
    monkeypatch.setattr(kv.jax, "local_devices", lambda: [device()])
    slot = 2 * CONFIG.L * CONFIG.K * CONFIG.h * 128 * 4  # two blocks of 64 positions
    assert kv.free_slots(CONFIG, 128, jnp.float32, None) == int(0.75 * 8 * 2**20) // slot
    assert Engine(lm, slots=0, cache_length=96).slots == int(0.75 * 8 * 2**20) // slot
    with pytest.raises(UserError, match="not one slot"):
        kv.free_slots(CONFIG, 10**6, jnp.float32, None)


def some_targets(*targets):
    whole = random_adapter(7)
    config = dataclasses.replace(whole.config, targets=targets)
    return lora.Adapter(config, {name: whole.weights[name] for name in targets})


@pytest.mark.parametrize("targets", [(), lora.TARGETS, ("v", "q"), ("up", "down")], ids=str)
def test_products_side_by_side(lm, targets):
    """Each part is what it is by itself, with its bias and its adapter."""
    adapter = some_targets(*targets) if targets else None
    x = jax.random.normal(jax.random.key(3), (5, 1, CONFIG.D))
    made = []
    for groups in ((), kv.TOGETHER):
        layer = kv.join(CONFIG, lm.params["layers"], None, groups)[1]
        layer |= {name: layer[name] + 0.5 for name in layer if name.endswith("bias")}
        own = kv.join_adapter(CONFIG, adapter, "float32", None, groups)[1] if adapter else None
        made.append([lora.linears(CONFIG, x, layer, names, own) for names in kv.TOGETHER])
    for apart, together in zip(*made, strict=True):
        for a, b in zip(apart, together, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_matrices_side_by_side_are_the_same_model(lm, monkeypatch):
    """As on accelerators; to float32 rounding."""
    lm = lm.replace(adapter=some_targets("k", "v", "up"))
    requests = mixed(24, seed=13)
    monkeypatch.setattr(kv, "groups", lambda: kv.TOGETHER)
    engine = Engine(lm, **SHAPE)
    assert {"q_k_v", "q_k_v_bias", "gate_up"} < engine._layers[0].keys()
    results = sorted_like(requests, engine)
    expected = teacher_forced(lm, [(r.tokens, result.tokens) for r, result in zip(requests, results, strict=True)])
    for result, logprobs in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.logprobs, logprobs, atol=1e-4)
    joined = lm.replace(params=lm.params | {"layers": engine._layers})
    assert Engine(joined, **SHAPE)._layers is engine._layers  # no second copy


def test_the_decode_kernel_in_the_engine(lm, monkeypatch):
    """Interpreted, in bfloat16: log-probs are the teacher-forced ones, whatever the neighbours."""
    config = dataclasses.replace(CONFIG, h=16)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), decoder.init(config, jax.random.key(0)))
    model = lm.replace(config=config, params=params)
    monkeypatch.setitem(attention._WITH_CACHE, "cudnn", "xla")  # the prefill's kernel, which needs a GPU
    monkeypatch.setattr(decode_kernel, "attend", functools.partial(decode_kernel.attend, interpret=True))
    engine = Engine(model, **SHAPE, attention="cudnn")
    requests = mixed(10, longest=32)
    results = by_id(engine.generate(requests))
    expected = teacher_forced(model, [(r.tokens, results[r.id].tokens) for r in requests])
    for r, logprobs in zip(requests, expected, strict=True):
        np.testing.assert_allclose(results[r.id].logprobs, logprobs, atol=0.25, err_msg=r.id)
    assert [next(engine.generate([r])) for r in requests[:4]] == [results[r.id] for r in requests[:4]]


def test_seeds_differ_and_repeat(lm):
    def texts(seeds):
        requests = [Request(str(i), (7, 8, 9), Sampling(seed=s, max_new=8)) for i, s in enumerate(seeds)]
        return [r.tokens for r in sorted_like(requests, Engine(lm, **SHAPE))]

    first, again, high, other = texts([1, 1, 1 + 2**32, 2])
    assert first == again
    assert len({first, high, other}) == 3


def test_programs_compile_once(lm):
    watched = (programs.prefill_layer, programs.copy, programs.start, programs.decode)
    config = dataclasses.replace(CONFIG, init_std=0.24)  # a model of its own: other tests share the programs
    fresh = lm.replace(config=config)

    def compiled():
        return [program._cache_size() for program in watched]

    before = compiled()
    engine = Engine(fresh, **SHAPE)
    requests = mixed(1000, seed=1, longest=90)
    requests[::10] = [dataclasses.replace(r, tokens=(*r.tokens, 9)) for r in requests[1::10]]  # blocks are copied
    assert sum(1 for _ in engine.generate(requests)) == 1000
    assert engine.stats.reused_tokens
    other = Engine(fresh.replace(params=decoder.init(CONFIG, jax.random.key(5))), **SHAPE)
    assert sum(1 for _ in other.generate(mixed(50, seed=2, longest=90, top_logprobs=3))) == 50
    # Chunks of 8 tokens reach 64 positions, or all 96.
    size = [after - start for after, start in zip(compiled(), before, strict=True)]
    assert (size[0], size[3]) == (2, 1)
    assert size[1] <= 1  # other models share these two
    assert size[2] <= 1
    for seed in (20, 30):
        engine.set_adapter("a", random_adapter(seed))
        requests = [dataclasses.replace(r, adapter="a") for r in mixed(30, longest=90)]
        assert sum(1 for _ in engine.generate(requests)) == 30
    assert [after - start for after, start in zip(compiled(), before, strict=True)] == [4, *size[1:3], 2]


@pytest.fixture(scope="module")
def lowered(lm):
    """(An engine of 64 slots of 1,024 positions in float32, which a CPU does not widen; its programs, lowered.)"""
    engine = Engine(lm.replace(config=dataclasses.replace(CONFIG, max_position=1024)), slots=64, cache_length=1024)
    N, x_RxCxD = np.zeros(8, np.int32), np.zeros((8, engine.chunk, CONFIG.D), np.float32)
    return engine, {
        "decode": programs.decode.lower(
            engine.config, "xla", engine._vocabulary, None, engine._layers, engine._top, None,
            engine._caches, engine._state, np.ones(64, bool), np.int32(8), engine._eos_E,
        ),
        "copy": programs.copy.lower(engine.chunk, None, engine._caches, N, N, N),
        "prefill": programs.prefill_layer.lower(
            engine.config, "xla", 512, None, engine._layers[0], None, x_RxCxD, engine._caches[0], N, N
        ),
    }  # fmt: skip


def test_programs_need_little_beside_the_cache(lowered):
    engine, made = lowered
    needs = {name: program.compile().memory_analysis() for name, program in made.items()}
    cache = sum(x.nbytes for x in jax.tree.leaves(engine._caches))
    for name in ("decode", "copy"):
        assert needs[name].alias_size_in_bytes >= cache  # donated: no second cache comes out
        assert needs[name].temp_size_in_bytes < 0.2 * cache
    layer = cache / CONFIG.L
    assert needs["prefill"].alias_size_in_bytes >= layer
    gathered = layer * 8 / 64 * 512 / 1024
    scores = 8 * CONFIG.H * engine.chunk * 512 * 4
    assert needs["prefill"].temp_size_in_bytes < 3 * gathered + 4 * scores


def test_places_that_are_written_are_said_to_be_unique(lowered):
    """A GPU that must repeat its bits writes others one after the other: prefill of the 8B shape was a third slower."""
    _, made = lowered
    for name, program in made.items():
        scatters = re.findall(r"stablehlo\.scatter.*?unique_indices = (\w+)", program.as_text(), re.DOTALL)
        assert scatters, name
        assert set(scatters) == {"true"}, name


def test_places_that_are_written_are_unique(lm, monkeypatch):
    own = {name: getattr(programs, name) for name in ("prefill_layer", "copy")}
    calls = []

    def watched(name, *arguments):
        calls.append(name)
        places = list(zip(*arguments[-2:], strict=True))
        assert len(set(places)) == len(places)
        return own[name](*arguments)

    for name in own:
        monkeypatch.setattr(programs, name, functools.partial(watched, name))
    requests = mixed(40, seed=1, longest=90)
    requests[::10] = [dataclasses.replace(r, tokens=(*r.tokens, 9)) for r in requests[1::10]]  # blocks are copied
    assert sum(1 for _ in Engine(lm, **SHAPE).generate(requests)) == 40
    assert set(calls) == set(own)


# --- adapters ---------------------------------------------------------------------------------------------


def test_one_engine_serves_base_and_adapters(lm, tuned):
    other = random_adapter(40)
    engine = Engine(tuned, **SHAPE)
    engine.set_adapter("base", None)
    engine.set_adapter("other", other)
    requests = mixed(45, seed=5)
    requests = [dataclasses.replace(r, adapter=[None, "base", "other"][i % 3]) for i, r in enumerate(requests)]
    results = by_id(engine.generate(requests))
    for i, model in enumerate((tuned, lm, lm.replace(adapter=other))):
        alone = [dataclasses.replace(r, adapter=None) for r in requests[i::3]]
        assert by_id(Engine(model, **SHAPE).generate(alone)) == {r.id: results[r.id] for r in alone}


def test_swapping_an_adapter_leaves_rows_in_flight_alone(lm):
    first, second = random_adapter(50), random_adapter(60)
    request = Request("x", (9, 8, 7), Sampling(seed=4, max_new=20), adapter="a")
    engine = Engine(lm.replace(), **SHAPE)
    engine.set_adapter("a", first)
    expected = next(engine.generate([request]))

    async def swap():
        running = asyncio.ensure_future(engine.submit(request))
        await asyncio.sleep(0)
        engine.set_adapter("a", second)
        return await asyncio.gather(running, engine.submit(request))

    old, new = asyncio.run(swap())
    assert old == expected
    assert new.tokens != expected.tokens


def test_unknown_adapter(lm):
    with pytest.raises(UserError, match="no adapter named 'missing'"):
        Engine(lm, **SHAPE).generate([Request("x", (7,), Sampling(), adapter="missing")])


# --- ends -------------------------------------------------------------------------------------------------


def test_end_token_is_counted_but_not_shown(lm):
    requests = [Request(str(i), (10 + i % 40,), Sampling(seed=i, max_new=60)) for i in range(40)]
    ended = [r for r in Engine(lm, **SHAPE).generate(requests) if r.stop_reason == "eos"]
    assert ended
    for r in ended:
        assert r.tokens[-1] in (EOS, 5)
        assert not set(r.tokens[:-1]) & {EOS, 5}
        assert r.text == " ".join(f"w{t}" for t in r.tokens[:-1])
        assert len(r.logprobs) == len(r.tokens)


def test_length_is_bounded_by_max_new_and_by_the_cache(lm):
    engine = Engine(lm.replace(eos_ids=NO_EOS), **SHAPE)
    short, full = sorted_like(
        [
            Request("short", (7,) * 10, Sampling(max_new=5)),
            Request("full", (7,) * 86, Sampling(max_new=50)),
        ],
        engine,
    )
    assert (len(short.tokens), short.stop_reason) == (5, "length")
    assert (len(full.tokens), full.stop_reason) == (10, "length")
    expected = teacher_forced(lm, [((7,) * 86, full.tokens)])[0]  # the last position of the cache too
    np.testing.assert_allclose(full.logprobs, expected, atol=1e-4)


def test_stop_strings_may_straddle_tokens(lm):
    engine = Engine(lm.replace(eos_ids=NO_EOS), **SHAPE)
    base = Sampling(seed=11, max_new=30)
    plain = next(engine.generate([Request("plain", (20, 21), base)]))
    words = plain.text.split(" ")
    for at in (0, 3, 8, 14, 22):  # in the first token, inside windows and across their borders
        stop = f"{words[at]} {words[at + 1][:1]}"
        cut = plain.text.find(stop)
        result = next(engine.generate([Request("s", (20, 21), dataclasses.replace(base, stop=("zz", stop)))]))
        used = len(plain.text[: cut + len(stop)].split(" "))
        assert result.stop_reason == "stop"
        assert result.text == plain.text[:cut]
        assert result.tokens == plain.tokens[:used]
        assert result.logprobs == plain.logprobs[:used]


def test_a_special_token_as_a_stop_string_ends_the_row(lm):
    """It is hidden in the text, but stops are matched with it."""
    engine = Engine(lm.replace(eos_ids=NO_EOS), **SHAPE)
    settings = [Sampling(seed=i, max_new=60) for i in range(24)]

    def drawn(**more):
        asked = [Request(str(i), (10 + i,), dataclasses.replace(s, **more)) for i, s in enumerate(settings)]
        return by_id(engine.generate(asked))

    plain, stopped = drawn(), drawn(stop=("zz", "<end>"))
    hit = [name for name, r in plain.items() if EOS in r.tokens]
    assert len(hit) > 5
    for name, result in stopped.items():
        whole = plain[name].tokens
        used = whole.index(EOS) + 1 if name in hit else len(whole)
        assert result.tokens == whole[:used]
        assert result.stop_reason == ("stop" if name in hit else "length")
        assert result.text == " ".join(f"w{t}" for t in result.tokens if t != EOS)


def test_a_stopped_row_frees_its_slot(lm):
    engine = Engine(lm.replace(eos_ids=NO_EOS), **SHAPE)
    stopped = [Request("s", (20, 21), Sampling(seed=i, max_new=60, stop=("w",))) for i in range(SHAPE["slots"])]
    results = list(engine.generate([*stopped, Request("next", (9,), Sampling(seed=2, max_new=4))]))
    assert {(r.stop_reason, r.text) for r in results[:-1]} == {("stop", "")}
    assert results[-1].id == "next"
    assert engine.stats.steps < 20  # the stopped rows were not decoded to their end


def test_ids_beyond_the_tokenizer_are_never_drawn(lm):
    head = lm.params["head"].at[:, WORDS:].multiply(20.0)  # the model loves them
    model = lm.replace(params=lm.params | {"head": head}, eos_ids=NO_EOS)
    requests = mixed(30, max_new=10)
    results = by_id(Engine(model, **SHAPE).generate(requests))
    drawn = np.concatenate([r.tokens for r in results.values()])
    assert drawn.max() < WORDS
    expected = teacher_forced(model, [(r.tokens, results[r.id].tokens) for r in requests])
    for r, logprobs in zip(requests, expected, strict=True):  # of the model as it is, not renormalised
        np.testing.assert_allclose(results[r.id].logprobs, logprobs, atol=1e-3, rtol=1e-5)


def test_top_logprobs(lm):
    requests = mixed(12, seed=2)
    requests[::2] = [dataclasses.replace(r, sampling=dataclasses.replace(r.sampling, top_logprobs=4)) for r in requests[::2]]
    results = sorted_like(requests, Engine(lm, **SHAPE))
    expected = tables(lm, [(r.tokens, result.tokens) for r, result in zip(requests, results, strict=True)])
    for i, (result, table) in enumerate(zip(results, expected, strict=True)):
        if i % 2:
            assert result.top_logprobs == ()
            continue
        assert len(result.top_logprobs) == len(result.tokens)
        for pairs, row in zip(result.top_logprobs, table, strict=True):
            best = np.argsort(-row)[:4]
            assert [id_ for id_, _ in pairs] == best.tolist()
            np.testing.assert_allclose([value for _, value in pairs], row[best], atol=1e-4)


# --- errors -----------------------------------------------------------------------------------------------


def test_a_prompt_that_does_not_fit_is_named(lm):
    engine = Engine(lm, **SHAPE)
    with pytest.raises(UserError, match=r"'too long'.* 96 tokens .* 96"):
        engine.generate([Request("fits", (7,) * 95, Sampling()), Request("too long", (7,) * 96, Sampling())])
    assert len(next(engine.generate([Request("fits", (7,) * 95, Sampling())])).tokens) == 1


@pytest.mark.parametrize("tokens", [(), (-1,), (67,), (1.5,)])
def test_bad_tokens(lm, tokens):
    with pytest.raises(UserError, match="'bad'"):
        Engine(lm, **SHAPE).generate([Request("bad", tokens, Sampling())])


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1},
        {"min_p": 2.0}, {"seed": -1}, {"seed": 2**64}, {"top_logprobs": 21}, {"max_new": 0}, {"max_new": 1.5},
        {"stop": "end"}, {"stop": ("",)},
    ],
)  # fmt: skip
def test_bad_settings(field):
    with pytest.raises(UserError, match=next(iter(field))):
        Sampling(**field)


def test_a_broken_adapter_is_an_error_and_leaves_nothing_behind(lm):
    engine = Engine(lm, **SHAPE)
    requests = mixed(8)
    expected = by_id(engine.generate(requests))
    broken = random_adapter(3)
    broken.weights["v"]["B"] = broken.weights["v"]["B"].at[0, 0, 0].set(jnp.nan)
    engine.set_adapter("broken", broken)
    with pytest.raises(UserError, match="not finite .*'broken'"):
        list(engine.generate([dataclasses.replace(r, adapter="broken") for r in requests]))
    assert by_id(engine.generate(requests)) == expected


def test_leaving_generate_early_frees_the_slots(lm):
    engine = Engine(lm, **SHAPE)
    requests = mixed(30, max_new=20)
    results = engine.generate(requests)
    next(results)
    results.close()
    again = by_id(engine.generate(requests[:4]))
    assert again == {r.id: next(Engine(lm, **SHAPE).generate([r])) for r in requests[:4]}
    assert engine.stats.prefill_tokens < sum(len(r.tokens) for r in requests)


# --- submit -----------------------------------------------------------------------------------------------


def test_submit_equals_generate_over_two_turns(lm):
    first = mixed(300, seed=8, max_new=6)
    first = [dataclasses.replace(r, tokens=r.tokens[:40]) for r in first]

    def follow_up(request, result):
        prompt = (*request.tokens, *result.tokens, 10, 11)
        return Request(request.id + "b", prompt, dataclasses.replace(request.sampling, seed=77))

    engine = Engine(lm, **SHAPE)
    turn1 = by_id(engine.generate(first))
    second = [follow_up(r, turn1[r.id]) for r in first]
    expected = turn1 | by_id(engine.generate(second))

    async def conversation(request):
        one = await engine.submit(request)
        return one, await engine.submit(follow_up(request, one))

    async def everyone():
        return await asyncio.gather(*(conversation(r) for r in first))

    pairs = asyncio.run(everyone())
    assert by_id(result for pair in pairs for result in pair) == expected
    assert not any(engine._rows)


def test_submit_raises_in_the_caller_and_goes_on(lm, monkeypatch):
    engine = Engine(lm, **SHAPE)
    good = Request("good", (7,), Sampling(max_new=4))
    expected = next(engine.generate([good]))

    async def scenario():
        with pytest.raises(UserError, match="'long'"):
            await engine.submit(Request("long", (7,) * 140, Sampling()))
        monkeypatch.setattr(programs, "decode", None)
        failed = await asyncio.gather(*(engine.submit(good) for _ in range(5)), return_exceptions=True)
        assert [type(f) for f in failed] == [TypeError] * 5
        monkeypatch.undo()
        return await engine.submit(good)

    assert asyncio.run(scenario()) == expected


def test_cancelling_and_leaving_the_loop(lm):
    engine = Engine(lm.replace(eos_ids=NO_EOS), slots=2, cache_length=256)
    long = Request("long", (7,), Sampling(max_new=250))
    short = Request("short", (9,), Sampling(max_new=3))

    async def cancel():
        tasks = [asyncio.ensure_future(engine.submit(long)) for _ in range(4)]
        while not any(engine._rows):
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        return await asyncio.wait_for(engine.submit(short), 30)

    result = asyncio.run(cancel())
    assert len(result.tokens) == 3

    async def leave():
        asyncio.ensure_future(engine.submit(long))  # noqa: RUF006 - abandoned on purpose
        while not any(engine._rows):
            await asyncio.sleep(0.001)

    asyncio.run(leave())
    assert asyncio.run(asyncio.wait_for(engine.submit(short), 30)) == result
    assert engine.stats.steps < 400  # 750 if they had been decoded to their end


# --- scores -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["lm", "tuned"])
def test_score_is_the_teacher_forced_sum(which, request):
    model = request.getfixturevalue(which)
    engine = Engine(model, slots=8, cache_length=104, chunk=8)
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, WORDS, 30).tolist()
    continuations = [rng.integers(0, WORDS, n).tolist() for n in (1, 2, 3, 5, 34, 70, 1)]
    expected = [sum(row) for row in teacher_forced(model, [(prompt, c) for c in continuations])]
    scores = engine.score(prompt, [*continuations, []])
    np.testing.assert_allclose(scores, [*expected, 0.0], atol=1e-4, rtol=1e-6)
    assert engine.score(prompt, continuations[2:3]) == scores[2:3]  # whatever is scored beside it


def test_next_token_probs(tuned, lm):
    engine = Engine(tuned, **SHAPE)
    engine.set_adapter("base", None)
    prompt = [9, 8, 7, 6] * 10
    for name, model in ((None, tuned), ("base", lm)):
        row = np.exp(tables(model, [(prompt, [0])])[0][0])
        probs = engine.next_token_probs(prompt, [4, 66, 4], adapter=name)
        np.testing.assert_allclose(probs, row[[4, 66, 4]], atol=1e-6)


def test_scores_name_what_is_wrong(lm):
    engine = Engine(lm, **SHAPE)
    with pytest.raises(UserError, match="score: 97 tokens .* cache_length of 96"):
        engine.score([7] * 88, [[1] * 10])
    with pytest.raises(UserError, match="non-empty"):
        engine.score([], [[1]])
    with pytest.raises(UserError, match="67"):
        engine.next_token_probs([1], [67])


def test_stats(lm):
    engine = Engine(lm, **SHAPE)
    requests = mixed(20)
    results = list(engine.generate(requests))
    assert engine.stats.requests == 20
    assert engine.stats.tokens == sum(len(r.tokens) for r in results)
    assert engine.stats.prefill_tokens == sum(len(r.tokens) - 1 for r in requests)  # the last token is decode's
    assert engine.stats.row_steps == engine.stats.tokens
    assert 0 < engine.stats.occupied <= 1
