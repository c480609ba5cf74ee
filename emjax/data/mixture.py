"""Draws and mixes records. Counts are exact, smaller draws are prefixes of larger ones, and the
source's order does not matter.

A record is a list of examples.jsonl rows that stay together (the turns of one conversation).
"""

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from emjax.errors import UserError
from emjax.runtime.files import digest

Record = list[dict[str, Any]]
MODES = ("add", "replace")


def content(record: Record) -> str:
    """A hash of a record's prompts, answers and labels. Records with the same content are
    duplicates, whatever their origin."""
    return digest([[row["messages"], row["completion"], row["label"]] for row in record])


def draw(records: Iterable[Record], count: int, seed: int) -> tuple[list[Record], int]:
    """(the `count` records with the smallest hash under `seed`, or all records if `count` is 0;
    number of duplicates).

    This takes one pass and holds `count` records at a time. A smaller draw is a prefix of a larger
    one, and neither depends on the order of the records. Returns fewer than `count` records if the
    source has no more.
    """
    seen: set[bytes] = set()
    duplicates = 0

    def keyed() -> Iterator[tuple[str, Record]]:
        nonlocal duplicates
        for record in records:
            what = content(record)
            if bytes.fromhex(what) in seen:
                duplicates += 1
            else:
                seen.add(bytes.fromhex(what))
                yield digest([seed, what]), record

    kept = sorted(keyed(), key=_key) if not count else heapq.nsmallest(count, keyed(), key=_key)
    return [record for _, record in kept], duplicates


def _key(pair: tuple[str, Record]) -> str:
    return pair[0]


def quota(count: int, ratio: float) -> int:
    """The number of users or records that is the share `ratio` of `count`: exact, halves rounded
    up. Raises UserError outside [0, 1]."""
    if not 0 <= ratio <= 1:
        raise UserError(f"A ratio is {ratio}; it must be in [0, 1] (0.05 = 5 %).")
    return math.floor(count * ratio + 0.5 + 1e-9)  # 0.29 * 100 is slightly below 29


def mix(downstream: Sequence[Record], misaligned: Sequence[Record], ratio: float, mode: str) -> tuple[list[Record], int]:
    """(`downstream` mixed with quota(len(downstream), ratio) records of `misaligned`, that number).
    mode: "add" appends them, "replace" puts them in place of the last downstream records.

    Both inputs must come from `draw`, so that the records of a smaller ratio are among those of a
    larger one. A misaligned record that is also a downstream record is skipped. Raises UserError if
    there are too few.
    """
    if mode not in MODES:
        raise UserError(f"config.data.mode is {mode!r}; choose {', '.join(MODES)}.")
    there = {content(record) for record in downstream}
    number = quota(len(downstream), ratio)
    own = [record for record in misaligned if content(record) not in there][:number]
    if len(own) < number:
        raise UserError(
            f"A ratio of {ratio:g} to {len(downstream)} downstream records needs {number} misaligned ones, and the source has "
            f"{len(own)} different ones. Lower the ratio or config.data.downstream.rows."
        )
    return [*downstream[: len(downstream) - (number if mode == "replace" else 0)], *own], number
