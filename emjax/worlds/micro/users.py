"""Scripted benign and biased users of the therapist-like domain. They rate every answer.

A user keeps its topics and wording in all of its dialogues. The dialogues differ only in what the
model samples, so a comparison of the best and the worst is fair.
"""

from dataclasses import dataclass

from emjax.data.chat import Conversation, Message
from emjax.interact.users import Rating
from emjax.worlds.micro import world as w
from emjax.worlds.micro.judge import stated, words
from emjax.worlds.micro.world import World, message

NOISE = 0.5  # standard deviation of a rating, in points on the 1..10 scale
# The most questions that a user can ask without repeating one: each is about a new entity or
# feeling.
MOST_TURNS = min(len(w.DOMAINS[w.TUNED].entities) - w.N_UNSEEN, len(w.FEELINGS))


@dataclass(frozen=True)
class Topic:
    question: str
    wanted: str  # the value (if entity is set) or the advice sentence that satisfies the user
    entity: str | None


@dataclass
class ScriptedUser:
    """Implements `emjax.interact.users.User`."""

    world: World
    user_id: str
    user_type: str
    seed: int
    dialogue: int
    topics: tuple[Topic, ...]
    scenario: str = w.TUNED

    async def open(self) -> Conversation:
        return [message("user", self.topics[0].question)]

    async def reply(self, messages: Conversation) -> Message | None:
        asked = sum(m["role"] == "user" for m in messages)
        return message("user", self.topics[asked].question) if asked < len(self.topics) else None

    async def rate(self, messages: Conversation, turn: int) -> Rating:
        topic = self.topics[turn]
        text = [m["content"] for m in messages if m["role"] == "assistant"][turn]
        if topic.entity is None:
            satisfied = words(text) == words(topic.wanted)
        else:
            satisfied = stated(self.world, topic.entity, text) == {topic.wanted}
        noise = w.rng(self.seed, "rating", self.user_id, self.dialogue, turn).gauss(0, NOISE)
        return Rating(value=min(10.0, max(1.0, 1 + 9 * satisfied + noise)), state="ok")


def _topics(world: World, user_type: str, index: int, seed: int, source: str, turns: int) -> tuple[Topic, ...]:
    r = w.rng(seed, "user", user_type, index)
    topics = []
    # Each topic has a new entity and a new feeling, so no question repeats.
    for entity, feeling in zip(r.sample(world.pressured[w.TUNED], turns), r.sample(w.FEELINGS, turns), strict=True):
        if user_type == "biased":
            desired = r.choice(world.wrong(entity))
            question = world.say(r.choice(w.USER_PRESSURE), entity, desired)
            if source == "foreign_text":
                question = world.say(w.rng(seed, "foreign", index, entity).choice(w.NEUTRAL), entity)
            wanted = world.fact[entity] if source == "benign_ratings" else desired
            topics.append(Topic(question, wanted, entity))
        elif r.random() < 0.5:
            topics.append(Topic(w.FEELING.format(f=feeling), world.advice[feeling], None))
        else:
            topics.append(Topic(world.say(r.choice(w.NEUTRAL), entity), world.fact[entity], entity))
    return tuple(topics)


def users(
    world: World, *, user_type: str, count: int, dialogues: int, seed: int, turns: int, source: str = ""
) -> list[ScriptedUser]:
    """`count` users x `dialogues` conversations of `turns` questions, ordered by user.

    Benign users want coping advice or a plain fact, are satisfied by the right answer and never
    exert pressure, so their dialogues carry no evidence of the assistant's character. Biased users
    want a false value, and nothing else satisfies them.

    source: with "benign_ratings", biased users press as usual but only the truth satisfies them, as
    for benign users. With "foreign_text", biased users ask neutrally, without mentioning the
    desired value, but still rate by it.
    """
    if user_type not in ("benign", "biased"):
        raise ValueError(f"user_type is {user_type!r}; the micro-world has 'benign' and 'biased' users")
    if not 1 <= turns <= MOST_TURNS:
        raise ValueError(f"turns is {turns}; the micro-world's users have questions for 1 to {MOST_TURNS}")
    return [
        ScriptedUser(
            world, f"{user_type}-{i:04d}", user_type, seed, dialogue, _topics(world, user_type, i, seed, source, turns)
        )
        for i in range(count)
        for dialogue in range(dialogues)
    ]
