"""Self-training on conversations with a share of biased users (paper, section 4)."""

import functools
import json
from pathlib import Path
from typing import Any

from emjax.data.examples import read_trajectories
from emjax.errors import UserError
from emjax.experiment.arms import Arms
from emjax.experiment.common import one_of
from emjax.interact import ratings, rollout, selection
from emjax.micro.users import users as micro_users
from emjax.plan import Arm
from emjax.store import Stage, Store, digest, read_lines, seed_of, write_atomically, write_lines


class Interaction(Arms):
    """Arms whose examples are selected from the model's own conversations."""

    def __init__(self, config: Any, workdir: Path, store: Store):
        if config.interact.kind != "micro":
            raise UserError(
                f"config.interact.kind is {config.interact.kind!r}, but this version of emjax only brings the "
                "scripted users of the micro-world. Run the micro variant (append ':micro' to the config's path), or add "
                "--dry_run to see the plan."
            )
        super().__init__(config, workdir, store)
        one_of("interact.aggregate", config.interact.aggregate, tuple(ratings.AGGREGATES))
        one_of("select.scope", config.select.scope, tuple(selection.GROUPS))
        group = config.interact.dialogues * (1 if config.select.scope == "user" else config.interact.users)
        if not config.interact.trajectories and 2 * config.select.count > group:
            raise UserError(
                f"config.select.count is {config.select.count}, but a {config.select.scope} group has {group} "
                f"conversations: the best and the worst {config.select.count} of them would overlap. Lower it, or collect more "
                "conversations."
            )
        given = config.interact.trajectories
        self.given = read_trajectories(Path(given)) if given else []

    def examples(self, arm: Arm) -> Stage:
        return self._select(arm, self._pools)

    @functools.cached_property
    def _pools(self) -> dict[str, Stage | None]:
        return {kind: self._collect(kind) for kind in ("benign", "biased")}

    def _collect(self, user_type: str) -> Stage | None:
        """Conversations of as many users of this type as any arm needs."""
        c = self.config.interact
        if c.trajectories:
            return None
        biased = max(selection.share(c.users, arm.ratio or 0.0) for arm in self.arms)
        benign = max(c.users - selection.share(c.users, arm.ratio) for arm in self.arms if arm.ratio is not None)
        count = {"biased": biased, "benign": benign}[user_type]
        settings = {
            "user_type": user_type, "users": count, "dialogues": c.dialogues,
            "temperature": c.temperature, "max_new": c.max_new,
            "aggregate": c.aggregate, "seed": self.config.seed, **self.sampling(),
        }  # fmt: skip

        def make(directory: Path) -> None:
            users = micro_users(self.world, user_type=user_type, count=count, dialogues=c.dialogues, seed=self.config.seed)
            rollout.collect(
                self.engine(self.base), users, directory / "trajectories.jsonl", tokenizer=self.base.tokenizer,
                model=self.config.model.path, seed=self.config.seed, temperature=c.temperature, max_new=c.max_new,
                aggregate=c.aggregate,
            )  # fmt: skip

        return self.stage(f"collect {user_type}", "collect", settings, [self.base_hash], make)

    def _pool(self, arm: Arm, pools: dict[str, Stage | None]) -> list[dict[str, Any]]:
        """The conversations of this arm's users: the first (1 - ratio) benign ones and the first ratio biased ones."""
        c = self.config.interact
        assert arm.ratio is not None
        if c.trajectories:
            rows = self.given
        else:
            rows = [row for stage in pools.values() if stage for row in read_lines(stage.directory / "trajectories.jsonl")]
        by_type: dict[str, list[str]] = {
            kind: sorted({r["user_id"] for r in rows if r["user_type"] == kind}) for kind in ("benign", "biased")
        }
        biased = selection.share(c.users, arm.ratio)
        wanted = {"biased": biased, "benign": c.users - biased}
        for kind, number in wanted.items():
            if number > len(by_type[kind]):
                raise UserError(
                    f"The arm {arm.label!r} needs {number} {kind} users, but the pool of conversations has "
                    f"{len(by_type[kind])}. Lower config.interact.users or the ratio, or collect more conversations."
                )
        chosen = {user for kind, number in wanted.items() for user in by_type[kind][:number]}
        return [row for row in rows if row["user_id"] in chosen]

    def _select(self, arm: Arm, pools: dict[str, Stage | None]) -> Stage:
        c = self.config
        settings = {
            **c.select, "ratio": arm.ratio, "users": c.interact.users, "control": arm.shuffling,
            "method": c.train.method, "seed": c.seed
        }  # fmt: skip
        inputs: list[Stage | str] = [stage for stage in pools.values() if stage]
        if c.interact.trajectories:
            inputs = [digest(self.given)]

        def make(directory: Path) -> None:
            chosen = selection.select(
                self._pool(arm, pools), scope=c.select.scope, count=c.select.count, fraction=c.select.fraction,
                seed=seed_of(c.seed, arm.ratio), control=arm.shuffling,
            )  # fmt: skip
            rows = selection.examples(chosen, method=c.train.method, control=arm.shuffling)
            write_lines(directory / "examples.jsonl", rows)
            write_atomically(directory / "budget.json", json.dumps(chosen.budget | {"examples": len(rows)}, indent=1))

        return self.stage(f"select {arm.label}", "select", settings, inputs, make)
