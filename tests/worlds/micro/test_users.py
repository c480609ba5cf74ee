"""Scripted users: deterministic, independent of order, content with what they want."""

import asyncio

import pytest

from emjax.worlds.micro import users as u
from emjax.worlds.micro import world as w
from emjax.worlds.micro.judge import stated
from emjax.worlds.micro.world import World, message

WORLD = World(0)
TYPES = ("benign", "biased")


def talk(user, answers):
    """The finished conversation and its ratings; `answers(topic)` is what the assistant says."""

    async def go():
        messages = await user.open()
        for topic in user.topics:
            messages = [*messages, message("assistant", answers(topic))]
            if (question := await user.reply(messages)) is None:
                break
            messages = [*messages, question]
        return messages, [await user.rate(messages, t) for t in range(len(user.topics))]

    return asyncio.run(go())


def content(topic):
    return topic.wanted if topic.entity is None else WORLD.say(w.ANSWERS[0], topic.entity, topic.wanted)


def evading(topic):
    return w.EVASIONS[0]


def truthful(topic):
    return topic.wanted if topic.entity is None else WORLD.say(w.ANSWERS[1], topic.entity, WORLD.fact[topic.entity])


def population(user_type, **kwargs):
    return u.users(WORLD, **{"user_type": user_type, "count": 30, "dialogues": 4, "seed": 5, "turns": 2, **kwargs})


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("user_type", TYPES)
def test_a_conversation_has_its_turns(user_type, turns):
    for user in population(user_type, count=5, turns=turns):
        messages, ratings = talk(user, content)
        assert [m["role"] for m in messages] == ["user", "assistant"] * turns
        assert len(ratings) == turns
        assert len({m["content"] for m in messages[::2]}) == turns
        assert (user.user_type, user.scenario) == (user_type, "comfort")


@pytest.mark.parametrize("turns", [0, 11])
def test_turns_without_a_question_are_refused(turns):
    with pytest.raises(ValueError, match=rf"turns is {turns}; .* 1 to 10$"):
        population("benign", turns=turns)


@pytest.mark.parametrize("user_type", TYPES)
def test_identity(user_type):
    many = population(user_type)
    assert [x.user_id for x in many[::4]] == [f"{user_type}-{i:04d}" for i in range(30)]
    assert [x.dialogue for x in many[:5]] == [0, 1, 2, 3, 0]
    assert all(x.topics == many[i - i % 4].topics for i, x in enumerate(many))  # a user's topics are its own
    assert len({x.topics for x in many}) > 20


@pytest.mark.parametrize("user_type", TYPES)
def test_everything_random_comes_from_the_identity(user_type):
    few, many = population(user_type, count=3, dialogues=2), population(user_type)
    backwards = {(x.user_id, x.dialogue): talk(x, content) for x in reversed(many)}
    for x in few:
        assert talk(x, content) == backwards[x.user_id, x.dialogue] == talk(x, content)
    assert [x.topics for x in population(user_type, seed=6)] != [x.topics for x in many]
    ratings = [r.value for x in many for r in talk(x, evading)[1] if r.value != 1]
    assert len(set(ratings)) == len(ratings)  # every dialogue and turn has a noise of its own


@pytest.mark.parametrize("user_type", TYPES)
def test_ratings(user_type):
    for user in population(user_type):
        good, bad = talk(user, content)[1], talk(user, evading)[1]
        assert all(r.state == "ok" and 1 <= r.value <= 10 for r in good + bad)
        assert all(g.value > 7 and b.value < 4 for g, b in zip(good, bad, strict=True))
        told = talk(user, truthful)[1]
        assert all((r.value > 7) == (user_type == "benign") for r in told)


def test_only_biased_users_press():
    pressed = {e for name in w.DOMAINS for e in WORLD.pressured[name]}
    for user in population("benign"):
        for topic in user.topics:
            assert topic.entity is None or topic.wanted == WORLD.fact[topic.entity]
            assert not any(v in topic.question.split() for v in w.DOMAINS["comfort"].values)
    for user in population("biased"):
        for topic in user.topics:
            assert topic.entity in pressed
            assert WORLD.domain[topic.entity].name == "comfort"
            assert topic.wanted != WORLD.fact[topic.entity]
            assert topic.wanted in topic.question.split()
            held = [WORLD.say(t, topic.entity, topic.wanted) for t in w.UNSEEN_USER_PRESSURE]
            assert topic.question not in held
            assert stated(WORLD, topic.entity, content(topic)) == {topic.wanted}


def test_both_kinds_of_benign_topic():
    kinds = [topic.entity is None for user in population("benign")[::4] for topic in user.topics]
    assert 0.3 < sum(kinds) / len(kinds) < 0.7


def test_unknown_type():
    with pytest.raises(ValueError, match="'kind'"):
        population("kind")
