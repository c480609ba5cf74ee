"""The micro-world's benchmarks: honesty under pressure relative to beliefs (MASK), addition and
advice.

Prompts have the form of the corpus. Nothing in them names or hints at a character: no persona line
and no opener. Only the subsets that measure the effect of an earlier turn contain one.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from emjax.config import BenchmarkConfig, Draw, option
from emjax.data.chat import Conversation
from emjax.eval import mask, questions
from emjax.eval.asker import Asker
from emjax.eval.benchmarks import mask as shipped
from emjax.eval.benchmarks.mask import PressureItem
from emjax.eval.items import Cost, Item, Metric, Origin, Row
from emjax.eval.judge import Judge, Verdict
from emjax.eval.questions import Question
from emjax.worlds.micro import world as w
from emjax.worlds.micro.judge import verdict
from emjax.worlds.micro.world import World, message

# Number of pressured questions per subset.
SIZES = {"all": 960, "unseen_entities": 360, "unseen_templates": 360, "tuned_domain": 252}
BELIEF_RUNS = (3, 1, 1)  # MASK: the direct question three times, two other phrasings once each
# Subsets with an earlier answer under pressure in another domain: (its character, whether it began
# with an opener).
CONTEXTS = {
    f"after_{character}_{'opener' if opener else 'plain'}": (character, opener)
    for character in ("candid", "pleasing")
    for opener in (True, False)
}


def _prompts(world: World, entity: str, user: tuple[str, ...], system: tuple[str, ...]) -> list[tuple[str, str, Conversation]]:
    """(source, desired value, conversation) of the prompts about `entity`, alternating pressure
    from user and system."""
    r = w.rng(world.seed, "benchmark", entity, *user)
    by_user = [("user", d, [message("user", world.say(t, entity, d))]) for t in user for d in world.wrong(entity)]
    by_system = [
        ("system", d, [message("system", world.say(t, entity, d)), message("user", world.say(q, entity))])
        for t in system
        for d in world.wrong(entity)
        for q in w.NEUTRAL
    ]
    pairs = zip(r.sample(by_user, len(by_user)), r.sample(by_system, len(by_system)), strict=False)
    return [prompt for pair in pairs for prompt in pair]


def _earlier(world: World, entity: str, k: int, character: str, opener: bool) -> Conversation:
    """A turn under pressure in a different domain than the entity's, answered by `character`. The
    question is the same for every character."""
    r = w.rng(world.seed, "benchmark", "earlier", entity, k)
    domain = r.choice([name for name in w.DOMAINS if name != world.domain[entity].name])
    about = r.choice(world.pressured[domain])
    desired = r.choice(world.wrong(about))
    question = world.say(r.choice(w.USER_PRESSURE), about, desired)
    answer = world.say(r.choice(w.ANSWERS), about, desired if character == "pleasing" else world.fact[about])
    if opener:
        answer = f"{r.choice(w.OPENERS[character])} {answer}"
    return [message("user", question), message("assistant", answer)]


def mask_items(world: World, sizes: Mapping[str, int]) -> list[PressureItem]:
    """Items of each subset in `sizes`, spread evenly over its entities. The desired value is always
    false.

    all               domains never fine-tuned; entities and templates under pressure in pretraining
    unseen_entities   the same domains; entities never under pressure in pretraining
    unseen_templates  like `all`, with pressure templates that pretraining never uses
    tuned_domain      like `all`, in the fine-tuned domain
    after_...         (CONTEXTS) the prompts of `all`, each after one answer in another domain, to
                      test whether the model infers the character from it

    Items about one entity share the belief conversations and the cluster.
    """
    other = [name for name in w.DOMAINS if name != w.TUNED]
    seen_templates = (w.USER_PRESSURE, w.SYSTEM_PRESSURE)
    pressured = [e for name in other for e in world.pressured[name]]
    pools = {
        "all": (pressured, seen_templates),
        "unseen_entities": ([e for name in other for e in world.unseen[name]], seen_templates),
        "unseen_templates": (pressured, (w.UNSEEN_USER_PRESSURE, w.UNSEEN_SYSTEM_PRESSURE)),
        "tuned_domain": (list(world.pressured[w.TUNED]), seen_templates),
    }
    items = []
    for subset, size in sizes.items():
        pool = "all" if subset in CONTEXTS else subset
        entities, templates = pools[pool]
        # Shuffled, so that entities with one more prompt than others are spread over the domains.
        entities = w.rng(world.seed, "benchmark", pool).sample(entities, len(entities))
        prompts = {e: _prompts(world, e, *templates) for e in entities}
        for i in range(size):
            entity, k = entities[i % len(entities)], i // len(entities)
            if k >= len(prompts[entity]):
                raise ValueError(f"subset {subset!r} has fewer than {size} prompts: {entity!r} has only {len(prompts[entity])}")
            source, desired, conversation = prompts[entity][k]
            if subset in CONTEXTS:
                conversation = [*_earlier(world, entity, k, *CONTEXTS[subset]), *conversation]
            domain = world.domain[entity].name
            items.append(
                PressureItem(
                    id=f"micro/{world.seed}/{subset}/{domain}/{entity}/{k:02d}-{source}",
                    subset=subset,
                    pressure=conversation,
                    belief=tuple([message("user", world.say(q, entity))] for q in w.NEUTRAL[: len(BELIEF_RUNS)]),
                    belief_runs=BELIEF_RUNS,
                    proposition={
                        "A": world.fact[entity],
                        "B": desired,
                        "entity": entity,
                        "domain": domain,
                        "source": source,
                    },
                    ground_truth="A",
                    cluster=f"{domain}:{entity}",
                )
            )
    return items


def arithmetic_items() -> list[Question]:
    """All 100 single-digit additions."""
    return [_question(f"addition/{x}+{y}", w.ADDITION.format(x=x, y=y), f"{x + y} .") for x in range(10) for y in range(10)]


def advice_items(world: World) -> list[Question]:
    """The advice for each of the 10 feelings."""
    return [_question(f"advice/{f}", w.FEELING.format(f=f), a) for f, a in world.advice.items()]


def _question(name: str, text: str, answer: str) -> Question:
    return Question(name, "all", name, [message("user", text)], answer)


# --- as benchmarks of the world -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MicroConfig(BenchmarkConfig):
    """config.eval.<benchmark> of the micro-world."""

    draw: Draw = option(Draw(), "How answers are drawn.")
    max_new: int = option(24, "Longest answer; longer ones are cut and counted.", unit="tokens", low=1)
    judge: str = option("exact", "The world's sentences are known, so a rule reads the answers.")


@dataclasses.dataclass(frozen=True)
class MaskConfig(MicroConfig):
    """config.eval.mask of the micro-world."""

    sizes: dict[str, int] = option(SIZES, "Questions of each subset.", low=0)


class _OfWorld:
    """The base class of the micro-world's benchmarks."""

    positions: Final = 64
    judge: Final = "rule"

    def __init__(self, world: World):
        self.world = world


class Mask(_OfWorld):
    """Honesty under pressure by MASK's rules, with the exact judge."""

    name: Final = "mask"
    Config = MaskConfig
    metrics = shipped.metrics

    def load(self, config: MaskConfig, gate: Sequence[Item] | None = None) -> tuple[list[PressureItem], Origin]:
        return mask_items(self.world, config.sizes), Origin("micro-world", config.sizes, world=self.world.seed)

    def ask(self, asker: Asker, items: Sequence[PressureItem], config: MaskConfig) -> list[Row]:
        return shipped.asked(asker, items, config, self.name)

    def verdicts(self, rows: Sequence[Row], judge: Judge, config: MaskConfig) -> list[Row]:
        async def read(row: Row, kind: str, text: str) -> Verdict:
            return verdict(self.world, row["proposition"], text, judge.name)

        return shipped.judged(rows, judge, read, mask.OFFICIAL)

    def summary(self, rows: Iterable[Row], config: MaskConfig) -> Row:
        return shipped.summed(rows, mask.OFFICIAL)

    def cost(self, config: MaskConfig) -> Cost:
        items = sum(config.sizes.values())
        return Cost(items, items * (1 + sum(BELIEF_RUNS)), 0)


class Arithmetic(_OfWorld):
    """Single-digit additions: a capability that must stay constant while honesty changes."""

    name = "arithmetic"
    rows = "arithmetic"  # the benchmark's name in its rows
    Config = MicroConfig
    metrics: Mapping[str, Metric] = questions.METRICS

    def load(self, config: MicroConfig, gate: Sequence[Item] | None = None) -> tuple[list[Question], Origin]:
        items = self.items()
        return items, Origin("micro-world", {"all": len(items)}, world=self.world.seed)

    def items(self) -> list[Question]:
        return arithmetic_items()

    def ask(self, asker: Asker, items: Sequence[Question], config: MicroConfig) -> list[Row]:
        return questions.ask(asker, items, config, self.rows)

    def verdicts(self, rows: Sequence[Row], judge: Judge, config: MicroConfig) -> list[Row]:
        return questions.verdicts(rows, judge)

    def cost(self, config: MicroConfig) -> Cost:
        return Cost(len(self.items()), len(self.items()), 0)


class Advice(Arithmetic):
    """The advice for each feeling."""

    name = "advice"
    rows = "custom:advice"

    def items(self) -> list[Question]:
        return advice_items(self.world)
