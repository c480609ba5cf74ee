"""Which slot holds which prefilled block of a prompt, so that a prompt that starts alike need not be computed again.

A block is `chunk` positions of the cache on the absolute grid. Its name is a hash of all token ids up to its end and of
the adapter, so blocks of one name hold the same bits, whoever made them. Only prefill makes blocks: what a row has
generated gets a name when it is prefilled as part of a later prompt.
"""

import hashlib

import numpy as np


def names(adapter: int, tokens: np.ndarray, chunk: int) -> list[bytes]:
    """One name a block; the last block may be shorter than `chunk`."""
    found, name = [], adapter.to_bytes(8, "little")
    for start in range(0, len(tokens), chunk):
        name = hashlib.blake2b(name + tokens[start : start + chunk].astype("<i4").tobytes(), digest_size=16).digest()
        found.append(name)
    return found


class Blocks:
    """The leading blocks that every slot holds. Freed slots keep theirs until a new row takes the slot."""

    def __init__(self, slots: int):
        self._held: list[list[bytes]] = [[] for _ in range(slots)]
        self._slots: dict[bytes, dict[int, None]] = {}  # by name; a dict as an ordered set

    def holder(self, name: bytes) -> int | None:
        return next(iter(self._slots.get(name, ())), None)

    def choose(self, free: dict[int, None], blocks: list[bytes]) -> int:
        """The free slot for a new row: one that holds most of its blocks, of several the first, the longest free."""
        for name in reversed(blocks):
            if name in self._slots:
                return next((slot for slot in free if slot in self._slots[name]), next(iter(free)))
        return next(iter(free))

    def take(self, slot: int, blocks: list[bytes]) -> int:
        """A row of these blocks takes the slot: all that it does not begin with is forgotten. How many remain."""
        held = self._held[slot]
        same = next((i for i, (a, b) in enumerate(zip(held, blocks, strict=False)) if a != b), min(len(held), len(blocks)))
        for name in held[same:]:
            del self._slots[name][slot]
            if not self._slots[name]:
                del self._slots[name]
        del held[same:]
        return same

    def add(self, slot: int, index: int, name: bytes) -> None:
        """The slot's block `index` is made (or made again)."""
        if index == len(self._held[slot]):
            self._held[slot].append(name)
            self._slots.setdefault(name, {})[slot] = None
