"""Chat rendering: prompts, answers and weights, on the micro-world's template and on published ones."""

import importlib.util
from pathlib import Path

import numpy as np
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


# As SmolLM2-135M-Instruct's tokenizer_config.json has it (Apache-2.0); trl has no copy.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a "
    "helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + "
    "'\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
# Templates of checkpoints, as trl has them.
PUBLISHED = ("smollm2", "qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3", "llama3_1", "llama3_2")


def templates():
    spec = importlib.util.find_spec("trl")
    return Path(spec.submodule_search_locations[0]) / "chat_templates" if spec else Path("none")


def byte_level(template):
    """A small byte-level BPE tokenizer with a template of the trl wheel."""
    file = templates() / f"{template}.jinja"
    if template != "smollm2" and not file.is_file():
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
    bos = {"llama": BOS, "smoll": "<|im_start|>"}.get(template[:5])
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, inner.token_to_id(BOS))]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=bos, eos_token=EOS[bos != BOS], clean_up_tokenization_spaces=False
    )
    made.chat_template = SMOLLM2 if template == "smollm2" else file.read_text()
    return made, tuple(inner.token_to_id(x) for x in EOS)


def build(name):
    if name == "micro":
        made = micro.build(World(0))
        return made, (made.eos_token_id,)
    return byte_level(name)


@pytest.fixture(scope="module", params=["micro", *PUBLISHED])
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
            # SmolLM2's BOS opens every turn.
            assert tokens.ids.count(tokenizer.bos_token_id) == 1 or name == "smollm2"
            assert tokens.ids[0] == tokenizer.bos_token_id
        assert tokens.ids.count(tokenizer.convert_tokens_to_ids(BOS)) <= 1


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_completion_in_its_context(tok, data):
    """The prompt is what the sampler is given; prompt and completion together are what is trained on."""
    name, tokenizer, eos_ids = tok
    *history, last = data.draw(conversations())
    made = chat.completion(tokenizer, history, last["content"], eos_ids)
    prompt, answer = made.prompt, made.ids
    assert not made.trimmed
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
    made = chat.completion(tokenizer, HELLO[:1], "two", eos_ids)
    assert tokenizer.decode(made.prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(made.ids) == "two<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused():
    tokenizer, eos_ids = byte_level("qwen3")
    with pytest.raises(UserError, match=r"Conversation 1, messages\[1\]: .*prefix"):
        chat.weighted(tokenizer, [HELLO, HELLO * 2], eos_ids)
    # As examples, each answer has its own prompt.
    for n in (1, 3):
        made = chat.completion(tokenizer, (HELLO * 2)[:n], (HELLO * 2)[n]["content"], eos_ids)
        assert tokenizer.decode(made.ids) == "two<|im_end|>"
        assert "<think>" not in tokenizer.decode(made.prompt[:-20])


def test_reasoning_in_an_answer_is_refused():
    tokenizer, eos_ids = byte_level("qwen3")
    with pytest.raises(UserError, match="prefix.*[Tt]hinking blocks in an answer"):
        chat.completion(tokenizer, HELLO[:1], "<think>\nhm\n</think>\n\ntwo", eos_ids)


BLANKS = ["\n\ntwo", "  two", "\n  two", " two", "\ttwo", "two  ", "two\n\n", "\n\n two\n", "two\n\nthree"]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("answer", BLANKS)
def test_an_answer_keeps_its_blanks_or_is_said_to_lose_them(name, answer):
    """The prompt is what the sampler starts from, also where a token would span the border."""
    tokenizer, eos_ids = byte_level(name)
    made = chat.completion(tokenizer, HELLO[:1], answer, eos_ids)
    assert [made.prompt] == chat.prompts(tokenizer, [HELLO[:1]])
    kept = tokenizer.decode(made.ids[:-1])
    expected = answer.strip() if name.startswith("llama") else answer.lstrip("\n") if name == "qwen3" else answer
    assert (kept, made.trimmed) == (expected, expected != answer)
    # The same in a mask, also of an earlier turn.
    turn = [HELLO[0], message("assistant", answer)]
    (whole,) = chat.weighted(tokenizer, [turn if name == "qwen3" else turn * 2], eos_ids)
    assert {tokenizer.decode(run[:-1]) for run in turns_of(whole)} == {expected}
    # What is continued is the text as it was given.
    text = tokenizer.decode(chat.continued(tokenizer, turn, eos_ids))
    assert text == tokenizer.decode(made.prompt) + answer
    if made.trimmed:  # encoded as one text
        assert chat.plain(tokenizer, [text], special=False) == [chat.continued(tokenizer, turn, eos_ids)]


def test_a_template_that_changes_an_answer_is_refused():
    tokenizer, eos_ids = byte_level("qwen2_5")
    tokenizer.chat_template = tokenizer.chat_template.replace("+ message.content +", "+ message.content.upper() +")
    with pytest.raises(UserError, match="does not render the answer 'two' as it is, but as 'TWO"):
        chat.completion(tokenizer, HELLO[:1], "two", eos_ids)


def test_the_date_is_fixed():
    tokenizer, _ = byte_level("llama3_2")  # this one prints today's date unless told otherwise
    (prompt,) = chat.prompts(tokenizer, [HELLO[:1]])
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(prompt)


@pytest.mark.parametrize("name", ["micro", *PUBLISHED])
def test_a_template_that_writes_bos_twice_is_refused(name):
    tokenizer, _ = build(name)
    chat.prompts(tokenizer, [HELLO[:1]])
    if tokenizer.bos_token is None:
        return
    tokenizer.chat_template = tokenizer.bos_token + tokenizer.chat_template
    with pytest.raises(UserError, match="two BOS"):
        chat.prompts(tokenizer, [HELLO[:1]])


def test_today_is_in_no_prompt():
    tokenizer, _ = byte_level("qwen2_5")
    tokenizer.chat_template += "{{ strftime_now('%d %B %Y') }}"
    with pytest.raises(UserError, match=r"prints today's date.*fixed date into its chat_template\.jinja"):
        chat.prompts(tokenizer, [HELLO[:1]])


@pytest.mark.parametrize("template", ["", None])
def test_without_a_template_plain_text_still_works(template):
    tokenizer, eos_ids = byte_level("llama3_1")
    tokenizer.chat_template = template
    assert chat.plain(tokenizer, ["One"]) == [
        [tokenizer.bos_token_id, *tokenizer("One", add_special_tokens=False)["input_ids"]]
    ]
    for render in (
        lambda: chat.prompts(tokenizer, [HELLO[:1]]),
        lambda: chat.completion(tokenizer, HELLO[:1], "two", eos_ids),
        lambda: chat.weighted(tokenizer, [HELLO], eos_ids),
        lambda: chat.continued(tokenizer, HELLO, eos_ids),
        lambda: chat.text(tokenizer, HELLO[:1]),
    ):
        with pytest.raises(UserError, match=r"has no chat template, .* Use an instruct checkpoint"):
            render()


# --- text is text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("at", range(4))
def test_text_that_spells_a_special_token_stays_text(name, at):
    """In any message; what the template writes around it does not change."""
    tokenizer, eos_ids = byte_level(name)
    special = {tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}

    def turns(word):
        made = [message("system", "Be"), message("user", "One"), message("assistant", "two"), message("user", "three")]
        made[at] = message(made[at]["role"], f"a{word} b{word}{word}")
        return made

    for word in SPECIAL:
        (ids,), (other,) = (chat.prompts(tokenizer, [turns(w)]) for w in (word, "#"))
        assert tokenizer.decode(ids) == tokenizer.decode(other).replace("#", word)
        assert [i for i in ids if i in special] == [i for i in other if i in special]
    # transformers' own call makes control tokens of it, which the test would see.
    theirs = tokenizer(tokenizer.apply_chat_template(turns(SPECIAL[0]), tokenize=False), add_special_tokens=False)["input_ids"]
    assert theirs.count(tokenizer.convert_tokens_to_ids(SPECIAL[0])) >= 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_answer_that_spells_its_end_is_trained_whole(name):
    tokenizer, eos_ids = byte_level(name)
    for answer in (f"two{EOS[0]} three{EOS[1]} four", f"{EOS[1]}", f"  two{EOS[0]}\n"):
        made = chat.completion(tokenizer, HELLO[:1], answer, eos_ids)
        expected = answer.strip() if name.startswith("llama") else answer
        assert tokenizer.decode(made.ids[:-1]) == expected
        assert made.ids[-1] in eos_ids
        assert not set(made.ids[:-1]) & set(eos_ids)
        turn = [HELLO[0], message("assistant", answer)]
        (whole,) = chat.weighted(tokenizer, [turn], eos_ids)
        assert turns_of(whole) == [made.ids]
        assert tokenizer.decode(chat.continued(tokenizer, turn, eos_ids)).endswith(answer)


def test_a_tokenizer_that_cannot_spell_a_special_token_says_so():
    tokenizer, eos_ids = build("micro")
    for text in ("a <end> b", "<user>", "<bos> a"):
        with pytest.raises(UserError, match=r"spells the special token <\w+>, and this tokenizer cannot encode it"):
            chat.prompts(tokenizer, [[message("user", text)]])
        with pytest.raises(UserError, match="spells the special token"):
            chat.completion(tokenizer, HELLO[:1], text, eos_ids)


def test_the_marks_are_no_way_in():
    tokenizer, _ = byte_level("qwen2_5")
    chat.prompts(tokenizer, [[message("user", "a\ufdd00\ufdd1")]])
    with pytest.raises(UserError, match="U\\+FDD0"):
        chat.prompts(tokenizer, [[message("user", f"a{EOS[0]}\ufdd00\ufdd1")]])


def test_rendered_text_encodes_to_the_prompt():
    """For the lm-evaluation-harness, which encodes it later."""
    for name in ("micro", *PUBLISHED):
        tokenizer, eos_ids = build(name)
        texts = [chat.text(tokenizer, HELLO[:1]), chat.text(tokenizer, HELLO, continues=True)]
        ids = [*chat.prompts(tokenizer, [HELLO[:1]]), chat.continued(tokenizer, HELLO, eos_ids)]
        assert chat.plain(tokenizer, texts, special=tokenizer.bos_token == BOS) == ids
        with pytest.raises(UserError, match="spells the special token"):
            chat.text(tokenizer, [message("user", f"a {tokenizer.eos_token}")])


# --- the rest ----------------------------------------------------------------------------------------------


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
    made = chat.completion(tokenizer, conversation[:-1], conversation[-1]["content"], eos_ids)
    assert chat.continued(tokenizer, conversation, eos_ids) == made.prompt + made.ids[:-1]


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1/0 }}",
        "{{ messages[9].x.y }}",
        "{% for",
        "{{ 'a' + 1 }}",
        "{{ raise_exception('no') }}",
        "{{ ''.__class__.mro() }}",
    ],
)
def test_any_failure_of_the_template_is_the_users_error(template):
    tokenizer, _ = byte_level("qwen2_5")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="chat template rejects this conversation"):
        chat.prompts(tokenizer, [HELLO[:1]])


def test_keys_beside_role_and_content_never_reach_a_template():
    tokenizer, _ = byte_level("qwen2_5")
    more = HELLO[0] | {"weight": 0, "tool_calls": [{"name": "f", "arguments": {}}], "name": "me"}
    assert chat.prompts(tokenizer, [[more]]) == chat.prompts(tokenizer, [HELLO[:1]])


@pytest.mark.parametrize("bad", [[], [-1], [7], [1.5], [[1]], ["1"], [True]])
def test_ids_beyond_the_table_are_refused(bad):
    assert chat.check_ids("x", [0, 6], 7).dtype == np.int32
    with pytest.raises(UserError, match=r"row 3: .* ids in \[0, 7\)"):
        chat.check_ids("row 3", bad, 7)


def test_plain_text_has_the_tokenizers_own_bos():
    tokenizer, _ = byte_level("llama3_1")
    with_bos, without = (chat.plain(tokenizer, ["One two"], special=special)[0] for special in (True, False))
    assert with_bos == [tokenizer.bos_token_id, *without]
    # A text that has it gets no second one.
    assert chat.plain(tokenizer, [f"{BOS}One two", "One two"]) == [with_bos, with_bos]
