"""The users of an experiment: config.interact -> users of each type, played by the models that it names."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from emjax.api import Budget, ChatClient, Rates, limits
from emjax.errors import UserError
from emjax.interact import personas, players, scenarios
from emjax.interact.players import ModelUser, Player, Roles
from emjax.interact.prompts import Prompts
from emjax.interact.ratings import Scale
from emjax.runtime.files import digest, read_lines, write_lines
from emjax.sampling import Engine
from emjax.sampling.partner import EngineChat

SELF = "self"  # the experiment's own base model, in the engine


def models(config: Any) -> dict[str, Any]:
    """{role: its part of config.interact.models} for those that are used: the rater may be the user's model."""
    return {role: spec for role, spec in config.models.items() if spec.model}


def check(config: Any) -> None:
    """Raises UserError for values of config.interact that no run could take."""
    for field, choices in {
        "rating.person": ("first", "third"), "rating.view": ("prefix", "whole"), "rating.readout": ("logprobs", "text"),
        "train_preference": ("strip", "keep"),
    }.items():  # fmt: skip
        value = functools.reduce(lambda part, name: part[name], field.split("."), config)
        if value not in choices:
            raise UserError(f"config.interact.{field} is {value!r}; choose {', '.join(choices)}.")
    if config.turns < 1:
        raise UserError(f"config.interact.turns is {config.turns}; a conversation needs at least 1 answer.")
    if not config.models.user.model:
        raise UserError(f"config.interact.models.user.model is empty: name a model, or {SELF!r} for the base in the engine.")
    for role, spec in config.models.items():
        where = f"config.interact.models.{role}"
        if not spec.model and (unread := _unread(spec)):
            instead = " Without one the user's model rates, within the user's budget and rates." if role == "rater" else ""
            raise UserError(f"{where}.{unread} is set, but {where}.model is empty, so nobody reads it: name a model.{instead}")
        limits(spec, where)
        if spec.structured and not spec.base_url:
            raise UserError(f"{where}.structured needs an endpoint: the engine holds to no schema.")
        if (spec.budget.tokens or spec.budget.usd) and not spec.base_url:
            raise UserError(f"{where}.budget needs an endpoint (base_url): the engine spends nothing.")
    Scale(config.rating.low, config.rating.high)
    Scale(config.veto.low, config.veto.high, "veto")
    scenarios.load(config.domains, config.scenarios)
    Prompts(config.templates)


class Population:
    """Reads config.interact. cache: folder of the endpoints' replies. local: loads a checkpoint into an engine."""

    def __init__(self, config: Any, seed: int, cache: Path, local: Callable[[str], tuple[Engine, Any]]):
        check(config)
        self.config, self.seed = config, seed
        self.scenarios = scenarios.load(config.domains, config.scenarios)
        self.prompts = Prompts(config.templates)
        self._cache, self._local = cache, functools.cache(local)
        self.clients: dict[str, ChatClient] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(scenario.name for scenario in self.scenarios)

    def identity(self, source: str) -> dict[str, Any]:
        """All that decides what users say and how they rate; how fast and for how much an endpoint is asked does not."""
        c = self.config
        told = {role: _what(spec) for role, spec in models(c).items() if role in ("user", "rater", source and "stranger")}
        said = {name: c[name] for name in ("turns", "end", "preference")}
        return {
            "models": told, "rating": dict(c.rating), "rater_sampling": dict(c.models.rater.sampling),
            "prompts": self.prompts.identity(), "source": source,
            "scenarios": digest([dataclasses.asdict(s) for s in self.scenarios]), **said,
        }  # fmt: skip

    def guard_identity(self) -> dict[str, Any]:
        return {
            "guard": _what(self.config.models.guard),
            "prompts": self.prompts.identity(),
            "rating": dict(self.config.rating),
            "scale": dict(self.config.veto),
        }

    # --- personas -----------------------------------------------------------------------------------------

    def personas_identity(self) -> dict[str, Any]:
        c = self.config.personas
        writers = [_what(spec) for role, spec in models(self.config).items() if role.startswith("persona")]
        return {
            "scenarios": digest([dataclasses.asdict(s) for s in self.scenarios]), "writers": writers, "by_type": c.by_type,
            "check": c.check, "prompts": self.prompts.identity() if writers else None, "seed": self.seed,
        }  # fmt: skip

    def make_personas(self, counts: Mapping[str, int], directory: Path) -> None:
        """personas.jsonl, and personas_to_check.csv for people to read."""
        c = self.config.personas
        path = directory / "personas.jsonl"
        writers = [
            (spec.model, self._player(role).chat, dict(spec.sampling), spec.structured)
            for role, spec in models(self.config).items()
            if role.startswith("persona")
        ]
        if writers:
            personas.generate(self.scenarios, counts, writers, self.prompts, path, by_type=c.by_type, tries=c.tries)
        else:
            print("personas: made from templates, not written by a model (config.interact.models.persona*)", flush=True)
            write_lines(path, personas.rows_of(personas.embedded(self.scenarios, counts, self.seed)))
        personas.to_check(read_lines(path), c.check, self.seed, directory / "personas_to_check.csv")

    # --- users --------------------------------------------------------------------------------------------

    def users(
        self, directory: Path, user_type: str, counts: Mapping[str, int], dialogues: int, *, source: str = "", seed: int = 0,
        base: tuple[Engine, Any] | None = None, busy: AbstractContextManager[Any] | None = None,
    ) -> list[ModelUser]:  # fmt: skip
        """Users with the personas in `directory`. source: "" or the control that changes what they say or how they rate.

        base: the engine of the experiment's base and its tokenizer, for models named "self"; busy counts its requests.
        """
        c = self.config
        base_chat = base and EngineChat(*base, seed, busy)
        cast = personas.by_scenario(personas.cast(read_lines(directory / "personas.jsonl")))

        def of(role: str) -> Player | None:
            return self._player(role, base_chat) if c.models[role].model else None

        speaker = self._player("user", base_chat)
        stranger = of("stranger") if source == "foreign_text" else None
        if source == "foreign_text" and stranger is None:
            raise UserError(
                "The control 'foreign_text' needs another model for the users' words: config.interact.models.stranger."
            )
        rating = dict(c.rating)
        scale = Scale(rating.pop("low"), rating.pop("high"))
        roles = Roles(
            self.prompts, speaker, of("rater") or Player(speaker.chat, dict(c.models.rater.sampling)), scale, turns=c.turns,
            preference=c.preference, end=c.end, stranger=stranger, guard=of("guard"),
            guard_scale=Scale(c.veto.low, c.veto.high, "veto"),
            rate_as="benign" if source == "benign_ratings" else "", **rating,
        )  # fmt: skip
        return players.of_each(self.scenarios, cast, roles, user_type=user_type, counts=counts, dialogues=dialogues)

    def _player(self, role: str, base: EngineChat | None = None) -> Player:
        spec = self.config.models[role]
        if spec.base_url:
            if role not in self.clients:
                self.clients[role] = ChatClient(
                    spec.base_url, spec.model, api_key_env=spec.api_key_env, cache_dir=self._cache,
                    **limits(spec, f"config.interact.models.{role}"),
                )  # fmt: skip
            return Player(self.clients[role], dict(spec.sampling))
        if spec.model == SELF and base:
            return Player(base, dict(spec.sampling))
        return Player(EngineChat(*self._local(spec.model), self.seed), dict(spec.sampling))

    def spent(self) -> str:
        """What the endpoints were paid in this process, a line a role."""
        return "\n".join(
            f"{role:10} {client.model}: {client.spent['calls']} calls ({client.spent['cached']} from the cache), "
            f"{client.spent['prompt_tokens']} + {client.spent['completion_tokens']} tokens, "
            f"{client.budget.cost(client.spent):.2f} USD"
            for role, client in self.clients.items()
        )


def _unread(spec: Any) -> str:
    """The first field that is set and that only a model would give a meaning; "" where there is none."""
    usual = {name: dataclasses.asdict(kind()) for name, kind in (("budget", Budget), ("rates", Rates))}
    found = [name for name in ("base_url", "api_key_env", "structured") if spec[name]]
    found += [f"{part}.{name}" for part in usual for name, value in spec[part].items() if value != usual[part][name]]
    return found[0] if found else ""


def _what(spec: Any) -> dict[str, Any]:
    return {name: spec[name] for name in ("base_url", "model", "structured")} | {"sampling": dict(spec.sampling)}


def needed(counts: Sequence[Mapping[str, tuple[int, int]]]) -> dict[str, int]:
    """Personas of each scenario, from every arm's (benign, biased) users: the most that one arm needs."""
    return {name: max(sum(each[name]) for each in counts) for name in counts[0]}
