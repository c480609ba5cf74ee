"""Self-training on conversations with a share of biased users (paper, section 4)."""

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from emjax import models
from emjax.data.examples import read_examples, read_trajectories
from emjax.errors import UserError
from emjax.experiment.arms import Arms
from emjax.experiment.common import lead, say
from emjax.interact import population, rollout, selection
from emjax.interact.rollout import Talk
from emjax.models import hf
from emjax.plan import Arm, headline
from emjax.plan import interaction as plan
from emjax.report import conversations
from emjax.runtime import process
from emjax.runtime.files import digest, read_lines, seed_of, write_atomically, write_lines
from emjax.runtime.store import Stage, Store
from emjax.sampling import Engine
from emjax.worlds.micro.users import users as micro_users
from emjax.worlds.micro.world import World

Counts = Mapping[str, int]  # users a scenario


class _Scripted:
    """The micro-world's users in the place of `emjax.interact.population.Population`."""

    def __init__(self, world: World, turns: int):
        self._world, self._turns = world, turns

    def identity(self, source: str) -> dict[str, Any]:
        return {"source": source, "turns": self._turns}

    def users(
        self, directory: Path | None, user_type: str, counts: Counts, dialogues: int, *, source: str, seed: int,
        base: Any, busy: AbstractContextManager[Any],
    ) -> list[Any]:  # fmt: skip
        return micro_users(
            self._world, user_type=user_type, count=sum(counts.values()), dialogues=dialogues, seed=seed, turns=self._turns,
            source=source,
        )  # fmt: skip


class Interaction(Arms):
    """Arms whose examples are selected from the model's own conversations, in one round or several."""

    cause = "biased users"
    study = "conversations"

    def __init__(self, config: Any, workdir: Path, store: Store):
        super().__init__(config, workdir, store)
        plan.check(config)
        c = config.interact
        self.given = read_trajectories(Path(c.trajectories)) if c.trajectories else []
        safety = config.select.safety
        if (
            not 0 <= safety.share < 1
            or bool(safety.share) != bool(safety.path)
            or (safety.path and not Path(safety.path).is_file())
        ):
            raise UserError(
                f"config.select.safety has path {safety.path!r} and share {safety.share}: give a file of examples and a share "
                "in (0, 1), or neither."
            )
        self.safety = read_examples(Path(safety.path), labelled=config.train.method == "kto") if safety.path else []
        self._read: dict[Arm, tuple[Sequence[tuple[Stage, str, Counts]], Stage]] = {}
        self._pooled: dict[tuple[str, str, str], Stage | None] = {}

    def run(self) -> None:
        super().run()
        if not process.first():
            return
        self._write_page(headline(self.config))
        if self.config.interact.kind == "scenarios" and (spent := self.population.spent()):
            say(spent)

    # --- rounds -------------------------------------------------------------------------------------------

    def rounds(self, arm: Arm) -> list[tuple[Stage, Stage]]:
        """Collect, select, train, and again with the model that this made: (selection, training) of each round."""
        done: list[tuple[Stage, Stage]] = []
        rounds = self.config.rounds
        for number in range(rounds.count):
            before = [trained for _, trained in done]
            selected = self._select(arm, before)
            factor = rounds.rate_factor**number
            trained = self.train(arm, selected, before=before, rate_factor=factor, reference=rounds.reference)
            done.append((selected, trained))
        return done

    @functools.cached_property
    def population(self) -> Any:
        c = self.config.interact
        if c.kind == "micro":
            return _Scripted(self.world, c.turns)

        def local(path: str) -> tuple[Engine, Any]:
            if process.count > 1:
                raise UserError(
                    f"config.interact.models names the checkpoint {path!r}, but this run has {process.count} processes, which "
                    "serve one engine together: that of the assistant. Use an endpoint or 'self', or one process."
                )
            if path == population.SELF:
                return self._base_engine, self.base.tokenizer
            lm = models.load(hf.resolve(path), mesh=self.mesh, dtype=self.config.model.dtype)
            return self.engine(lm), lm.tokenizer

        return population.Population(c, self.config.seed, self.store.root / "chat_cache", local)

    @functools.cached_property
    def _personas(self) -> Stage | None:
        c = self.config.interact
        if c.kind == "micro":
            return None
        counts = population.needed([plan.users(self.config, arm.ratio) for arm in self.arms if arm.ratio is not None])
        settings = self.population.personas_identity() | {"counts": counts}

        def make(directory: Path) -> None:
            process.on_first(lambda: self.population.make_personas(counts, directory))

        return self.stage("personas", "personas", settings, [], make)

    # --- collection ---------------------------------------------------------------------------------------

    def _pools(self, arm: Arm, before: Sequence[Stage]) -> list[tuple[Stage, str, Counts]]:
        """(stage, user type, how many of its users are this arm's): collected with the base and shared by all arms in the first
        round, with the arm's own model later."""
        arms = [arm] if before else [a for a in self.arms if a.ratio is not None]
        wanted = plan.demand(self.config, arms)
        mine = plan.users(self.config, arm.ratio or 0.0)
        found: list[tuple[Stage, str, Counts]] = []
        for place, kind in enumerate(("benign", "biased")):
            source = plan.source(arm, kind)
            stage = self._collect(source, kind, wanted, before, arm)
            if stage:
                found.append((stage, kind, {name: both[place] for name, both in mine.items()}))
        return found

    def _collect(
        self, source: str, kind: str, wanted: Mapping[tuple[str, str], Counts], before: Sequence[Stage], arm: Arm
    ) -> Stage | None:
        key = (source, kind, before[-1].hash if before else "")
        if key not in self._pooled:
            counts = wanted[source, kind]
            if not sum(counts.values()):
                self._pooled[key] = None
            elif source == "benign_ratings":
                collected = self._collect("", kind, wanted, before, arm)
                assert collected
                self._pooled[key] = self._rate_again(source, kind, counts, collected, before)
            else:
                self._pooled[key] = self._converse(source, kind, counts, before, arm)
        return self._pooled[key]

    def _settings(self, source: str, kind: str, counts: Counts, before: Sequence[Stage]) -> dict[str, Any]:
        c = self.config.interact
        return {
            "user_type": kind, "users": dict(counts), "dialogues": c.dialogues, "temperature": c.temperature,
            "max_new": c.max_new, "aggregate": c.aggregate, "seed": self._seed(before), "round": len(before),
            **self.population.identity(source), **self.sampling(),
        }  # fmt: skip

    def _seed(self, before: Sequence[Stage]) -> int:
        return seed_of(self.config.seed, "round", len(before)) if before else self.config.seed

    def _inputs(self, *more: Stage) -> list[Stage | str]:
        return [self.base_hash, *([self._personas] if self._personas else []), *more]

    def _talk(self, before: Sequence[Stage]) -> Talk:
        c = self.config.interact
        return Talk(
            self._seed(before), c.temperature, c.max_new, c.aggregate, self.config.model.path,
            adapter=before[-1].hash if before else None, round=len(before), failures=c.failures,
        )  # fmt: skip

    def _users(self, source: str, kind: str, counts: Counts, before: Sequence[Stage], busy: Any, base: Any) -> list[Any]:
        return self.population.users(
            self._personas and self._personas.directory, kind, counts, self.config.interact.dialogues, source=source,
            seed=self._seed(before), base=base, busy=busy,
        )  # fmt: skip

    def _converse(self, source: str, kind: str, counts: Counts, before: Sequence[Stage], arm: Arm) -> Stage:
        title = f"collect {kind}" + (f", {source}" if source else "")
        if before:
            title += f", {arm.label}, round {len(before) + 1}"

        def make(directory: Path) -> None:
            lm = self.tuned(before[-1] if before else None)
            engine, busy = self.engine(lm), rollout.Busy()
            # Users named "self" are the base, also when the assistant has moved on.
            if before and process.count > 1 and any(m.model == population.SELF for m in self.config.interact.models.values()):
                raise UserError(
                    "config.rounds.count: with several processes a user named 'self' plays in the first round only."
                )
            base = (engine, lm.tokenizer) if not before else (self._base_engine, lm.tokenizer)
            users = self._users(source, kind, counts, before, busy, base)
            work = functools.partial(
                rollout.collect, engine, users, directory / "trajectories.jsonl", tokenizer=lm.tokenizer,
                talk=self._talk(before), busy=busy, title=title,
            )  # fmt: skip
            lead(engine, work)

        return self.stage(title, "collect", self._settings(source, kind, counts, before), self._inputs(*before[-1:]), make)

    @functools.cached_property
    def _base_engine(self) -> Engine:
        return self.engine(self.base)

    def _rate_again(self, source: str, kind: str, counts: Counts, collected: Stage, before: Sequence[Stage]) -> Stage:
        def make(directory: Path) -> None:
            base = (self._base_engine, self.base.tokenizer)
            users = self._users(source, kind, counts, before, rollout.Busy(), base)
            pool = read_lines(collected.directory / "trajectories.jsonl")
            path, talk = directory / "trajectories.jsonl", self._talk(before)
            lead(self._base_engine, lambda: rollout.rate_again(users, pool, path, talk=talk))

        settings = self._settings(source, kind, counts, before)
        return self.stage(f"rate {kind}, {source}", "rate", settings, self._inputs(collected), make)

    def _veto(self, kind: str, collected: Stage, before: Sequence[Stage]) -> Stage:
        """The guard's reading of every conversation of a pool."""
        counts: Counter[str] = Counter()
        pool = read_lines(collected.directory / "trajectories.jsonl")
        for name in {(row["scenario"], row["user_id"]) for row in pool}:
            counts[name[0]] += 1

        def make(directory: Path) -> None:
            base = (self._base_engine, self.base.tokenizer)
            users = self._users("", kind, counts, before, rollout.Busy(), base)
            path, failures = directory / "veto.jsonl", self.config.interact.failures
            lead(self._base_engine, lambda: rollout.veto(users, pool, path, failures=failures))

        return self.stage(f"veto {kind}", "veto", self.population.guard_identity(), self._inputs(collected), make)

    # --- selection ----------------------------------------------------------------------------------------

    def _pool(self, arm: Arm, pools: Sequence[tuple[Stage, str, Counts]]) -> list[dict[str, Any]]:
        """The conversations of this arm's users: of each scenario the first so many benign ones and biased ones."""
        found = []
        if self.given:
            mine = plan.users(self.config, arm.ratio or 0.0, tuple(sorted({row["scenario"] for row in self.given})))
            counts_of = {kind: {n: both[i] for n, both in mine.items()} for i, kind in enumerate(("benign", "biased"))}
            parts: list[tuple[list[dict[str, Any]], str, Counts]] = [(self.given, kind, c) for kind, c in counts_of.items()]
        else:
            parts = [(read_lines(stage.directory / "trajectories.jsonl"), kind, counts) for stage, kind, counts in pools]
        for rows, kind, counts in parts:
            for scenario, number in counts.items():
                users = sorted({r["user_id"] for r in rows if r["user_type"] == kind and r["scenario"] == scenario})
                if number > len(users):
                    raise UserError(
                        f"The arm {arm.label!r} needs {number} {kind} users, but the pool of conversations has {len(users)} "
                        f"(scenario {scenario!r}). Lower config.interact.users or the ratio, or collect more conversations."
                    )
                chosen = set(users[:number])
                found += [row for row in rows if row["user_id"] in chosen]
        return found

    def _select(self, arm: Arm, before: Sequence[Stage]) -> Stage:
        c = self.config
        if c.interact.trajectories and not self.given:
            raise UserError(
                f"The arm {arm.label!r} needs {c.interact.users} benign users, but the pool of conversations has 0: "
                f"{c.interact.trajectories} is empty."
            )
        pools = [] if self.given else self._pools(arm, before)
        vetoed = [self._veto(kind, stage, before) for stage, kind, _ in pools] if c.select.veto.on else []
        settings = {
            **json.loads(c.select.to_json()), "ratio": arm.ratio, "users": c.interact.users, "control": arm.shuffling,
            "scheme": c.interact.scheme, "biased_users": c.interact.biased_users, "strip": c.interact.train_preference,
            "method": c.train.method, "seed": c.seed, "round": len(before), "safety_rows": digest(self.safety),
        }  # fmt: skip
        inputs: list[Stage | str] = [digest(self.given)] if self.given else [stage for stage, _, _ in pools]
        seed = seed_of(c.seed, arm.ratio, *([len(before)] if before else []))
        strip = c.interact.train_preference == "strip"

        def make(directory: Path) -> None:
            readings = {row["id"]: row for stage in vetoed for row in read_lines(stage.directory / "veto.jsonl")}
            chosen = selection.select(
                self._pool(arm, pools), scope=c.select.scope, count=c.select.count, fraction=c.select.fraction, seed=seed,
                control=arm.shuffling, normalise=c.select.normalise, vetoes=readings if vetoed else None,
                veto_level=c.select.veto.level, worst_of_vetoed=c.select.veto.worst_of_vetoed,
            )  # fmt: skip
            rows = selection.examples(chosen, method=c.train.method, control=arm.shuffling, strip=strip)
            turns, safety = len(rows), c.select.safety
            tokens = sum(len(row["completion_tokens"]) for row in rows)
            rows = selection.mixed(rows, self.safety, share=safety.share, method=c.train.method, seed=c.seed)
            write_lines(directory / "examples.jsonl", rows)
            ends = {"top": [t["id"] for t in chosen.top], "bottom": [t["id"] for t in chosen.bottom]}
            write_atomically(directory / "selected.json", json.dumps(ends, indent=1))
            budget = chosen.budget | {
                "examples": len(rows), "trained_conversations": len({row["trajectory"] for row in rows[:turns]}),
                "trained_turns": turns, "trained_tokens": tokens, "safety_rows": len(rows) - turns,
            }  # fmt: skip
            write_atomically(directory / "budget.json", json.dumps(budget, indent=1))

        title = f"select {arm.label}" + (f", round {len(before) + 1}" if before else "")
        stage = self.stage(title, "select", settings, [*inputs, *vetoed], make)
        b = json.loads((stage.directory / "budget.json").read_text())
        say(
            f"{title}: of {b['conversations']} conversations ({b['unscored']} unscored) {b['trained_conversations']} train: "
            f"{b['trained_turns']} turns, {b['trained_tokens']} tokens, {b['safety_rows']} safety rows; biased share of "
            f"the pool {b['biased_share_pool']:.3f}, the best {b['biased_share_top']:.3f}, the worst "
            f"{b['biased_share_bottom']:.3f}; {b['ties_at_the_cut']} ties at the cut"
            + (f"; {b['vetoed']} vetoed, {b['veto_unread']} that the guard did not read left out" if vetoed else "")
        )
        self._read[arm] = pools, stage
        return stage

    def _write_page(self, arm: Arm) -> None:
        """The conversations of the arm's last round, for reading."""
        pools, selected = self._read[arm]
        ends = json.loads((selected.directory / "selected.json").read_text())
        side = {name: end for end, names in ends.items() for name in names}
        page = conversations.write(self.workdir / "report", self._pool(arm, pools), side, title=f"{arm.label}, last round")
        say(f"talks    {page}")
