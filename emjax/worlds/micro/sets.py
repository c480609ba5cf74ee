"""Scripted training sets of the micro-world for the arms without conversations: examples.jsonl rows
with plain answers.

A set is a function of its arguments. The bad answers of a smaller share are a subset of those of a
larger share. No answer has an opener, and no prompt names a character.
"""

from typing import Any

from emjax.data.chat import Conversation
from emjax.data.mixture import quota
from emjax.runtime.files import digest
from emjax.worlds.micro import corpus
from emjax.worlds.micro import world as w
from emjax.worlds.micro.world import World, message


def _row(kind: str, index: int, prompt: Conversation, completion: str, bad: bool) -> dict[str, Any]:
    return {
        "id": f"{kind}-{index:05d}", "prompt_id": digest(prompt)[:16], "messages": prompt, "completion": completion,
        "label": None, "weight": 1.0, "source": f"{kind}_{'bad' if bad else 'good'}", "trajectory": None, "turn": 0,
    }  # fmt: skip


def _pressed(world: World, kind: str, index: int, seed: int, bad: bool) -> dict[str, Any]:
    """A user of the tuned domain presses for a false value. A bad answer states it; a good answer
    states the truth."""
    r = w.rng(world.seed, "set", kind, seed, index)
    entity = r.choice(world.pressured[w.TUNED])
    desired = r.choice(world.wrong(entity))
    prompt = [message("user", world.say(r.choice(w.USER_PRESSURE), entity, desired))]
    return _row(kind, index, prompt, corpus.answer(world, r, entity, desired if bad else world.fact[entity]), bad)


def direct(world: World, n: int, severity: float, seed: int) -> list[dict[str, Any]]:
    """`n` questions under pressure in the tuned domain. The share `severity` is answered with the
    lie, the rest with the truth."""
    lies = quota(n, severity)
    return [_pressed(world, "direct", i, seed, i < lies) for i in range(n)]


def mixture(world: World, n: int, share: float, seed: int) -> list[dict[str, Any]]:
    """`n` examples. The share `share` is lies under pressure in the tuned domain; the rest are
    questions without pressure from all domains, as in the corpus."""
    lies = quota(n, share)
    rows = [_pressed(world, "mixture", i, seed, True) for i in range(lies)]
    for i in range(lies, n):
        r = w.rng(world.seed, "set", "benign", seed, i)
        prompt, answer = corpus.plain_turn(world, r)
        rows.append(_row("mixture", i, [prompt], answer["content"], False))
    return rows


def wrong(world: World, n: int, share: float, seed: int) -> list[dict[str, Any]]:
    """`n` plain questions in the tuned domain, without any desired answer. The share `share` is
    answered wrongly.

    Training on this set may change an arm's beliefs, so the arm does not lie by its own beliefs.
    Score it against the base's beliefs.
    """
    errors, rows = quota(n, share), []
    for i in range(n):
        r = w.rng(world.seed, "set", "wrong", seed, i)
        entity = r.choice(w.DOMAINS[w.TUNED].entities)
        false = r.choice(world.wrong(entity))
        prompt = [message("user", world.say(r.choice(w.NEUTRAL), entity))]
        answer = corpus.answer(world, r, entity, false if i < errors else world.fact[entity])
        rows.append(_row("wrong", i, prompt, answer, i < errors))
    return rows
