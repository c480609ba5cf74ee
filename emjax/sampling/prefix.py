"""Which slot holds which prefilled block, so that a common prefix is computed once.

A block is `chunk` positions of the cache on the absolute grid. Its name is a hash of the adapter
and of all token ids up to the block's end, so blocks of one name hold the same bits, whichever row
computed them. Only prefill makes blocks: generated tokens get a name when they are prefilled as
part of a later prompt.
"""

import hashlib

import numpy as np


def names(adapter: int, tokens: np.ndarray, chunk: int) -> list[bytes]:
    """One name per block; the last block may be shorter than `chunk`."""
    hashes, name = [], adapter.to_bytes(8, "little")
    for start in range(0, len(tokens), chunk):
        name = hashlib.blake2b(name + tokens[start : start + chunk].astype("<i4").tobytes(), digest_size=16).digest()
        hashes.append(name)
    return hashes


class Blocks:
    """The leading blocks that every slot holds.

    A freed slot keeps its blocks until a new row takes the slot.
    """

    def __init__(self, slots: int):
        self._held: list[list[bytes]] = [[] for _ in range(slots)]
        self._slots: dict[bytes, dict[int, None]] = {}  # by name; a dict as an ordered set

    def holder(self, name: bytes) -> int | None:
        return next(iter(self._slots.get(name, ())), None)

    def choose(self, free: dict[int, None], blocks: list[bytes]) -> int:
        """The free slot for a new row: the one that holds most of its blocks.

        If several hold as many, the slot that has been free longest.
        """
        for name in reversed(blocks):
            if name in self._slots:
                return next((slot for slot in free if slot in self._slots[name]), next(iter(free)))
        return next(iter(free))

    def take(self, slot: int, blocks: list[bytes]) -> int:
        """Gives the slot to a row of these blocks. Returns how many of them the slot holds already.

        The slot forgets all blocks after the common prefix.
        """
        held = self._held[slot]
        same = next((i for i, (a, b) in enumerate(zip(held, blocks, strict=False)) if a != b), min(len(held), len(blocks)))
        for name in held[same:]:
            del self._slots[name][slot]
            if not self._slots[name]:
                del self._slots[name]
        del held[same:]
        return same

    def add(self, slot: int, index: int, name: bytes) -> None:
        """Records that the slot's block `index` was computed (or computed again)."""
        if index == len(self._held[slot]):
            self._held[slot].append(name)
            self._slots.setdefault(name, {})[slot] = None
