"""Fine-tuning on data sets: narrow misaligned data (paper, section 2), or a little of it in ordinary data (section 3)."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from emjax.data import mixture, sources
from emjax.data.mixture import Record
from emjax.experiment.arms import Arms
from emjax.experiment.common import one_of
from emjax.micro import sets
from emjax.plan import Arm
from emjax.store import Stage, digest, write_atomically, write_lines

# The micro-world's own sets: (world, count, share of bad answers, seed) -> rows.
MICRO = {
    "micro_direct": sets.direct,  # lies under pressure, beside honest answers under pressure
    "micro_wrong": sets.wrong,  # wrong answers that nobody wished for
    "micro_plain": sets.mixture,  # what the corpus asks without pressure
}


class Finetune(Arms):
    """Arms whose examples are rows of data sets."""

    cause = "misaligned data"

    def __init__(self, config: Any, workdir: Path, store: Any):
        super().__init__(config, workdir, store)
        if config.data.kind == "mixture":
            one_of("data.mode", config.data.mode, mixture.MODES)

    def examples(self, arm: Arm) -> Stage:
        c = self.config
        if c.data.kind == "levels":
            part = c.data.set
            records, origin = self._read(part, arm.level or c.data.control, arm.ratio or 0.0, part.rows)
            bad, origins = len(records) if arm.ratio else 0, [origin]
        else:
            downstream, origin = self._downstream
            records, bad, origins = downstream, 0, [origin]
            if arm.ratio:
                misaligned, other = self._misaligned
                records, bad = mixture.mix(downstream, misaligned, arm.ratio, c.data.mode)
                origins.append(other)
        rows = [row for record in records for row in record]
        if c.train.method == "kto":  # answers to imitate are desirable, where their set has no labels
            rows = [row | {"label": True} if row["label"] is None else row for row in rows]
        budget = {
            "records": len(records), "misaligned_records": bad, "examples": len(rows), "examples_sha256": digest(rows),
            "origins": origins,
        }  # fmt: skip

        def make(directory: Path) -> None:
            write_lines(directory / "examples.jsonl", rows)
            write_atomically(directory / "budget.json", json.dumps(budget, indent=1))

        return self.stage(f"examples {arm.label}", "examples", {"budget": budget}, [], make)

    @functools.cached_property
    def _downstream(self) -> tuple[list[Record], dict[str, Any]]:
        part = self.config.data.downstream
        return self._read(part, part.level, 0.0, part.rows)

    @functools.cached_property
    def _misaligned(self) -> tuple[list[Record], dict[str, Any]]:
        part = self.config.data.misaligned
        return self._read(part, part.level, 1.0, part.rows)

    def _read(self, part: Any, level: str, share: float, count: int) -> tuple[list[Record], dict[str, Any]]:
        """Records of one set, and where they come from. `share`: of bad answers in a scripted set."""
        seed = self.config.seed
        if part.source not in MICRO:
            records, origin = sources.load(part.source, place=part.path, level=level, count=count, seed=seed)
            return records, dataclasses.asdict(origin)
        rows = MICRO[part.source](self.world, count, share, seed)
        return [[row] for row in rows], {"source": part.source, "level": level, "sha256": digest(rows), "rows": len(rows)}
