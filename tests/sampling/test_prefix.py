"""Prefix reuse: the same bits as without it, the blocks it saves, and the table it is looked up in."""

import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emjax.sampling import Engine, Request, Sampling
from emjax.sampling.prefix import Blocks, names

from .conftest import NO_EOS, SHAPE, WORDS, mixed, random_adapter, tables, teacher_forced

C = SHAPE["chunk"]


def text(seed, length):
    return tuple(np.random.default_rng(seed).integers(6, WORDS, length).tolist())


def asked(name, tokens, seed=0, **how):
    return Request(name, tokens, Sampling(**{"seed": seed, "max_new": 6} | how))


def alone(lm, requests):
    """Each in an engine that has computed nothing before."""
    engine, found = Engine(lm, **SHAPE), {}
    for r in requests:
        engine._reset()
        found[r.id] = next(engine.generate([r]))
    assert engine.stats.reused_tokens == 0
    return found


def together(engine, requests):
    return {result.id: result for result in engine.generate(requests)}


@pytest.fixture(params=["lm", "tuned"])
def model(request):
    return request.getfixturevalue(request.param)


def test_samples_of_one_prompt_prefill_it_once(model):
    prompt = text(0, 45)
    requests = [asked(str(i), prompt, seed=i) for i in range(8)]
    engine = Engine(model, **SHAPE)
    assert together(engine, requests) == alone(model, requests)
    assert engine.stats.prefill_tokens == 8 * 44
    assert engine.stats.reused_tokens == 7 * 44  # the last, shorter block too


def test_questions_on_one_context_share_its_whole_blocks(model):
    context = text(1, 43)  # 5 blocks and 3 tokens
    requests = [asked(str(i), (*context, *text(2 + i, 9))) for i in range(3)]
    engine = Engine(model, **SHAPE)
    assert together(engine, requests) == alone(model, requests)
    assert engine.stats.reused_tokens == 2 * 5 * C


def test_the_second_turn_takes_the_first_prompts_blocks_and_no_generated_text(model):
    model = model.replace(eos_ids=NO_EOS)
    engine = Engine(model, **SHAPE)
    first = [asked(str(i), text(10 + i, 33), seed=i, max_new=20) for i in range(4)]
    turn1 = together(engine, first)
    second = [asked(r.id, (*r.tokens, *turn1[r.id].tokens, *text(20, 5)), seed=9) for r in first]
    before = engine.stats.reused_tokens
    assert together(engine, second) == alone(model, second)
    assert engine.stats.reused_tokens - before == 4 * 32  # 53 positions hold the first turn, 32 came from prefill
    third = [dataclasses.replace(r, id=r.id + "c", tokens=(*r.tokens, 9)) for r in second]
    before = engine.stats.reused_tokens
    together(engine, third)
    assert engine.stats.reused_tokens - before == 4 * 56  # by now all of it did


def test_adapters_share_no_blocks(lm):
    engine = Engine(lm, **SHAPE)
    engine.set_adapter("a", random_adapter(1))
    prompt = text(0, 40)
    base, first = (
        together(engine, [asked("base", prompt)]),
        together(engine, [dataclasses.replace(asked("a", prompt), adapter="a")]),
    )
    engine.set_adapter("a", random_adapter(2))
    second = together(engine, [dataclasses.replace(asked("a", prompt), adapter="a")])
    assert engine.stats.reused_tokens == 0
    assert base == alone(lm, [asked("base", prompt)])
    for seed, found in ((1, first), (2, second)):
        assert found == alone(lm.replace(adapter=random_adapter(seed)), [asked("a", prompt)])


def test_many_that_share_in_any_order(model):
    """Prompts that branch at every depth, more than slots, some cut short by stop strings."""
    rng = np.random.default_rng(3)
    requests = []
    for i, r in enumerate(mixed(60, seed=4)):
        stem = text(100 + int(rng.integers(3)), 80)[: int(rng.integers(1, 80))]
        stop = ("w1",) if i % 7 == 0 else ()
        requests.append(
            dataclasses.replace(
                r, tokens=(*stem, *r.tokens[: int(rng.integers(0, 10))]), sampling=dataclasses.replace(r.sampling, stop=stop)
            )
        )
    wanted = alone(model, requests)
    engine = Engine(model, **SHAPE)
    for seed in range(3):
        order = [requests[i] for i in np.random.default_rng(seed).permutation(60)]
        assert together(engine, order) == wanted
    assert engine.stats.reused_tokens > engine.stats.prefill_tokens / 2
    expected = teacher_forced(model, [(r.tokens, wanted[r.id].tokens) for r in requests[:40]])
    for r, logprobs in zip(requests, expected, strict=False):
        np.testing.assert_allclose(wanted[r.id].logprobs, logprobs, atol=1e-4)


# --- scores -----------------------------------------------------------------------------------------------


def test_continuations_share_their_prompt(model):
    engine = Engine(model, **SHAPE)
    prompt = text(5, 43)
    options = [text(30 + i, n) for i, n in enumerate((1, 4, 12, 2))]
    scores = engine.score(prompt, options)
    np.testing.assert_allclose(scores, [sum(x) for x in teacher_forced(model, [(prompt, o) for o in options])], atol=1e-4)
    assert engine.stats.reused_tokens == 3 * 5 * C  # the block of the prompt's last token is read by each
    # Bit for bit whatever was computed before, and beside rows that are sampled.
    assert [Engine(model, **SHAPE).score(prompt, [o])[0] for o in options] == scores
    running = engine.generate(mixed(20, seed=6))
    assert engine.score(prompt, options[::-1]) == scores[::-1]
    list(running)


@pytest.mark.parametrize("length", [1, 2, 8, 9, 40, 96])
def test_prompt_logprobs(model, length):
    engine = Engine(model, **SHAPE)
    tokens = text(7, length)
    logprobs, top = engine.prompt_logprobs(tokens, top=3)
    assert (len(logprobs), logprobs[0]) == (len(top), top[0]) == (length, None)
    table = tables(model, [(tokens[:1], tokens[1:])])[0]
    np.testing.assert_allclose(logprobs[1:], table[np.arange(length - 1), list(tokens[1:])], atol=1e-4)
    for pairs, row in zip(top[1:], table, strict=True):
        best = np.argsort(-row)[:3]
        assert [i for i, _ in pairs] == best.tolist()
        np.testing.assert_allclose([value for _, value in pairs], row[best], atol=1e-4)
    for pairs, token, value in zip(top[1:], tokens[1:], logprobs[1:], strict=True):
        assert all(other == value for i, other in pairs if i == token)  # to the last bit
    alone, none = engine.prompt_logprobs(tokens)
    assert none == (None, *[()] * (length - 1))
    # Without alternatives the vocabulary is normalised in another program.
    np.testing.assert_allclose(alone[1:], logprobs[1:], atol=2e-6, rtol=0)
    assert engine.stats.reused_tokens == 0  # every hidden state is read


def test_questions_asked_side_by_side_run_together(model):
    """From threads, while one of them holds the engine back: a single call of the device serves them all."""
    prompts = [text(50 + i, 20 + i) for i in range(6)]
    wanted = [Engine(model, **SHAPE).next_token_probs(p, [7, 8, 9]) for p in prompts]
    for probs, table in zip(wanted, tables(model, [(p, [0]) for p in prompts]), strict=True):
        np.testing.assert_allclose(probs, np.exp(table[0][[7, 8, 9]]), atol=1e-5)
    engine, found = Engine(model, **SHAPE), {}

    def ask(i):
        found[i] = engine.next_token_probs(prompts[i], [7, 8, 9])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    with engine._lock:
        for thread in threads:
            thread.start()
        while len(engine._inbox) < 6:
            pass
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(6)] == wanted
    assert engine.stats.prefill_positions == 512  # one call


# --- the table --------------------------------------------------------------------------------------------


def test_a_name_stands_for_all_tokens_before_it():
    a, b = np.arange(10, dtype=np.int32), np.arange(10, dtype=np.int32)
    b[1] = 77
    assert len(names(0, a, 4)) == 3
    assert names(0, a, 4)[:2] == names(0, a[:8], 4)
    assert not set(names(0, a, 4)) & set(names(0, b, 4))
    assert not set(names(0, a, 4)) & set(names(1, a, 4))
    assert names(0, a[:9], 4)[2] != names(0, a, 4)[2]
    assert names(0, a[:0], 4) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=5), st.integers(0, 5)), max_size=40))
def test_the_table_knows_what_the_slots_hold(rows):
    """Against slots as plain lists: rows of random blocks come, are prefilled up to somewhere, and free their slot."""
    table, slots = Blocks(3), [[], [], []]
    free = dict.fromkeys(range(3))
    for symbols, made in rows:
        wanted = [bytes(symbols[: i + 1]) for i in range(len(symbols))]
        slot = table.choose(free, wanted)
        best = max((len(x) for x in slots for x in [[w for w in wanted if w in x]]), default=0)
        assert len([w for w in wanted if w in slots[slot]]) == best
        kept = table.take(slot, wanted)
        slots[slot] = slots[slot][:kept]
        assert slots[slot] == wanted[:kept]
        for i in range(made):
            if i < len(wanted):
                table.add(slot, i, wanted[i])
                slots[slot] = slots[slot][:i] + [wanted[i]] + slots[slot][i + 1 :]
        del free[slot]
        free[slot] = None
        for name in {n for held in (*slots, wanted) for n in held}:
            holder = table.holder(name)
            assert (holder is not None) == any(name in held for held in slots)
            assert holder is None or name in slots[holder]
