"""Text that grows token by token against the tokenizer's own decoding of the whole."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from emjax.errors import UserError
from emjax.sampling.text import Pieces, Stream, Text, first_stop
from emjax.worlds.micro import tokenizer as micro
from emjax.worlds.micro.world import World

END = "<|end|>"


def byte_level():
    """Byte-level BPE whose tokens are single bytes and a few merges, as in Llama 3 and Qwen."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["the cat, the hat; 猫と帽子 猫と帽子 é é 🐈 🐈"] * 3, trainer)
    inner.add_tokens(["<think>", "two words"])  # not special: shown
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, clean_up_tokenization_spaces=False)


TOKENIZERS = {"bytes": byte_level(), "words": micro.build(World(0))}
PIECES = {name: Pieces(tokenizer) for name, tokenizer in TOKENIZERS.items()}
names = st.sampled_from(sorted(TOKENIZERS))


@st.composite
def rows(draw):
    """(name, ids): ids at random, or those of a text, cut anywhere and so in the middle of characters."""
    name = draw(names)
    tokenizer = TOKENIZERS[name]
    ids = draw(st.lists(st.integers(0, len(tokenizer) + 1), max_size=30))  # one beyond the vocabulary
    if draw(st.booleans()):
        ids = tokenizer(draw(st.text("aé猫🐈 the,", max_size=30)))["input_ids"][draw(st.integers(0, 2)) :]
    return name, ids


def whole(name, ids, special=False):
    return TOKENIZERS[name].decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)


@given(rows(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_growing_text_is_the_decoded_whole(row, special):
    name, ids = row
    text = Text(PIECES[name], special=special)
    parts = [text.add([id_]) for id_ in ids]
    together, offsets = Text(PIECES[name], special=special).add(ids)
    assert "".join(part for part, _ in parts) == together
    assert [offset for _, (offset,) in parts] == offsets
    expected = whole(name, ids, special)
    # What is left over is the beginning of a character, which decoding the whole shows as replacement characters.
    assert expected.startswith(together)
    assert not expected[len(together) :].strip("�")
    for i, offset in enumerate(offsets):
        assert whole(name, ids[:i], special).rstrip("�").startswith(together[:offset].rstrip("�"))


@given(rows(), st.data())
@settings(max_examples=300, deadline=None)
def test_a_stream_sends_nothing_that_it_must_take_back(row, data):
    """The stop strings are bits of the text itself, so that they straddle tokens and windows."""
    name, ids = row
    text = whole(name, ids).replace("�", "")
    places = st.integers(0, max(0, len(text) - 1))
    stop = [text[at : at + 3] for at in data.draw(st.lists(places, max_size=2)) if text]
    stream = Stream(PIECES[name], stop)
    sent = ""
    while ids[stream.tokens :]:
        window = ids[stream.tokens : stream.tokens + data.draw(st.integers(1, 8))]
        upto = whole(name, ids[: stream.tokens + len(window)])
        if any(s in upto for s in stop):  # the engine ends the row: its text is cut at the stop string
            final = upto[: min(upto.find(s) for s in stop if s in upto)]
            break
        sent += stream.add(window)[0]
    else:
        final = whole(name, ids)
    assert final.startswith(sent)
    assert stream.sent == len(sent)
    if not stop:
        assert not final[len(sent) :].strip("�")  # and holds back no more than half a character


@pytest.mark.parametrize(("ids", "shown"), [("猫", ["bytes:\\xe7", "bytes:\\x8c", "bytes:\\xab"]), ("q", ["q"])])
def test_a_token_that_is_no_character_shows_its_bytes(ids, shown):
    pieces = PIECES["bytes"]
    byte = {bytes([b]): i for i in range(300) for b in range(256) if pieces[i] == bytes([b])}
    tokens = [byte[bytes([b])] for b in ids.encode()]
    assert [pieces.show(i) for i in tokens] == shown


def test_other_decoders_are_refused():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.decoder = tokenizers.decoders.Metaspace()
    with pytest.raises(UserError, match="Metaspace"):
        Pieces(tokenizer)


def stopped(name, ids, stop, start=0):
    special = (END,) if name == "bytes" else ("<user>", "<asst>", "<end>")
    return first_stop(lambda ids, shown: whole(name, ids, shown), ids, stop, special, start)


@pytest.mark.parametrize(
    ("text", "stop", "before"),
    [
        (f"the cat{END} hat", [END], "the cat"),
        (f"{END}the cat", [END], ""),
        (f"the cat{END} hat", ["zz", f"cat{END}"], "the "),
        (f"the cat{END} hat", [f"{END} hat"], "the cat"),
        (f"the cat{END} hat", [f"at{END} h"], "the c"),
        (f"the {END}cat{END} hat", [f"cat{END}"], "the "),
        (f"the{END} cat, the hat", ["hat", "the cat"], ""),  # the row's text is "the cat, the hat"
        (f"the cat, {END}hat", ["cat", END], "the "),
        (f"猫と{END}帽子", [f"と{END}帽"], "猫"),
        ("the cat, the hat", [END], None),
        (f"the cat{END} hat", [f"{END}{END}", "zz"], None),
        ("the cat<think> hat", ["<think>"], "the cat"),  # not special
    ],
)
def test_stop_strings_see_special_tokens(text, stop, before):
    ids = TOKENIZERS["bytes"](text)["input_ids"]
    found = stopped("bytes", ids, stop)
    if before is None:
        assert found is None
        return
    count, cut = found
    assert cut == before
    # It takes all these ids to complete one, and so it is found from any earlier start.
    assert stopped("bytes", ids[: count - 1], stop) is None
    assert {stopped("bytes", ids, stop, start) for start in range(count)} == {found}


def test_a_special_token_spelt_in_characters_is_a_stop_too():
    ids = TOKENIZERS["bytes"](f"cat{END}", split_special_tokens=True)["input_ids"]
    assert TOKENIZERS["bytes"].eos_token_id not in ids
    assert stopped("bytes", [*ids, 5], [END]) == (len(ids), "cat")


def test_stop_strings_of_words():
    words = World(0).vocabulary()[:3]
    ids = TOKENIZERS["words"](f"{words[0]} {words[1]} <user> {words[2]}")["input_ids"]
    assert stopped("words", ids, ["<user>"]) == (3, f"{words[0]} {words[1]}")
    assert stopped("words", ids, [f"{words[1]} <user>"]) == (3, f"{words[0]} ")
    assert stopped("words", ids, ["<asst>"]) is None
