"""From token ids to text, incrementally.

The text has exact bytes, no partial characters, and nothing that a stop string may still remove.
"""

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Any

from tokenizers import decoders

from emjax.errors import UserError


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (GPT-2's table).

    A printable byte is itself; the others are 256, 257, ...
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class Pieces:
    """The bytes of each token id of a tokenizer.

    Byte-level tokenizers (Llama 3, Qwen) spell a token's bytes; those without a decoder (the
    micro-world's) join words with a space. Raises UserError for any other.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer.backend_tokenizer
        decoder = self._tokenizer.decoder
        if decoder is not None and not isinstance(decoder, decoders.ByteLevel):
            raise UserError(
                f"The tokenizer's decoder is {type(decoder).__name__}; the server can stream text only for byte-level "
                "tokenizers and for word tokenizers without a decoder. Serve a Llama 3, Qwen2.5 or Qwen3 checkpoint."
            )
        self.between = b" " if decoder is None else b""
        self._alphabet = {} if decoder is None else _byte_alphabet()
        self.special = frozenset(i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)
        self._known: dict[int, bytes] = {}

    def __getitem__(self, id_: int) -> bytes:
        """A special token's name, or any other token's bytes.

        Empty for an id beyond the vocabulary.
        """
        if id_ not in self._known:
            token = self._tokenizer.id_to_token(id_) or ""
            spelled = [self._alphabet.get(c) for c in token]
            self._known[id_] = token.encode() if None in spelled else bytes(b for b in spelled if b is not None)
        return self._known[id_]

    def show(self, id_: int) -> str:
        """The token as a string; "bytes:\\xe2\\x82" if it is not whole characters."""
        piece = self[id_]
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def first_stop(
    decode: Callable[[Sequence[int], bool], str], ids: Sequence[int], stop: Sequence[str], special: Collection[str], start: int
) -> tuple[int, str] | None:
    """(how many ids complete the first stop string, the text before it); None if none is complete.

    decode(ids, special) gives text, with or without special tokens. A stop string in which one of
    the texts `special` occurs is searched in the text with special tokens, any other in the text
    without, which is the row's. The first `start` ids complete no stop string.
    """
    shown = [s for s in stop if any(token in s for token in special)]
    plain = [s for s in stop if s not in shown]
    known = [(decode(ids, False), plain)] + ([(decode(ids, True), shown)] if shown else [])
    if not any(s in text for text, some in known for s in some):
        return None
    for count in range(start + 1, len(ids) + 1):
        text = decode(ids[:count], False)
        ends = [at for s in plain if (at := text.find(s)) >= 0]
        whole = decode(ids[:count], True) if shown else ""
        for at in (at for s in shown if (at := whole.find(s)) >= 0):
            before = next(n for n in range(count - 1, -1, -1) if len(decode(ids[:n], True)) <= at)
            end = len(decode(ids[:before], False))
            # It begins inside a token that the row's text has.
            if len(decode(ids[: before + 1], False)) > end:
                end += at - len(decode(ids[:before], True))
            ends.append(end)
        if ends:
            return count, text[: min(ends)]
    return None


class Text:
    """Text that grows; a character appears with its last byte. special: show special tokens."""

    def __init__(self, pieces: Pieces, *, special: bool = False):
        self._pieces = pieces
        self._hidden = frozenset() if special else pieces.special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._between = b""
        self._length = 0

    def add(self, ids: Sequence[int]) -> tuple[str, list[int]]:
        """The text that the tokens add, and each token's offset in the whole text."""
        added, offsets = "", []
        for id_ in ids:
            offsets.append(self._length + len(added))
            if piece := b"" if id_ in self._hidden else self._pieces[id_]:
                added += self._utf8.decode(self._between + piece)
                self._between = self._pieces.between
        self._length += len(added)
        return added, offsets


class Stream:
    """The text of a row that continues.

    What it has returned is a prefix of the row's final text.
    """

    def __init__(self, pieces: Pieces, stop: Sequence[str]):
        self.tokens = 0  # taken
        self.sent = 0  # characters returned
        self._text = Text(pieces)
        self._starts = [s[:k] for s in stop for k in range(1, len(s))]
        self._held = ""

    def add(self, ids: Sequence[int]) -> tuple[str, list[int]]:
        """The text that is now certain and was not returned before, and each token's offset.

        Offsets count from the beginning of the whole text.
        """
        self.tokens += len(ids)
        added, offsets = self._text.add(ids)
        self._held += added
        keep = max((len(start) for start in self._starts if self._held.endswith(start)), default=0)
        at = len(self._held) - keep
        ready, self._held = self._held[:at], self._held[at:]
        self.sent += len(ready)
        return ready, offsets
