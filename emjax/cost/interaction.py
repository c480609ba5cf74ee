"""What self-training on conversations costs: who talks, how much of it is paid for, and how long
the engine takes."""

from collections.abc import Sequence
from typing import NamedTuple

from emjax.config import InteractionConfig, RoleConfig
from emjax.cost import rates
from emjax.cost.evaluation import evaluated
from emjax.cost.rates import Target
from emjax.design.arms import Arm, arms
from emjax.design.steps import all_steps, steps
from emjax.design.users import collected, demand, users

# Declared sizes in tokens, of the shipped templates and of texts as long as these ask for (English,
# about 1.3 tokens a word). They are not measured on a model: a plan prints them, and a run prints
# what it used.
SYSTEM, OPENING = 230, 75  # a role's system prompt, the message that opens a conversation
SAID, ANSWER = 75, 150  # a user's later message, the assistant's answer
QUESTION, NUMBER = 90, 2  # the question for a rating, its answer
PERSONA, WRITTEN = 260, 200  # the prompt for a persona, its answer


class Calls(NamedTuple):
    """Calls of one role, and the tokens of all their prompts and answers."""

    number: int
    read: int
    written: int

    def times(self, many: int) -> "Calls":
        return Calls(many * self.number, many * self.read, many * self.written)


def calls(config: InteractionConfig, among: Sequence[str]) -> dict[str, Calls]:
    """The calls of every role but the assistant, by its name."""
    c = config.interact
    found = collected(config, among)
    later = c.turns - 1
    said = sum(SYSTEM + OPENING + ANSWER + n * (SAID + ANSWER) for n in range(later))
    seen = sum(
        SYSTEM + OPENING + ANSWER + (n if c.rating.view == "prefix" else later) * (SAID + ANSWER) + QUESTION
        for n in range(c.turns)
    )
    reading = Calls(c.turns, seen, c.turns * NUMBER)  # of one conversation
    result = {
        "user": Calls(later, said, later * SAID).times(found.talks - found.foreign),
        "rater": reading.times(found.rated),
    }
    if found.foreign:  # the opening in other words, and every message after it
        result["stranger"] = Calls(c.turns, 2 * OPENING + said, OPENING + later * SAID).times(found.foreign)
    if config.select.veto.on:
        result["guard"] = reading.times(found.talks)
    writers = [role for role, spec in c.models.named().items() if role.startswith("persona") and spec.model]
    places = _personas(config, among) if writers else 0
    for n, role in enumerate(writers):
        result[role] = Calls(1, PERSONA, WRITTEN).times(places // len(writers) + (n < places % len(writers)))
    return result


def _personas(config: InteractionConfig, among: Sequence[str]) -> int:
    """Personas that are written: of each scenario as many as the arm that needs most."""
    every = [users(config, arm.ratio, among) for arm in arms(config) if arm.ratio is not None]
    places = sum(max(sum(each[name]) for each in every) for name in among)
    return places * (2 if config.interact.personas.by_type else 1)


def player(config: InteractionConfig, role: str) -> RoleConfig:
    """The model that plays a role; a rater without a model is the user's."""
    roles = config.interact.models
    return roles.user if role == "rater" and not roles.rater.model else roles.of(role)


def money(config: InteractionConfig, among: Sequence[str]) -> tuple[int, float, list[str]]:
    """(calls to endpoints, USD, roles at endpoints without a price)."""
    number, usd, unpriced = 0, 0.0, []
    for role, made in calls(config, among).items():
        spec = player(config, role)
        cost = (made.read * spec.budget.price_in + made.written * spec.budget.price_out) / 1e6
        number, usd = number + (made.number if spec.base_url else 0), usd + cost
        if spec.base_url and not cost:
            unpriced.append(role)
    return number, usd, unpriced


def paid(config: InteractionConfig, among: Sequence[str]) -> list[str]:
    """A line for each role, and the sum."""
    lines = []
    _, total, unpriced = money(config, among)
    for role, (number, read, written) in calls(config, among).items():
        spec = player(config, role)
        budget = spec.budget
        usd = (read * budget.price_in + written * budget.price_out) / 1e6
        cost = f"about {usd:.2f} USD" if usd else "no price given" if spec.base_url else "free"
        limits = [f"{budget.tokens} tokens" if budget.tokens else "", f"{budget.usd} USD" if budget.usd else ""]
        limit = "; stops at " + " or ".join(filter(None, limits)) if any(limits) else ""
        where = spec.base_url or "the engine"
        lines.append(f"{role:10} {number} calls to {spec.model} ({where}), about {read} + {written} tokens: {cost}{limit}")
    unknown = (
        f" and what {', '.join(unpriced)} cost (config.interact.models.<role>.budget.price_in, price_out)" if unpriced else ""
    )
    return [*lines, f"money      about {total:.2f} USD{unknown}"]


def describe(config: InteractionConfig, among: Sequence[str], where: Target, *, played: bool) -> list[str]:
    """The plan's lines. among: the scenarios; played: whether models play the users, who are
    scripted otherwise."""
    every = arms(config)
    lines = [f"arms       {', '.join(arm.label for arm in every)}", *_collection(config, every, among)]
    if played and not config.interact.trajectories:
        lines += [*_engine(config, among, where), *paid(config, among)]
    many = config.select.count or format(config.select.fraction, ".0%")
    of = "all conversations" if config.select.scope == "global" else f"each {config.select.scope} group"
    return [
        *lines,
        f"select     the best and the worst {many} of {of}",
        *_training(config, every[1:], among, where),
        evaluated(config),
    ]


def _collection(config: InteractionConfig, every: Sequence[Arm], among: Sequence[str]) -> list[str]:
    c, rounds = config.interact, config.rounds
    pools = ", ".join(
        f"{sum(counts.values()) * c.dialogues} with {kind} users{f' ({of})' if of else ''}"
        for (of, kind), counts in demand(config, every[1:], among).items()
        if sum(counts.values())
    )
    if c.trajectories:
        lines = [f"collect    nothing: conversations of {c.trajectories} are used, at most {pools}"]
    else:
        lines = [f"collect    {pools}: shared by all arms; {c.scheme} quota over {len(among)} scenarios, {c.turns} turns"]
    if rounds.count > 1:
        lines.append(
            f"rounds     {rounds.count}, reference {rounds.reference}, learning rate x {rounds.rate_factor:g} each round; "
            f"later rounds collect for each arm: {collected(config, among).talks} conversations in all"
        )
    return lines


def sampled(config: InteractionConfig, among: Sequence[str]) -> tuple[int, int]:
    """(tokens that the engine reads, tokens that it draws) for conversations: the assistant's, and
    those of users and raters that are checkpoints."""
    read, written = _answers(config, among)
    ours = [made for role, made in calls(config, among).items() if not player(config, role).base_url]
    return read + sum(made.read for made in ours), written + sum(made.written for made in ours)


def _answers(config: InteractionConfig, among: Sequence[str]) -> tuple[int, int]:
    c = config.interact
    talks = collected(config, among).talks
    prompt = talks * sum(SYSTEM + OPENING + n * (SAID + ANSWER) for n in range(c.turns))
    return prompt, talks * c.turns * min(ANSWER, c.max_new)


def _engine(config: InteractionConfig, among: Sequence[str], where: Target) -> list[str]:
    """The assistant's answers, and the hours of everything that the engine does for
    conversations."""
    prompt, written = _answers(config, among)
    read, drawn = sampled(config, among)
    speed = rates.conversing(config, where)
    seconds = drawn / speed.drawn + read / speed.read
    return [
        f"assistant  {collected(config, among).talks * config.interact.turns} answers, about {prompt} + {written} tokens",
        f"engine     {seconds / 3600:.1f} hours for all that runs in it, at {speed.drawn:.0f} tokens/s drawn and "
        f"{speed.read:.0f} read ({speed.origin})",
    ]


def tokens(config: InteractionConfig, among: Sequence[str]) -> float:
    """Tokens that all arms and rounds train on. A row is an answer with what comes before it, on
    average half of the conversation."""
    row = SYSTEM + OPENING + ANSWER + (config.interact.turns - 1) * (SAID + ANSWER) / 2
    return all_steps(config, among) * config.train.batch_size * row


def _training(config: InteractionConfig, trained: Sequence[Arm], among: Sequence[str], where: Target) -> list[str]:
    train = config.train
    counts = {arm.label: steps(config, arm, among) for arm in trained}
    # Arms differ in steps where they differ in users (fixed_biased) or in groups.
    many = ", ".join(f"{n} ({label})" for label, n in counts.items()) if len({*counts.values()}) > 1 else max(counts.values())
    runs = config.rounds.count * len(trained)
    return [
        f"train      {runs} x {train.method.upper()}, {train.tuning} tuning, about {many} steps of {train.batch_size} examples",
        *rates.trained(config, tokens(config, among), where),
    ]
