"""The users of an experiment: config.interact to users of each type, played by models."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from emjax.api import ChatClient
from emjax.config import InteractConfig, RoleConfig, RolesConfig, as_dict
from emjax.errors import UserError
from emjax.interact import personas, players, scenarios
from emjax.interact.players import ModelUser, Player, Roles
from emjax.interact.prompts import Prompts
from emjax.runtime.files import digest, read_lines, write_lines
from emjax.runtime.ledger import Ledger
from emjax.sampling import Engine
from emjax.sampling.partner import EngineChat

SELF = "self"  # the experiment's own base model, in the engine


def models(roles: RolesConfig) -> dict[str, RoleConfig]:
    """The roles that name a model. A rater without one is played by the user's model."""
    return {role: spec for role, spec in roles.named().items() if spec.model}


class Population:
    """Makes personas and users as config.interact says.

    cache: folder of the endpoints' replies.
    local: loads a checkpoint; returns its engine and tokenizer.
    ledger: the run's cap on money.

    Raises UserError for scenario files and templates that cannot be used.
    """

    def __init__(
        self,
        config: InteractConfig,
        seed: int,
        cache: Path,
        local: Callable[[str], tuple[Engine, Any]],
        ledger: Ledger | None = None,
    ):
        self.config, self.seed, self._ledger = config, seed, ledger
        self.scenarios = scenarios.load(config.domains, config.scenarios)
        self.prompts = Prompts(config.templates)
        self._cache, self._local = cache, functools.cache(local)
        self.clients: dict[str, ChatClient] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(scenario.name for scenario in self.scenarios)

    def identity(self, source: str) -> dict[str, Any]:
        """Everything that decides what users say and how they rate. Budgets and rates do not."""
        c = self.config
        played = ("user", "rater", "stranger") if source else ("user", "rater")
        return {
            "models": {role: _identity(spec) for role, spec in models(c.models).items() if role in played},
            "rating": as_dict(c.rating),
            "rater_sampling": c.models.rater.sampling,
            "prompts": self.prompts.identity(),
            "source": source,
            "scenarios": self._scenarios_digest,
            "turns": c.turns,
            "end": c.end,
            "preference": c.preference,
        }

    def guard_identity(self) -> dict[str, Any]:
        """Everything that decides what the guard reads in a conversation."""
        return {
            "guard": _identity(self.config.models.guard),
            "prompts": self.prompts.identity(),
            "rating": as_dict(self.config.rating),
            "scale": as_dict(self.config.veto),
        }

    @functools.cached_property
    def _scenarios_digest(self) -> str:
        return digest([dataclasses.asdict(scenario) for scenario in self.scenarios])

    # --- personas -------------------------------------------------------------------------------

    def personas_identity(self) -> dict[str, Any]:
        """Everything that decides the personas and the sample of them that people read."""
        c = self.config.personas
        writers = [_identity(spec) for spec in self._writers.values()]
        return {
            "scenarios": self._scenarios_digest,
            "writers": writers,
            "by_type": c.by_type,
            "check": c.check_rows,
            "prompts": self.prompts.identity() if writers else None,
            "seed": self.seed,
        }

    @property
    def _writers(self) -> dict[str, RoleConfig]:
        return {role: spec for role, spec in models(self.config.models).items() if role.startswith("persona")}

    def make_personas(self, counts: Mapping[str, int], directory: Path) -> None:
        """Writes personas.jsonl, and personas_to_check.csv for people to read."""
        c = self.config.personas
        path = directory / "personas.jsonl"
        writers = [
            personas.Writer(spec.model, self._player(role).chat, spec.sampling, spec.structured)
            for role, spec in self._writers.items()
        ]
        if writers:
            personas.generate(self.scenarios, counts, writers, self.prompts, path, by_type=c.by_type, tries=c.tries)
        else:
            print("personas: made from templates, not written by a model (config.interact.models.persona*)", flush=True)
            write_lines(path, personas.rows_of(personas.embedded(self.scenarios, counts, self.seed)))
        personas.to_check(read_lines(path), c.check_rows, self.seed, directory / "personas_to_check.csv")

    # --- users ----------------------------------------------------------------------------------

    def users(
        self,
        directory: Path,
        user_type: str,
        counts: Mapping[str, int],
        dialogues: int,
        *,
        source: str = "",
        seed: int = 0,
        base: tuple[Engine, Any] | None = None,
        busy: AbstractContextManager[Any] | None = None,
    ) -> list[ModelUser]:
        """counts[scenario] users of one type, each in `dialogues` conversations.

        directory: has the personas that `make_personas` wrote.
        source: "", or the control that changes what users say or how they rate.
        base: engine and tokenizer of the experiment's base, for models named "self"; `busy` is
        entered while it has a request of theirs.

        Raises UserError if the control foreign_text has no stranger.
        """
        cast = personas.by_scenario(personas.cast(read_lines(directory / "personas.jsonl")))
        roles = self._roles(source, base and EngineChat(*base, seed, busy))
        return players.of_each(self.scenarios, cast, roles, user_type=user_type, counts=counts, dialogues=dialogues)

    def _roles(self, source: str, base: EngineChat | None) -> Roles:
        c = self.config
        used = models(c.models)

        def player(role: str) -> Player | None:
            return self._player(role, base) if role in used else None

        speaker = self._player("user", base)
        stranger = player("stranger") if source == "foreign_text" else None
        if source == "foreign_text" and stranger is None:
            raise UserError(
                "config.interact.models.stranger.model is empty, but the control 'foreign_text' needs another model to write "
                "the users' words. Name one."
            )
        return Roles(
            self.prompts,
            speaker,
            player("rater") or Player(speaker.chat, c.models.rater.sampling),
            c.rating,
            turns=c.turns,
            preference=c.preference,
            end=c.end,
            stranger=stranger,
            guard=player("guard"),
            veto=c.veto,
            rate_as="benign" if source == "benign_ratings" else "",
        )

    def _player(self, role: str, base: EngineChat | None = None) -> Player:
        spec = self.config.models.of(role)
        if spec.base_url:
            if role not in self.clients:
                self.clients[role] = ChatClient(
                    spec.base_url,
                    spec.model,
                    api_key_env=spec.api_key_env,
                    cache_dir=self._cache,
                    budget=spec.budget,
                    rates=spec.rates,
                    at=f"config.interact.models.{role}",
                    nullable=spec.nullable,
                    ledger=self._ledger,
                )
            return Player(self.clients[role], spec.sampling)
        if spec.model == SELF and base:
            return Player(base, spec.sampling)
        return Player(EngineChat(*self._local(spec.model), self.seed), spec.sampling)

    def spent(self) -> str:
        """Calls, tokens and money that this process spent at endpoints, one line per role."""
        return "\n".join(
            f"{role:10} {client.model}: {client.spent['calls']} calls ({client.spent['cached']} from the cache), "
            f"{client.spent['prompt_tokens']} + {client.spent['completion_tokens']} tokens, {client.cost:.2f} USD"
            for role, client in self.clients.items()
        )


def _identity(spec: RoleConfig) -> dict[str, Any]:
    return {"base_url": spec.base_url, "model": spec.model, "structured": spec.structured, "sampling": spec.sampling}


def needed(counts: Sequence[Mapping[str, tuple[int, int]]]) -> dict[str, int]:
    """Personas that each scenario needs: the most that any arm's (benign, biased) users need."""
    return {name: max(sum(each[name]) for each in counts) for name in counts[0]}
