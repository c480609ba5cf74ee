"""Self-training on conversations with a share of biased users (paper, section 4)."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emjax import models
from emjax.config import InteractionConfig, as_dict
from emjax.data.examples import read_examples, read_trajectories
from emjax.design import arms as design
from emjax.design import users as pools_of
from emjax.design.arms import Arm
from emjax.errors import UserError
from emjax.experiment.arms import Arms
from emjax.experiment.common import lead, say
from emjax.interact import population, rollout, selection
from emjax.interact.players import ModelUser
from emjax.interact.rollout import Talk
from emjax.interact.users import User
from emjax.presets import Chosen
from emjax.report import conversations
from emjax.runtime import process
from emjax.runtime.files import digest, dumps, loads, read_lines, seed_of, write_atomically, write_lines
from emjax.runtime.store import Stage, Store
from emjax.sampling import Engine

Counts = Mapping[str, int]  # users a scenario
# (conversations, user type, how many of its users are the arm's)
Pools = Sequence[tuple[Stage, str, Counts]]
Base = tuple[Engine, Any]  # the base's engine and its tokenizer


class Interaction(Arms[InteractionConfig]):
    """Arms whose examples are selected from the model's own conversations, in one round or
    several."""

    cause = "biased users"
    study = "conversations"

    def __init__(self, chosen: Chosen, workdir: Path, store: Store):
        assert isinstance(chosen.config, InteractionConfig)
        super().__init__(chosen, chosen.config, workdir, store)
        c = self.config
        self._names = pools_of.scenario_names(c, chosen.world.limits if chosen.world else None)
        self.given = read_trajectories(Path(c.interact.trajectories)) if c.interact.trajectories else []
        safety = c.select.safety.path
        self.safety = read_examples(Path(safety), labelled=c.train.method == "kto") if safety else []
        self._read: dict[Arm, tuple[Pools, Stage]] = {}
        self._pooled: dict[tuple[str, str, str], Stage | None] = {}

    def run(self) -> None:
        super().run()
        if not process.first():
            return
        self._write_page(design.headline(self.config))
        if self.population and (spent := self.population.spent()):
            say(spent)

    # --- rounds -----------------------------------------------------------------------------------

    def rounds(self, arm: Arm) -> list[tuple[Stage, Stage]]:
        """Collect, select, train, and again with the model that this made: (selection, training) of
        each round."""
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
    def population(self) -> population.Population | None:
        """The users that models play; None where the world has users of its own."""
        if self.world:
            return None

        def local(path: str) -> Base:
            if process.count > 1:
                raise UserError(
                    f"config.interact.models names the checkpoint {path!r}, but this run has {process.count} processes, which "
                    "serve one engine together: that of the assistant. Use an endpoint or 'self', or one process."
                )
            if path == population.SELF:
                return self._base_engine, self.base.tokenizer
            lm = models.load(path, mesh=self.mesh, dtype=self.config.model.dtype)
            return self.engine(lm), lm.tokenizer

        cache, ledger = self.store.root / "chat_cache", self.chosen.ledger
        return population.Population(self.config.interact, self.config.seed, cache, local, ledger)

    @functools.cached_property
    def _personas(self) -> Stage | None:
        people = self.population
        if people is None:
            return None
        ratios = [arm.ratio for arm in self.arms if arm.ratio is not None]
        counts = population.needed([pools_of.users(self.config, ratio, self._names) for ratio in ratios])
        settings = people.personas_identity() | {"counts": counts}

        def make(directory: Path) -> None:
            process.on_first(lambda: people.make_personas(counts, directory))

        return self.stage("personas", "personas", settings, [], make)

    # --- collection -------------------------------------------------------------------------------

    def _pools(self, arm: Arm, before: Sequence[Stage]) -> Pools:
        """(stage, user type, how many of its users are this arm's): collected with the base and
        shared by all arms in the first round, with the arm's own model later."""
        arms = [arm] if before else [a for a in self.arms if a.ratio is not None]
        wanted = pools_of.demand(self.config, arms, self._names)
        own = pools_of.users(self.config, arm.ratio or 0.0, self._names)
        found: list[tuple[Stage, str, Counts]] = []
        for place, kind in enumerate(("benign", "biased")):
            source = pools_of.source(arm, kind)
            stage = self._collect(source, kind, wanted, before, arm)
            if stage:
                found.append((stage, kind, {name: both[place] for name, both in own.items()}))
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
            "user_type": kind,
            "users": dict(counts),
            "dialogues": c.dialogues,
            "draw": c.draw.sent,
            "max_new": c.max_new,
            "aggregate": c.aggregate,
            "seed": self._seed(before),
            "round": len(before),
            **self._people(source),
            **self.sampling(),
        }

    def _seed(self, before: Sequence[Stage]) -> int:
        return seed_of(self.config.seed, "round", len(before)) if before else self.config.seed

    def _inputs(self, *more: Stage) -> list[Stage | str]:
        return [self.base_hash, *([self._personas] if self._personas else []), *more]

    def _talk(self, before: Sequence[Stage]) -> Talk:
        c = self.config.interact
        return Talk(
            self._seed(before),
            c.draw,
            c.max_new,
            c.aggregate,
            self.config.model.path,
            adapter=before[-1].hash if before else None,
            round=len(before),
            failures=c.failures,
        )

    def _users(
        self, source: str, kind: str, counts: Counts, before: Sequence[Stage], busy: rollout.Busy, base: Base
    ) -> Sequence[User]:
        seed, dialogues = self._seed(before), self.config.interact.dialogues
        if self.world:
            turns = self.config.interact.turns
            return self.world.users(kind, counts, seed=seed, turns=turns, dialogues=dialogues, source=source)
        return self._played(source, kind, counts, before, busy, base)

    def _played(
        self, source: str, kind: str, counts: Counts, before: Sequence[Stage], busy: rollout.Busy, base: Base
    ) -> list[ModelUser]:
        assert self.population
        assert self._personas
        return self.population.users(
            self._personas.directory,
            kind,
            counts,
            self.config.interact.dialogues,
            source=source,
            seed=self._seed(before),
            base=base,
            busy=busy,
        )

    def _people(self, source: str) -> dict[str, Any]:
        """What decides what users say and how they rate, for stage hashes."""
        if self.population:
            return self.population.identity(source)
        assert self.world
        return {"source": source, "turns": self.config.interact.turns, "world": self.world.identity()}

    @property
    def _self_played(self) -> bool:
        """Whether a role is played by the base."""
        roles = self.config.interact.models.named().values()
        return self.world is None and any(role.model == population.SELF for role in roles)

    def _converse(self, source: str, kind: str, counts: Counts, before: Sequence[Stage], arm: Arm) -> Stage:
        title = f"collect {kind}" + (f", {source}" if source else "")
        if before:
            title += f", {arm.label}, round {len(before) + 1}"

        def make(directory: Path) -> None:
            lm = self.tuned(before[-1] if before else None)
            engine, busy = self.engine(lm), rollout.Busy()
            # Users named "self" are the base, also when the assistant has moved on.
            if before and process.count > 1 and self._self_played:
                raise UserError(
                    "config.rounds.count: with several processes a user named 'self' plays in the first round only."
                )
            base = (engine, lm.tokenizer) if not before else (self._base_engine, lm.tokenizer)
            users = self._users(source, kind, counts, before, busy, base)
            work = functools.partial(
                rollout.collect,
                engine,
                users,
                directory / "trajectories.jsonl",
                tokenizer=lm.tokenizer,
                talk=self._talk(before),
                busy=busy,
                title=title,
            )
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
            users = self._played("", kind, counts, before, rollout.Busy(), base)
            path, failures = directory / "veto.jsonl", self.config.interact.failures
            lead(self._base_engine, lambda: rollout.veto(users, pool, path, failures=failures))

        assert self.population
        settings = self.population.guard_identity()
        return self.stage(f"veto {kind}", "veto", settings, self._inputs(collected), make)

    # --- selection --------------------------------------------------------------------------------

    def _pool(self, arm: Arm, pools: Pools) -> list[dict[str, Any]]:
        """The conversations of this arm's users: of each scenario the first so many benign ones and
        biased ones."""
        found = []
        if self.given:
            own = pools_of.users(self.config, arm.ratio or 0.0, sorted({row["scenario"] for row in self.given}))
            counts_of = {kind: {n: both[i] for n, both in own.items()} for i, kind in enumerate(("benign", "biased"))}
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
            **as_dict(c.select),
            "ratio": arm.ratio,
            "users": c.interact.users,
            "control": arm.shuffling,
            "scheme": c.interact.scheme,
            "biased_users": c.interact.biased_users,
            "strip": c.interact.train_preference,
            "method": c.train.method,
            "seed": c.seed,
            "round": len(before),
            "safety_rows": digest(self.safety),
        }
        inputs: list[Stage | str] = [digest(self.given)] if self.given else [stage for stage, _, _ in pools]
        seed = seed_of(c.seed, arm.ratio, *([len(before)] if before else []))

        def make(directory: Path) -> None:
            readings = {row["id"]: row for stage in vetoed for row in read_lines(stage.directory / "veto.jsonl")}
            picked = selection.select(
                self._pool(arm, pools), c.select, seed=seed, control=arm.shuffling, vetoes=readings if vetoed else None
            )
            self._write_examples(directory, picked, arm)

        title = f"select {arm.label}" + (f", round {len(before) + 1}" if before else "")
        stage = self.stage(title, "select", settings, [*inputs, *vetoed], make)
        b = loads((stage.directory / "budget.json").read_text())
        say(
            f"{title}: of {b['conversations']} conversations ({b['unscored']} unscored) {b['trained_conversations']} train: "
            f"{b['trained_turns']} turns, {b['trained_tokens']} tokens, {b['safety_rows']} safety rows; biased share of "
            f"the pool {b['biased_share_pool']:.3f}, the best {b['biased_share_top']:.3f}, the worst "
            f"{b['biased_share_bottom']:.3f}; {b['ties_at_the_cut']} ties at the cut"
            + (f"; {b['vetoed']} vetoed, {b['veto_unread']} that the guard did not read left out" if vetoed else "")
        )
        self._read[arm] = pools, stage
        return stage

    def _write_examples(self, directory: Path, picked: selection.Selected, arm: Arm) -> None:
        c = self.config
        strip = c.interact.train_preference == "strip"
        rows = selection.examples(picked, method=c.train.method, control=arm.shuffling, strip=strip)
        turns = len(rows)
        tokens = sum(len(row["completion_tokens"]) for row in rows)
        rows = selection.mixed(rows, self.safety, c.select.safety, method=c.train.method, seed=c.seed)
        write_lines(directory / "examples.jsonl", rows)
        ends = {"top": [t["id"] for t in picked.top], "bottom": [t["id"] for t in picked.bottom]}
        write_atomically(directory / "selected.json", dumps(ends, indent=1))
        budget = picked.budget | {
            "examples": len(rows),
            "trained_conversations": len({row["trajectory"] for row in rows[:turns]}),
            "trained_turns": turns,
            "trained_tokens": tokens,
            "safety_rows": len(rows) - turns,
        }
        write_atomically(directory / "budget.json", dumps(budget, indent=1))

    def _write_page(self, arm: Arm) -> None:
        """The conversations of the arm's last round, for reading."""
        pools, selected = self._read[arm]
        ends = loads((selected.directory / "selected.json").read_text())
        side = {name: end for end, names in ends.items() for name in names}
        page = conversations.write(self.workdir / "report", self._pool(arm, pools), side, title=f"{arm.label}, last round")
        say(f"talks    {page}")
