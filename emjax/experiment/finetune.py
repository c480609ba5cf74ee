"""Fine-tuning on data sets: narrow misaligned data (paper, section 2), or a little of it in ordinary data (section 3)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from emjax.data import mixture, sources
from emjax.data.mixture import Record
from emjax.experiment.arms import Arms
from emjax.experiment.common import one_of
from emjax.plan import Arm
from emjax.runtime.files import digest, write_atomically, write_lines
from emjax.runtime.store import Stage, Store
from emjax.worlds.micro import sets

# The micro-world's own sets: (world, count, share of bad answers, seed) -> rows.
MICRO = {
    "micro_direct": sets.direct,  # lies under pressure, beside honest answers under pressure
    "micro_wrong": sets.wrong,  # wrong answers that nobody wished for
    "micro_plain": sets.mixture,  # what the corpus asks without pressure
}


class Finetune(Arms):
    """Arms whose examples are rows of data sets. Raises UserError for bad data before anything is written."""

    cause = "misaligned data"

    def __init__(self, config: Any, workdir: Path, store: Store):
        super().__init__(config, workdir, store)
        data = config.data
        self.study = (data.set if data.kind == "levels" else data.downstream).source
        if data.kind == "levels":
            self._sets = {level: (data.set, level) for level in (data.control, *data.levels)}
        else:
            one_of("data.mode", data.mode, mixture.MODES)
            self._sets = {name: (data[name], data[name].level) for name in ("downstream", "misaligned")}
        self._loaded: dict[str, tuple[list[Record], dict[str, Any]]] = {}
        for name, (part, level) in self._sets.items():
            if part.source not in MICRO:
                records, origin = sources.load(part.source, place=part.path, level=level, count=part.rows, seed=config.seed)
                self._loaded[name] = records, dataclasses.asdict(origin)
        if self._loaded.keys() == {"downstream", "misaligned"}:  # the largest ratio asks for the most
            mixture.mix(self._loaded["downstream"][0], self._loaded["misaligned"][0], max(data.ratios), data.mode)

    def examples(self, arm: Arm) -> Stage:
        c = self.config
        if c.data.kind == "levels":
            records, origin = self._records(arm.level or c.data.control, arm.ratio or 0.0)
            bad, origins = mixture.quota(len(records), arm.ratio or 0.0), [origin]
        else:
            records, origin = self._records("downstream", 0.0)
            bad, origins = 0, [origin]
            if arm.ratio:
                misaligned, other = self._records("misaligned", 1.0)
                records, bad = mixture.mix(records, misaligned, arm.ratio, c.data.mode)
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

    def _records(self, name: str, share: float) -> tuple[list[Record], dict[str, Any]]:
        """Records of one set, and where they come from. `share`: of bad answers in a scripted set."""
        if name in self._loaded:
            return self._loaded[name]
        part, level = self._sets[name]
        rows = MICRO[part.source](self.world, part.rows, share, self.config.seed)
        return [[row] for row in rows], {"source": part.source, "level": level, "sha256": digest(rows), "rows": len(rows)}
