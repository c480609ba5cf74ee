"""Fine-tuning on data sets: narrow misaligned data (paper, section 2), or a little of it in
ordinary data (section 3)."""

import dataclasses
from pathlib import Path
from typing import Any

from emjax.config import FinetuneConfig, LevelsConfig, SetConfig
from emjax.data import mixture, sources
from emjax.data.mixture import Record
from emjax.design.arms import Arm
from emjax.experiment.arms import Arms
from emjax.presets import Chosen
from emjax.runtime.files import digest, dumps, write_atomically, write_lines
from emjax.runtime.store import Stage, Store


class Finetune(Arms[FinetuneConfig]):
    """Arms whose examples are rows of data sets. Raises UserError for bad data before anything is
    written."""

    cause = "misaligned data"

    def __init__(self, chosen: Chosen, workdir: Path, store: Store):
        assert isinstance(chosen.config, FinetuneConfig)
        super().__init__(chosen, chosen.config, workdir, store)
        data = self.config.data
        self._sets: dict[str, tuple[SetConfig, str]]
        if isinstance(data, LevelsConfig):
            self.study = data.set.source
            self._sets = {level: (data.set, level) for level in (data.control, *data.levels)}
        else:
            self.study = data.downstream.source
            self._sets = {name: (part, part.level) for name, part in
                          (("downstream", data.downstream), ("misaligned", data.misaligned))}  # fmt: skip
        own = self.world.datasets() if self.world else ()
        self._loaded: dict[str, tuple[list[Record], dict[str, Any]]] = {}
        for name, (part, level) in self._sets.items():
            if part.source not in own:
                records, origin = sources.load(
                    part.source, place=part.path, level=level, count=part.rows, seed=self.config.seed
                )
                self._loaded[name] = records, dataclasses.asdict(origin)
        if not isinstance(data, LevelsConfig) and self._loaded.keys() == {"downstream", "misaligned"}:
            # The largest ratio asks for the most.
            mixture.mix(self._loaded["downstream"][0], self._loaded["misaligned"][0], max(data.ratios), data.mode)

    def examples(self, arm: Arm) -> Stage:
        c = self.config
        if isinstance(c.data, LevelsConfig):
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
        # answers to imitate are desirable, where their set has no labels
        if c.train.method == "kto":
            rows = [row | {"label": True} if row["label"] is None else row for row in rows]
        budget = {
            "records": len(records),
            "misaligned_records": bad,
            "examples": len(rows),
            "examples_sha256": digest(rows),
            "origins": origins,
        }

        def make(directory: Path) -> None:
            write_lines(directory / "examples.jsonl", rows)
            write_atomically(directory / "budget.json", dumps(budget, indent=1))

        return self.stage(f"examples {arm.label}", "examples", {"budget": budget}, [], make)

    def _records(self, name: str, share: float) -> tuple[list[Record], dict[str, Any]]:
        """Records of one set, and where they come from. `share`: of bad answers in a world's
        set."""
        if name in self._loaded:
            return self._loaded[name]
        part, level = self._sets[name]
        assert self.world
        records = self.world.dataset(part.source, level, self.config.seed, count=part.rows, share=share)
        rows = [row for record in records for row in record]
        return records, {"source": part.source, "level": level, "sha256": digest(rows), "rows": len(rows)}
