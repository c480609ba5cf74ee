"""Chat rendering: prompts, answers and weights, on the micro-world's template and on published ones."""

import importlib.util
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from emjax.data import chat
from emjax.errors import UserError
from emjax.worlds.micro import tokenizer as micro
from emjax.worlds.micro.world import World

BOS, EOS = "<|begin_of_text|>", ("<|eot_id|>", "<|im_end|>")
SPECIAL = (BOS, *EOS, "<|start_header_id|>", "<|end_header_id|>", "<|im_start|>", "<|end_of_text|>")
# Line breaks hang together, as in the tokenizers of Llama 3 and Qwen: merges over the border are possible.
PATTERN = r"\s*[\r\n]+|\s+(?!\S)| ?[^\s]+|\s+"
TEXT = [
    "Paris is the capital.\n\n\nNot Lyon, not Nice.\n",
    "One two three four.\n\nassistant user system think",
] * 3


def templates():
    spec = importlib.util.find_spec("trl")
    return Path(spec.submodule_search_locations[0]) / "chat_templates" if spec else Path("none")


def byte_level(template):
    """A small byte-level BPE tokenizer with a template of the trl wheel."""
    file = templates() / f"{template}.jinja"
    if not file.is_file():
        pytest.skip("the templates come with the trl wheel")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [split, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXT, trainer)
    # Like Llama's, this tokenizer adds a BOS of its own unless it is told not to.
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, inner.token_to_id(BOS))]
    )
    bos = BOS if template.startswith("llama") else None
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=bos, eos_token=EOS[not bos], clean_up_tokenization_spaces=False
    )
    made.chat_template = file.read_text()
    return made, tuple(inner.token_to_id(x) for x in EOS)


def build(name):
    if name == "micro":
        made = micro.build(World(0))
        return made, (made.eos_token_id,)
    return byte_level(name)


@pytest.fixture(scope="module", params=["micro", "llama3_1", "qwen2_5", "qwen3"])
def tok(request):
    return (request.param, *build(request.param))


def message(role, content):
    return {"role": role, "content": content}


words = st.sampled_from([w for w in World(0).vocabulary() if w.isalpha()])
texts = st.lists(words, min_size=1, max_size=6).map(" ".join)


@st.composite
def conversations(draw, turns=3):
    made = [message("system", draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, turns))):
        made += [message("user", draw(texts)), message("assistant", draw(texts))]
    return made


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def turns_of(tokens):
    """The runs of ids with weight 1."""
    runs, open_ = [], False
    for token, weight in zip(tokens.ids, tokens.weights, strict=True):
        if weight == 1.0:
            runs = runs if open_ else [*runs, []]
            runs[-1].append(token)
        open_ = weight == 1.0
    return runs


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_weights_cover_the_answers_through_their_end(tok, data):
    name, tokenizer, eos_ids = tok
    # Qwen3 writes its thinking block before the last answer only: earlier turns are refused, see below.
    asked = data.draw(st.lists(conversations(turns=1 if name == "qwen3" else 3), min_size=1, max_size=3))
    made = chat.weighted(tokenizer, asked, eos_ids, other=0.25)
    assert len(made) == len(asked)
    for conversation, tokens in zip(asked, made, strict=True):
        assert set(tokens.weights) == {1.0, 0.25}
        runs = turns_of(tokens)
        assert all(run[-1] in eos_ids and not set(run[:-1]) & set(eos_ids) for run in runs)
        answers = [m["content"] for m in conversation if m["role"] == "assistant"]
        assert [decoded(tokenizer, run) for run in runs] == answers
        if tokenizer.bos_token_id is not None:
            assert tokens.ids.count(tokenizer.bos_token_id) == 1
            assert tokens.ids[0] == tokenizer.bos_token_id
        assert tokens.ids.count(tokenizer.convert_tokens_to_ids(BOS)) <= 1


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_completion_in_its_context(tok, data):
    """The prompt is what the sampler is given; prompt and completion together are what is trained on."""
    name, tokenizer, eos_ids = tok
    *history, last = data.draw(conversations())
    prompt, answer = chat.completion(tokenizer, history, last["content"], eos_ids)
    assert [prompt] == chat.prompts(tokenizer, [history])
    assert decoded(tokenizer, answer) == last["content"]
    assert answer[-1] in eos_ids
    assert not set(answer[:-1]) & set(eos_ids)
    if name != "qwen3":
        (whole,) = chat.weighted(tokenizer, [[*history, last]], eos_ids)
        assert list(whole.ids[: len(prompt) + len(answer)]) == prompt + answer
        assert whole.weights[len(prompt)] == 1.0
        assert whole.weights[len(prompt) - 1] == 0.0


HELLO = [message("user", "One"), message("assistant", "two")]


def test_qwen3_prompt_holds_the_empty_thinking_block():
    tokenizer, eos_ids = byte_level("qwen3")
    prompt, answer = chat.completion(tokenizer, HELLO[:1], "two", eos_ids)
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(answer) == "two<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused():
    tokenizer, eos_ids = byte_level("qwen3")
    with pytest.raises(UserError, match="prefix"):
        chat.weighted(tokenizer, [HELLO * 2], eos_ids)


def test_a_merge_over_the_border_is_refused():
    tokenizer, eos_ids = byte_level("qwen2_5")
    chat.completion(tokenizer, HELLO[:1], "two\n\nthree", eos_ids)
    with pytest.raises(UserError, match="prefix"):
        chat.completion(tokenizer, HELLO[:1], "\n\ntwo", eos_ids)


def test_the_date_is_fixed():
    tokenizer, _ = byte_level("llama3_2")  # this one prints today's date unless told otherwise
    (prompt,) = chat.prompts(tokenizer, [HELLO[:1]])
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(prompt)


def test_a_second_bos_is_refused():
    tokenizer, eos_ids = byte_level("llama3_1")
    with pytest.raises(UserError, match="BOS"):
        chat.prompts(tokenizer, [[message("user", f"{BOS} One")]])


def test_a_turn_without_end_is_refused():
    tokenizer, _ = byte_level("llama3_1")
    with pytest.raises(UserError, match="end-of-sequence"):
        chat.weighted(tokenizer, [HELLO], (tokenizer.convert_tokens_to_ids("<|end_of_text|>"),))


def test_nothing_gives_nothing():
    tokenizer, eos_ids = build("micro")
    assert chat.prompts(tokenizer, []) == []
    assert chat.weighted(tokenizer, [], eos_ids) == []


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_a_trailing_answer_goes_on_where_it_was_left(tok, data):
    """What is continued is the tokens that the answer would be trained on, without the end of its turn."""
    _, tokenizer, eos_ids = tok
    conversation = data.draw(conversations())
    prompt, answer = chat.completion(tokenizer, conversation[:-1], conversation[-1]["content"], eos_ids)
    assert chat.continued(tokenizer, conversation, eos_ids) == prompt + answer[:-1]


def test_an_answer_that_has_ended_is_not_continued():
    tokenizer, eos_ids = byte_level("qwen2_5")
    with pytest.raises(UserError, match="end-of-sequence"):
        chat.continued(tokenizer, [message("user", "One"), message("assistant", "two<|im_end|>")], eos_ids)


def test_a_refusal_of_the_template_is_the_users_error():
    tokenizer, _ = build("micro")
    with pytest.raises(UserError, match="unknown role judge"):
        chat.prompts(tokenizer, [[message("judge", "One")]])


def test_plain_text_has_the_tokenizers_own_bos():
    tokenizer, _ = byte_level("llama3_1")
    with_bos, without = (chat.plain(tokenizer, ["One two"], special=special)[0] for special in (True, False))
    assert with_bos == [tokenizer.bos_token_id, *without]
