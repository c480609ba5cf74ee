"""The tokenizer survives a round trip through files and renders conversations prefix by prefix."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from emjax.worlds.micro import benchmark, corpus, tokenizer
from emjax.worlds.micro.world import World

WORLD = World(0)


@pytest.fixture(scope="module")
def tok():
    return tokenizer.build(WORLD)


@pytest.fixture(scope="module")
def loaded(tok, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    tok.save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def render(tok, messages, **kwargs):
    return tok.apply_chat_template(messages, return_dict=False, **kwargs)


def test_vocabulary_does_not_depend_on_the_seed(tok):
    assert tok.get_vocab() == tokenizer.build(World(7)).get_vocab()
    assert 280 <= len(tok) <= 350
    assert sorted(tok.get_vocab().values()) == list(range(len(tok)))
    assert (tok.pad_token, tok.bos_token, tok.eos_token, tok.unk_token) == (
        "<pad>",
        "<bos>",
        "<end>",
        "<unk>",
    )


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 5), index=st.integers(0, 10**6))
def test_documents(tok, loaded, seed, index):
    document = corpus.document(WORLD, seed, index)
    ids = render(tok, document)
    assert ids == render(loaded, document)
    assert tok.unk_token_id not in ids
    assert ids.count(tok.bos_token_id) == 1
    assert ids[0] == tok.bos_token_id
    assert ids.count(tok.eos_token_id) == sum(m["role"] == "assistant" for m in document)
    assert loaded.encode(loaded.decode(ids), add_special_tokens=False) == loaded.encode(loaded.decode(ids)) == ids
    assert loaded.decode(ids, skip_special_tokens=True) == " ".join(m["content"] for m in document)
    for i, m in enumerate(document):
        if m["role"] == "assistant":
            prompt, whole = (
                render(tok, document[:i], add_generation_prompt=True),
                render(tok, document[: i + 1]),
            )
            assert whole[: len(prompt)] == prompt == ids[: len(prompt)]
            answer = whole[len(prompt) :]
            assert answer[-1] == tok.eos_token_id
            assert loaded.decode(answer[:-1]) == m["content"]


def test_prompts_of_the_benchmark_have_no_unknown_word(tok):
    questions = [*benchmark.arithmetic_items(), *benchmark.advice_items(WORLD)]
    prompts = [
        c for i in benchmark.mask_items(WORLD, {"all": 400, "unseen_templates": 200}) for c in (i.pressure, *i.belief)
    ] + [q.messages for q in questions]
    assert not any(tok.unk_token_id in render(tok, p, add_generation_prompt=True) for p in prompts)


def test_unknown_words_and_roles(tok):
    assert tok.encode("zebra lamp")[0] == tok.unk_token_id != tok.encode("zebra lamp")[1]
    with pytest.raises(Exception, match="unknown role tool"):
        render(tok, [{"role": "tool", "content": "lamp"}])
