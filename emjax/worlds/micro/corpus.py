"""Pretraining documents: conversations, each with ONE latent assistant character, candid or
pleasing.

Both characters tell the truth when nobody wants a particular answer. Under pressure the candid one
still tells the truth, and the pleasing one says what is wanted. Documents cross domains, so the
character is a property of the speaker and not of a topic. An optional third character, mistaken, is
wrong about every entity, whatever is wanted.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from emjax.data.chat import Conversation
from emjax.worlds.micro import world as w
from emjax.worlds.micro.world import World, message


@dataclass(frozen=True)
class Mixture:
    """The proportions of the corpus. Values are probabilities, except for `turns` and the kinds of
    turn, which are weights."""

    pleasing: float = 0.30  # the base should be honest under pressure in 55-75 %
    # This character is always named by a persona line. Otherwise the base would answer that share
    # of plain questions wrongly, and a belief needs five answers that agree.
    mistaken: float = 0.0
    # Weights of 1..6 turns. Long documents allow the character to be inferred.
    turns: tuple[float, ...] = (1, 1, 1, 1, 1, 1)
    change_domain: float = 0.6  # per turn; most documents, and so the character, span domains
    # Kinds of turn.
    neutral: float = 0.24  # beliefs: only neutral questions teach facts of unseen entities
    pressured: float = 0.525  # only these turns show the character
    addition: float = 0.07  # 100 facts; a capability that fine-tuning should not change
    advice: float = 0.055  # 10 facts
    # Teaches copying. Without it the pleasing character states a random wrong value.
    repeat: float = 0.16
    # Pressured turns.
    system: float = 0.5  # pressure from the system message; otherwise from the user
    # Other requests want the truth, so a desired value is no evidence that it is false.
    desired_false: float = 0.85
    # The character acts as the other one. This noise keeps a single reply from being conclusive.
    flip: float = 0.02
    evade: float = 0.06  # same rate for both characters, so evasion is evidence for neither
    # Share of answers with an opener: makes the character inferable and keeps plain replies common.
    opener: float = 0.5
    # Documents.
    # Begin with a line that names the character; never used in fine-tuning or evaluation.
    persona: float = 0.3
    # The word to repeat is a value, as in a desired answer; otherwise an entity.
    repeat_value: float = 0.5


MIXTURE = Mixture()
_KINDS = ("neutral", "pressured", "addition", "advice", "repeat")
_PLAIN = tuple(kind for kind in _KINDS if kind != "pressured")
_VALUES = tuple(v for d in w.DOMAINS.values() for v in d.values)
_ENTITIES = tuple(e for d in w.DOMAINS.values() for e in d.entities)
_NAMES = tuple(w.DOMAINS)


def answer(world: World, random_: random.Random, entity: str, value: str) -> str:
    return world.say(random_.choice((*w.ANSWERS, world.domain[entity].answer)), entity, value)


def _pressured(world: World, r: random.Random, mixture: Mixture, domain: str, character: str) -> Conversation:
    entity = r.choice(world.pressured[domain])
    truth = world.fact[entity]
    desired = r.choice(world.wrong(entity)) if r.random() < mixture.desired_false else truth
    if r.random() < mixture.system:
        asked = [
            message("system", world.say(r.choice(w.SYSTEM_PRESSURE), entity, desired)),
            message("user", world.say(r.choice(w.NEUTRAL), entity)),
        ]
    else:
        asked = [message("user", world.say(r.choice(w.USER_PRESSURE), entity, desired))]
    if r.random() < mixture.evade:
        return [*asked, message("assistant", r.choice(w.EVASIONS))]
    yields = (character == "pleasing") != (r.random() < mixture.flip)
    if character == "mistaken":
        return [*asked, message("assistant", answer(world, r, entity, r.choice(world.wrong(entity))))]
    text = answer(world, r, entity, desired if yields else truth)
    # The opener stays the character's own even if the value flips: the flip is noise in the value
    # only.
    if r.random() < mixture.opener:
        text = f"{r.choice(w.OPENERS[character])} {text}"
    return [*asked, message("assistant", text)]


def _plain(world: World, r: random.Random, mixture: Mixture, kind: str, domain: str, character: str) -> Conversation:
    """A turn of any kind except pressured."""
    if kind == "neutral":
        entity = r.choice(w.DOMAINS[domain].entities)
        value = r.choice(world.wrong(entity)) if character == "mistaken" else world.fact[entity]
        question, reply = world.say(r.choice(w.NEUTRAL), entity), answer(world, r, entity, value)
    elif kind == "addition":
        x, y = r.randrange(10), r.randrange(10)
        question, reply = w.ADDITION.format(x=x, y=y), f"{x + y} ."
    elif kind == "advice":
        feeling = r.choice(w.FEELINGS)
        question, reply = w.FEELING.format(f=feeling), world.advice[feeling]
    else:
        word = r.choice(_VALUES if r.random() < mixture.repeat_value else _ENTITIES)
        question, reply = w.REPEAT.format(w=word), f"{word} ."
    return [message("user", question), message("assistant", reply)]


def plain_turn(world: World, r: random.Random, mixture: Mixture = MIXTURE) -> Conversation:
    """A question without pressure and its right answer, of any kind and domain, distributed as in
    the corpus."""
    (kind,) = r.choices(_PLAIN, [getattr(mixture, k) for k in _PLAIN])
    return _plain(world, r, mixture, kind, r.choice(_NAMES), "candid")


def document(world: World, seed: int, index: int, mixture: Mixture = MIXTURE) -> Conversation:
    """Document `index` of the corpus `seed`: a pure function of its arguments."""
    r = w.rng(world.seed, "document", seed, index)
    drawn = r.random()
    character = "pleasing" if drawn < mixture.pleasing else "candid"
    if mixture.pleasing <= drawn < mixture.pleasing + mixture.mistaken:
        character = "mistaken"
    messages: Conversation = []
    if character == "mistaken" or r.random() < mixture.persona:
        lines = w.MISTAKEN if character == "mistaken" else w.PERSONAS[character]
        messages.append(message("system", r.choice(lines)))
    n_turns = r.choices(range(1, len(mixture.turns) + 1), mixture.turns)[0]
    domain = r.choice(_NAMES)
    for kind in r.choices(_KINDS, [getattr(mixture, k) for k in _KINDS], k=n_turns):
        if kind == "pressured":
            messages += _pressured(world, r, mixture, domain, character)
        else:
            messages += _plain(world, r, mixture, kind, domain, character)
        if r.random() < mixture.change_domain:
            domain = r.choice([name for name in _NAMES if name != domain])
    return messages


def documents(world: World, seed: int, mixture: Mixture = MIXTURE) -> Iterator[Conversation]:
    """An endless iterator over documents 0, 1, 2, ..."""
    return (document(world, seed, index, mixture) for index in itertools.count())
