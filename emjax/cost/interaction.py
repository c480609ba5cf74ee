"""The plan of self-training on conversations: who talks, how much of it is paid for, and how long the engine takes."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from emjax.errors import UserError
from emjax.interact import scenarios
from emjax.interact.selection import GROUPS, SCHEMES, quotas
from emjax.plan import rates
from emjax.plan.arm import Arm, arms

SOURCES = ("foreign_text", "benign_ratings")  # controls that need conversations or ratings of their own
# Declared sizes in tokens, of the shipped templates and of texts of the length they ask for (English, about 1.3 tokens a word).
# Not measured on a model: a plan prints them, and a run prints what was really used.
SYSTEM, OPENING, SAID, ANSWER = (
    230,
    75,
    75,
    150,
)  # a role's system prompt, the opening, a user's message, the assistant's answer
QUESTION, NUMBER, PERSONA, WRITTEN = 90, 2, 260, 200  # rating question, its answer; persona prompt, its answer


# What scripted users have no use for, as the config files set it.
UNUSED: dict[str, Any] = {
    "preference": True, "train_preference": "strip", "end": "", "domains": ("therapist",), "scenarios": 50, "templates": "",
    "rating.low": 1, "rating.high": 10, "rating.person": "first", "rating.view": "prefix", "rating.thought": True,
    "rating.readout": "logprobs", "rating.least_mass": 0.01, "models.user.model": "self", "models.user.base_url": "",
    "models.rater.model": "", "models.stranger.model": "", "models.guard.model": "", "models.persona1.model": "",
}  # fmt: skip


def check(config: Any) -> None:
    """Raises UserError for what no run could take. A run prints its plan first, so both refuse alike."""
    from emjax.interact import population, ratings  # with jax
    from emjax.worlds.micro.users import MOST_TURNS

    c = config.interact
    for field, value, choices in (
        ("interact.kind", c.kind, ("micro", "scenarios")),
        ("interact.scheme", c.scheme, SCHEMES),
        ("interact.aggregate", c.aggregate, ratings.AGGREGATES),
        ("select.scope", config.select.scope, GROUPS),
        ("select.normalise", config.select.normalise, ratings.NORMALISE),
        ("rounds.reference", config.rounds.reference, ("base", "previous")),
    ):
        if value not in choices:
            raise UserError(f"config.{field} is {value!r}; choose {', '.join(choices)}.")
    if config.rounds.count < 1 or (c.trajectories and config.rounds.count > 1):
        raise UserError(
            f"config.rounds.count is {config.rounds.count}; it must be at least 1, and 1 with given conversations "
            "(config.interact.trajectories), since a later round collects its own."
        )
    for field in ("users", "dialogues"):
        if c[field] < 1:
            raise UserError(f"config.interact.{field} is {c[field]}; it must be at least 1.")
    if c.kind == "scenarios":
        population.check(c)
        needs = {"guard": config.select.veto.on and "config.select.veto.on is set"}
        needs["stranger"] = any(arm.name == "foreign_text" for arm in arms(config)) and "an arm has foreign_text"
        for role, why in needs.items():
            if why and not c.models[role].model:
                raise UserError(f"{why}, which needs a model: name it in config.interact.models.{role}.model.")
    else:
        if config.select.veto.on:
            raise UserError("config.select.veto.on needs model-played users; the micro-world has no guard. Switch it off.")
        if not 1 <= c.turns <= MOST_TURNS:
            raise UserError(
                f"config.interact.turns is {c.turns}; the micro-world's users have questions for 1 to {MOST_TURNS}."
            )
        for name, usual in UNUSED.items():
            value = functools.reduce(lambda part, field: part[field], name.split("."), c)
            if value != usual:
                raise UserError(
                    f"config.interact.{name} is {value!r}, of which the micro-world's users, who are scripted, take no notice. "
                    f"Leave it at {usual!r}, or choose a variant whose users are played by models."
                )
    if c.trajectories:  # they have groups of their own
        if config.select.veto.on or any(source(arm, "biased") for arm in arms(config)):
            raise UserError(
                "config.interact.trajectories gives conversations as they are: a veto, and the controls foreign_text and "
                "benign_ratings, need others. Switch config.select.veto.on off, leave these out of config.interact.control "
                "and config.extra_arms, or let the conversations be collected."
            )
        return
    for arm in arms(config):
        for size in groups(config, arm.ratio) if arm.name != "vanilla" else ():
            if not 1 <= best(config, size) <= size / 2:
                raise UserError(
                    f"config.select asks for the {best(config, size)} best and as many of the worst conversations of "
                    f"{size} ({arm.label}, select.scope {config.select.scope}), so the two would overlap or be empty. Change "
                    "config.select.count or fraction, or collect more conversations."
                )


def names(config: Any) -> tuple[str, ...]:
    """The scenarios that users are spread over."""
    c = config.interact
    return ("comfort",) if c.kind == "micro" else tuple(s.name for s in scenarios.load(c.domains, c.scenarios))


def users(config: Any, ratio: float | None, among: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """(benign, biased) users of each scenario at this ratio.

    Of fixed_biased the control has as many as the treated arm, all of them benign, so that its training is the same.
    """
    c, among = config.interact, among or names(config)
    how = {"scheme": c.scheme, "biased": c.biased_users, "seed": config.seed}
    many = c.users
    if c.scheme == "fixed_biased" and not ratio and c.biased_ratio:
        many = sum(map(sum, quotas(c.users, among, c.biased_ratio, **how).values()))
    return quotas(many, among, ratio or 0.0, **how)


def source(arm: Arm, kind: str) -> str:
    """Which collection an arm takes its users of one type from: "" the plain one, or that of its control."""
    if arm.name == "benign_ratings":
        return arm.name if kind == "biased" else ""
    return arm.name if arm.name == "foreign_text" else ""


def demand(config: Any, wanted: Sequence[Arm]) -> dict[tuple[str, str], dict[str, int]]:
    """{(source, user type): users of each scenario}: as many as any of the arms needs."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for arm in wanted:
        for place, kind in enumerate(("benign", "biased")):
            of = source(arm, kind)
            for key in {of, ""} if of == "benign_ratings" else {of}:
                counts = found.setdefault((key, kind), {})
                for name, both in users(config, arm.ratio).items():
                    counts[name] = max(counts.get(name, 0), both[place])
    return found


def groups(config: Any, ratio: float | None) -> list[int]:
    """Conversations of each group that selection ranks by itself, in an arm of this ratio."""
    counts = users(config, ratio)
    people = sum(map(sum, counts.values()))
    found = {
        "global": [people],
        "scenario": [sum(both) for both in counts.values()],
        "user_type": [sum(kind) for kind in zip(*counts.values(), strict=True)],
        "user": [1] * people,
    }
    return [number * config.interact.dialogues for number in found[config.select.scope] if number]


def best(config: Any, size: int) -> int:
    """How many of a group of this size are the best, and as many the worst."""
    return int(config.select.count or int(config.select.fraction * size))


def steps(config: Any, ratio: float | None) -> int:
    """Optimizer steps of one arm and round from the declared sizes; as many answers a conversation as it has turns."""
    chosen = sum(best(config, size) for size in groups(config, ratio))
    rows = config.interact.turns * chosen * (2 if config.train.method == "kto" else 1)
    if config.select.safety.share:
        rows += round(rows * config.select.safety.share / (1 - config.select.safety.share))
    return math.ceil(rows / config.train.batch_size) * config.train.epochs


def all_steps(config: Any) -> int:
    """Optimizer steps of all arms and rounds."""
    return config.rounds.count * sum(steps(config, arm.ratio) for arm in arms(config) if arm.name != "vanilla")


def collected(config: Any) -> dict[str, int]:
    """Conversations of all rounds ("talks"), those in another model's words ("foreign"), and how many are rated ("rated")."""
    trained = [arm for arm in arms(config) if arm.ratio is not None]
    # The first round's conversations are shared; later each arm has its own.
    rounds = [demand(config, trained), *([demand(config, [arm]) for arm in trained] * (config.rounds.count - 1))]
    found = dict.fromkeys(("talks", "foreign", "rated"), 0)
    for pools in rounds:
        for (of, _), counts in pools.items():
            number = sum(counts.values()) * config.interact.dialogues
            found["rated"] += number
            found["talks"] += number * (of != "benign_ratings")
            found["foreign"] += number * (of == "foreign_text")
    return found


def calls(config: Any) -> dict[str, tuple[int, int, int]]:
    """{role: (calls, prompt tokens, answer tokens)} of everything but the assistant, from the declared sizes."""
    c = config.interact
    found = collected(config)
    talks, turns = found["talks"], c.turns
    exchange = SAID + ANSWER
    said = [SYSTEM + OPENING + ANSWER + n * exchange for n in range(turns - 1)]
    seen = [
        SYSTEM + OPENING + ANSWER + (n if c.rating.view == "prefix" else turns - 1) * exchange + QUESTION for n in range(turns)
    ]
    rated, foreign = found["rated"], found["foreign"]
    own = talks - foreign
    result = {
        "user": (own * len(said), own * sum(said), own * len(said) * SAID),
        "rater": (rated * turns, rated * sum(seen), rated * turns * NUMBER),
    }
    if foreign:  # the opening in other words, and every message after it
        result["stranger"] = (foreign * turns, foreign * (2 * OPENING + sum(said)), foreign * (OPENING + len(said) * SAID))
    if config.select.veto.on:
        result["guard"] = (talks * turns, talks * sum(seen), talks * turns * NUMBER)
    writers = [role for role, spec in c.models.items() if role.startswith("persona") and spec.model]
    if writers:
        trained = [arm.ratio for arm in arms(config) if arm.ratio is not None]
        places = sum(max(sum(users(config, ratio)[name]) for ratio in trained) for name in names(config))
        places *= 2 if c.personas.by_type else 1
        for n, role in enumerate(writers):
            mine = places // len(writers) + (n < places % len(writers))
            result[role] = (mine, mine * PERSONA, mine * WRITTEN)
    return result


def _spec(config: Any, role: str) -> Mapping[str, Any]:
    """The model that plays a role; a rater without one is the user's."""
    models = config.interact.models
    return models.user if role == "rater" and not models.rater.model else models[role]


def _paid(config: Any) -> list[str]:
    """A line a role, and the sum."""
    lines, total, unpriced = [], 0.0, []
    for role, (count, read, written) in calls(config).items():
        spec = _spec(config, role)
        where = spec["base_url"] or "the engine"
        price = spec["budget"]
        usd = (read * price["price_in"] + written * price["price_out"]) / 1e6
        cost = f"about {usd:.2f} USD" if usd else "free" if not spec["base_url"] else "no price given"
        total += usd
        if cost == "no price given":
            unpriced.append(role)
        limits = [f"{price['tokens']} tokens" if price["tokens"] else "", f"{price['usd']} USD" if price["usd"] else ""]
        limit = "; stops at " + " or ".join(filter(None, limits)) if any(limits) else ""
        lines.append(f"{role:10} {count} calls to {spec['model']} ({where}), about {read} + {written} tokens: {cost}{limit}")
    unknown = (
        f" and what {', '.join(unpriced)} cost (config.interact.models.<role>.budget.price_in, price_out)" if unpriced else ""
    )
    lines.append(f"money      about {total:.2f} USD{unknown}")
    return lines


def describe(config: Any) -> str:
    check(config)
    c = config.interact
    found = collected(config)
    trained = [arm for arm in arms(config) if arm.name != "vanilla"]
    turns = c.turns
    written = found["talks"] * turns * min(ANSWER, c.max_new)
    prompt = sum(SYSTEM + OPENING + n * (SAID + ANSWER) for n in range(turns)) * found["talks"]
    lines = [f"arms       {', '.join(arm.label for arm in arms(config))}"]
    rounds = config.rounds.count
    pools = ", ".join(
        f"{sum(counts.values()) * c.dialogues} with {kind} users{f' ({of})' if of else ''}"
        for (of, kind), counts in demand(config, trained).items()
        if sum(counts.values())
    )
    if c.trajectories:
        lines.append(f"collect    nothing: the conversations of {c.trajectories}, of {pools} at most")
    else:
        lines.append(
            f"collect    {pools}: shared by all arms; {c.scheme} quota over {len(names(config))} scenarios, {turns} turns"
        )
    if rounds > 1:
        lines.append(
            f"rounds     {rounds}, reference {config.rounds.reference}, rate x {config.rounds.rate_factor:g} a round; later "
            f"rounds collect for each arm: {found['talks']} conversations in all"
        )
    if c.kind == "scenarios" and not c.trajectories:
        # Users and raters that are checkpoints keep the same engine busy.
        ours = [n for role, n in calls(config).items() if not _spec(config, role)["base_url"]]
        drawn, read, origin = rates.engine(config)
        seconds = (written + sum(w for *_, w in ours)) / drawn + (prompt + sum(r for _, r, _ in ours)) / read
        lines += [
            f"assistant  {found['talks'] * turns} answers, about {prompt} + {written} tokens",
            f"engine     {seconds / 3600:.1f} hours with all that runs in it, at {drawn:.0f} tokens/s drawn and "
            f"{read:.0f} read ({origin})",
        ]
        lines += _paid(config)
    counts = {arm.label: steps(config, arm.ratio) for arm in trained}
    # Arms differ where they differ in users (fixed_biased) or in groups.
    many = ", ".join(f"{n} ({label})" for label, n in counts.items()) if len({*counts.values()}) > 1 else max(counts.values())
    # A row: the answer and what stands before it, half way through the conversation.
    row = SYSTEM + OPENING + ANSWER + (turns - 1) * (SAID + ANSWER) / 2
    lines += [
        f"select     the best and the worst {config.select.count or format(config.select.fraction, '.0%')} of "
        f"each {config.select.scope} group",
        f"train      {rounds * len(trained)} x {config.train.method.upper()}, {config.train.tuning} tuning, about "
        f"{many} steps of {config.train.batch_size} examples",
        *rates.training(config, all_steps(config) * config.train.batch_size * row),
        f"evaluate   {1 + rounds * len(trained)} models under pressure, and what they believe and can do without it",
    ]
    return "\n".join(lines)
