"""Ratings from token probabilities and from text: by hand, at the edges, and against each other."""

import asyncio
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emjax import models
from emjax.api import Reply
from emjax.config import RatingConfig, SelectConfig, VetoScale, names
from emjax.data import chat
from emjax.errors import UserError
from emjax.interact import players, ratings
from emjax.interact.ratings import Scale
from emjax.sampling.partner import EngineChat

TEN = Scale(1, 10)


def reply(*alternatives, text="8", state="ok"):
    top = [{"token": token, "logprob": math.log(p)} for token, p in alternatives]
    return Reply(text, state, logprobs=[{"token": text, "logprob": 0.0, "top_logprobs": top}])


def test_the_expectation_by_hand():
    # 7 twice (0.2 + 0.1), 8 at 0.4, 10 at 0.1. " The", "11", "0" and "07" are not on the scale.
    given_ = reply(("7", 0.2), (" 7", 0.1), ("8", 0.4), ("10", 0.1), (" The", 0.1), ("11", 0.03), ("0", 0.02), ("07", 0.01))
    rating = ratings.from_logprobs(given_, TEN, 0.01)
    assert rating.state == "ok"
    assert rating.value == pytest.approx((7 * 0.3 + 8 * 0.4 + 10 * 0.1) / 0.8)
    assert rating.mass == pytest.approx(0.8)


def test_no_mass_no_logprobs_and_failures_are_states():
    assert ratings.from_logprobs(reply(("good", 0.9), ("8", 0.005)), TEN, 0.01).state == "unparsed"
    assert ratings.from_logprobs(Reply("8", "ok"), TEN, 0.01).state == "unparsed"
    for state in ("refusal", "empty", "http_error", "timeout"):
        for read in (
            ratings.from_logprobs(reply(("8", 1.0), state=state), TEN, 0.01),
            ratings.from_text(Reply("8", state), TEN),
        ):
            assert (read.value, read.state) == (None, state)
    assert ratings.from_logprobs(Reply("", "http_error", error="status 400"), TEN, 0.01).error == "status 400"


def test_an_answer_that_was_cut_has_its_first_token():
    assert ratings.from_logprobs(reply(("8", 1.0), state="length"), TEN, 0.01).value == 8
    assert ratings.from_text(Reply("8", "length"), TEN).state == "length"


@pytest.mark.parametrize(
    ("first", "second", "scale", "spelt"),
    [("1", "0", TEN, "10"), (" 1", "0", TEN, "10"), ("8", "5", Scale(0, 100, "veto"), "85"), ("8", "5", TEN, ""),
     ("1", " 0", TEN, ""), ("8", "/", TEN, ""), ("8", "", TEN, "")],
)  # fmt: skip
def test_an_endpoint_that_spells_a_number_in_several_tokens_is_an_error(first, second, scale, spelt):
    """Read as 1, a 10 would be the worst of all ratings."""
    given_ = reply((first.strip(), 0.9), ("2", 0.1), text=first)
    given_.logprobs.append({"token": second, "logprob": 0.0, "top_logprobs": []})
    if not spelt:
        assert ratings.from_logprobs(given_, scale, 0.01).state == "ok"
        return
    with pytest.raises(
        UserError, match=rf"config.interact.{scale.field}: the endpoint spells {spelt} in several tokens.*'text'"
    ):
        ratings.from_logprobs(given_, scale, 0.01)


@given(st.dictionaries(st.integers(1, 10), st.floats(1e-6, 1.0), min_size=1))
def test_the_expectation_lies_on_the_scale_and_forgets_the_total(found):
    rating = ratings.expected(found, 0.0)
    assert min(found) - 1e-9 <= rating.value <= max(found) + 1e-9
    half = ratings.expected({value: p / 2 for value, p in found.items()}, 0.0)
    assert half.value == pytest.approx(rating.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8), (" 8. ", 8), ("**8**", 8), ("8/10", 8), ("8 out of 10", 8), ("7.5", 7.5), ("Rating: 9", 9),
        ("I had 3 doubts. My rating is: 6", 6), ("Score: 2\nScore: 4", 4), ("satisfaction = **10**", 10),
        ("11", None), ("0", None), ("-3", None), ("8/5", None), ("", None), ("very", None), ("between 6 and 8", None),
        ("Rating: 12", None), ("8 9", None),
    ],
)  # fmt: skip
def test_text(text, value):
    rating = ratings.from_text(Reply(text, "ok"), TEN)
    assert (rating.value, rating.state) == (value, "unparsed" if value is None else "ok")


def test_scales():
    for section in (RatingConfig, VetoScale):
        with pytest.raises(UserError, match="low is 5 and high 5"):
            section(low=5, high=5)
    assert list(Scale(0, 5).values) == [0, 1, 2, 3, 4, 5]


def test_normalised_scores_have_mean_0_and_spread_1_in_each_group():
    pool = [{"user_type": kind, "scenario": "s", "score": score} for kind, score in
            [("benign", 8.0), ("benign", 9.0), ("benign", 10.0), ("biased", 1.0), ("biased", 3.0)]]  # fmt: skip
    found = ratings.normalised(pool, "user_type")
    assert found[:3] == pytest.approx([-1.2247449, 0, 1.2247449])
    assert found[3:] == pytest.approx([-1, 1])
    assert ratings.normalised(pool, "none") == [8, 9, 10, 1, 3]
    assert ratings.normalised([pool[0]] * 2, "scenario") == [0, 0]
    with pytest.raises(UserError, match="^normalise is 'zodiac'"):
        SelectConfig(normalise="zodiac")
    for how in names.NORMALISE:
        assert len(ratings.normalised(pool, how)) == len(pool)


def asked(engine_chat, messages, readout, scale=TEN):
    how = {"temperature": 0.0, "max_tokens": 8}
    return players.ask(players.Player(engine_chat, how), messages, scale, RatingConfig(readout=readout))


def test_the_engines_expectation_is_that_of_the_full_softmax(micro):
    """It agrees with greedy decoding's text where the model knows its answer: sums from 1 to 10."""
    lm, engine = micro
    partner = EngineChat(engine, lm.tokenizer)
    sums = [(x, y) for x in range(10) for y in range(10) if 1 <= x + y <= 10][::2]
    questions = [[{"role": "user", "content": f"what is {x} plus {y} ?"}] for x, y in sums]

    async def both():
        return await asyncio.gather(*(asked(partner, q, how) for how in ("logprobs", "text") for q in questions))

    found = asyncio.run(both())
    expected, written = found[: len(sums)], found[len(sums) :]
    (tokens,) = chat.prompts(lm.tokenizer, [questions[3]])
    p = np.asarray(jax.nn.softmax(models.logits(lm, np.array([tokens], np.int32))[0, -1]))
    ids = [lm.tokenizer.convert_tokens_to_ids(str(value)) for value in TEN.values]
    by_hand = sum(value * p[i] for value, i in zip(TEN.values, ids, strict=True)) / sum(p[i] for i in ids)
    assert expected[3].value == pytest.approx(by_hand, abs=1e-4)
    assert expected[3].mass == pytest.approx(sum(p[i] for i in ids), abs=1e-4)
    # The model writes digits and a full stop, "7 .", which from_text reads as a number alone.
    agree = [e.state == w.state == "ok" and abs(e.value - w.value) < 0.5 for e, w in zip(expected, written, strict=True)]
    print(f"log-probs and text agree within half a point on {sum(agree)} of {len(agree)}")
    assert sum(agree) >= 0.9 * len(agree)


class Spelt:
    """A tokenizer that spells the given words as it is told, as Qwen's spells 10 by its digits."""

    def __init__(self, tokenizer, ids):
        self._tokenizer, self._ids = tokenizer, ids

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, texts, **how):
        if isinstance(texts, list) and texts[0] in self._ids:
            return {"input_ids": [self._ids[text.strip()] for text in texts]}
        return self._tokenizer(texts, **how)


def test_a_word_of_several_tokens_has_the_product_of_their_probabilities(micro):
    """And what goes on to 10 is not a 1: the words' probabilities are those of a whole."""
    lm, engine = micro
    question = [{"role": "user", "content": "what is the colour of the lamp ?"}]  # an answer whose tokens are not certain
    (tokens,) = chat.prompts(lm.tokenizer, [question])

    def softmax(said):
        return np.asarray(jax.nn.softmax(models.logits(lm, np.array([[*tokens, *said]], np.int32))[0, -1]))

    first = softmax([])
    one, two = (int(i) for i in np.argsort(-first)[:2])
    zero = int(softmax([one]).argmax())
    last = int(softmax([one, zero]).argmax())
    ids = {"1": [one], "10": [one, zero], "100": [one, zero, last], "2": [two]}
    found = asyncio.run(EngineChat(engine, Spelt(lm.tokenizer, ids)).next_word(question, [*ids]))
    p, q, r = first[one], softmax([one])[zero], softmax([one, zero])[last]
    assert p * (1 - q) > 0.1
    assert p * q * (1 - r) > 0.01
    expected = {"1": p * (1 - q), "10": p * q * (1 - r), "100": p * q * r, "2": first[two]}
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_scale_that_cannot_be_spelt_is_refused(micro):
    lm, engine = micro
    with pytest.raises(UserError, match=r"config.interact.rating: this tokenizer cannot spell '19'.*'text'"):
        asyncio.run(asked(EngineChat(engine, lm.tokenizer), [{"role": "user", "content": "what ?"}], "logprobs", Scale(1, 20)))


def test_a_prompt_that_is_too_long_is_a_state(micro):
    lm, engine = micro
    partner = EngineChat(engine, lm.tokenizer)
    long = [{"role": "user", "content": "lamp " * 600}]
    for readout in ("logprobs", "text"):
        assert asyncio.run(asked(partner, long, readout)).state == "too_long"
