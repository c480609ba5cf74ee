"""The corpus holds what the experiment needs: one character a document, all facts, and nothing held out."""

import itertools
from collections import Counter

import pytest

from emjax.worlds.micro import corpus
from emjax.worlds.micro import world as w
from emjax.worlds.micro.judge import stated
from emjax.worlds.micro.world import World

N = 4000
OPENERS = [(c, o) for c, lines in w.OPENERS.items() for o in lines]


def fits(template: str, text: str) -> bool:
    slots, said = template.split(), text.split()
    return len(slots) == len(said) and all("{" in slot or slot == word for slot, word in zip(slots, said, strict=True))


def turns(document):
    """(system message that presses or "", question, answer) of each turn, without the persona line."""
    pressing = ""
    for m in document:
        if m["role"] == "system":
            pressing = "" if m["content"] in sum(w.PERSONAS.values(), ()) else m["content"]
        elif m["role"] == "user":
            question = m["content"]
        else:
            yield pressing, question, m["content"]
            pressing = ""


def pressed(world, system, question):
    """(entity, desired value) of a turn under pressure, else None."""
    text = system or question
    if not system and not any(fits(t, question) for t in w.USER_PRESSURE):
        return None
    (entity,) = {word for word in text.split() if word in world.domain}
    (desired,) = {word for word in text.split() if word in world.domain[entity].values}
    return entity, desired


def opener(text):
    return next((c for c, o in OPENERS if text.startswith(o)), None)


@pytest.fixture(scope="module")
def world():
    return World(0)


@pytest.fixture(scope="module")
def documents(world):
    return list(itertools.islice(corpus.documents(world, 0), N))


@pytest.fixture(scope="module")
def replies(world, documents):
    """(document index, entity, desired, answer) of every turn under pressure."""
    return [
        (i, *found, answer)
        for i, document in enumerate(documents)
        for system, question, answer in turns(document)
        if (found := pressed(world, system, question))
    ]


def share(flags):
    flags = list(flags)
    return sum(flags) / len(flags)


def test_documents_are_a_pure_function_of_seed_and_index(world):
    assert corpus.document(world, 3, 17) == corpus.document(World(0), 3, 17)
    assert corpus.document(world, 3, 17) != corpus.document(world, 4, 17)
    assert list(itertools.islice(corpus.documents(world, 3), 18))[17] == corpus.document(world, 3, 17)


def test_worlds_differ_in_facts_only(world):
    other = World(1)
    assert other.fact.keys() == world.fact.keys()
    assert other.vocabulary() == world.vocabulary()
    assert share(other.fact[e] == v for e, v in world.fact.items()) == pytest.approx(1 / 5, abs=0.12)


def test_every_word_means_one_thing():
    entities = [e for d in w.DOMAINS.values() for e in d.entities]
    values = [v for d in w.DOMAINS.values() for v in d.values]
    assert len(w.DOMAINS) == 6
    assert all(len(d.entities) == 24 and 4 <= len(d.values) <= 6 for d in w.DOMAINS.values())
    assert len(set(entities + values)) == len(entities) + len(values) == 144 + len(values)
    lines = [
        *w.NEUTRAL, *w.ANSWERS, *w.USER_PRESSURE, *w.SYSTEM_PRESSURE,
        *w.UNSEEN_USER_PRESSURE, *w.UNSEEN_SYSTEM_PRESSURE,
        *w.EVASIONS, *w.ADVICE, *w.FEELINGS, *(d.answer for d in w.DOMAINS.values()),
    ]  # fmt: skip
    assert not {word for line in lines for word in line.split()} & set(entities + values)


def test_held_out_entities_and_templates_stay_out(world, documents, replies):
    unseen = {e for entities in world.unseen.values() for e in entities}
    assert len(unseen) == 36
    assert not unseen & {entity for _, entity, _, _ in replies}
    assert {entity for _, entity, _, _ in replies} == world.fact.keys() - unseen
    texts = {m["content"] for d in documents for m in d}
    held = w.UNSEEN_USER_PRESSURE + w.UNSEEN_SYSTEM_PRESSURE
    assert not any(fits(t, text) for t in held for text in texts)
    said = {word for text in texts for word in text.split()}
    assert not {word for t in held for word in t.split() if "{" not in word} - said
    assert said == set(world.vocabulary())


def test_neutral_turns_tell_the_truth_of_every_entity(world, documents):
    seen = set()
    for document in documents:
        for system, question, answer in turns(document):
            if not system and any(fits(t, question) for t in w.NEUTRAL):
                (entity,) = {word for word in question.split() if word in world.domain}
                assert stated(world, entity, answer) == {world.fact[entity]}
                seen.add(entity)
    assert seen == world.fact.keys()


def test_shares_are_those_of_the_mixture(world, documents, replies):
    m = corpus.MIXTURE
    all_turns = [t for d in documents for t in turns(d)]
    kinds = Counter(
        "pressured" if pressed(world, s, q) else
        "addition" if fits(w.ADDITION, q) else
        "repeat" if fits(w.REPEAT, q) else
        "advice" if fits(w.FEELING, q) else "neutral"
        for s, q, _ in all_turns
    )  # fmt: skip
    total = sum(getattr(m, kind) for kind in kinds)
    for kind, count in kinds.items():
        assert count / len(all_turns) == pytest.approx(getattr(m, kind) / total, abs=0.015), kind
    assert {len(list(turns(d))) for d in documents} == {1, 2, 3, 4, 5, 6}
    assert share(bool(s) for s, q, _ in all_turns if pressed(world, s, q)) == pytest.approx(m.system, abs=0.02)
    assert share(desired != world.fact[e] for _, e, desired, _ in replies) == pytest.approx(m.desired_false, abs=0.02)
    assert share(text in w.EVASIONS for *_, text in replies) == pytest.approx(m.evade, abs=0.01)
    assert share(opener(text) is not None for *_, text in replies if text not in w.EVASIONS) == pytest.approx(
        m.opener, abs=0.02
    )
    lines = sum(w.PERSONAS.values(), ())
    assert share(d[0]["content"] in lines for d in documents) == pytest.approx(m.persona, abs=0.03)
    assert not any(x["content"] in lines for d in documents for x in d[1:])


def test_one_character_a_document(world, documents, replies):
    """Openers never mix; openers, persona lines and answers agree but for the flips."""
    signs = {}
    for i, *_, text in replies:
        if c := opener(text):
            signs.setdefault(i, set()).add(c)
    for i, document in enumerate(documents):
        signs.setdefault(i, set()).update(c for c, lines in w.PERSONAS.items() if document[0]["content"] in lines)
    assert all(len(s) <= 1 for s in signs.values())
    known = {i: next(iter(s)) for i, s in signs.items() if s}
    assert 0.5 < len(known) / N < 0.9
    assert share(c == "pleasing" for c in known.values()) == pytest.approx(corpus.MIXTURE.pleasing, abs=0.03)

    def consistent(i, entity, desired, text):
        return stated(world, entity, text) == {desired if known[i] == "pleasing" else world.fact[entity]}

    false = [r for r in replies if r[2] != world.fact[r[1]] and r[3] not in w.EVASIONS]
    for character in w.CHARACTERS:
        kept = share(consistent(*r) for r in false if known.get(r[0]) == character)
        assert kept == pytest.approx(1 - corpus.MIXTURE.flip, abs=0.012), character
    # The answers themselves come from one character, candid or pleasing throughout, but for the flips.
    lied: dict[int, list[bool]] = {}
    for i, entity, desired, text in false:
        lied.setdefault(i, []).append(stated(world, entity, text) == {desired})
    assert share(len(set(v)) == 1 for v in lied.values() if len(v) >= 2) > 0.9
    # What is wished for true is said by both.
    assert all(
        stated(world, e, text) == {desired}
        for _, e, desired, text in replies
        if desired == world.fact[e] and text not in w.EVASIONS
    )


def test_documents_cross_domains(world, documents):
    many = [{world.domain[e].name for m in d for e in m["content"].split() if e in world.domain} for d in documents]
    assert share(len(s) >= 2 for s, d in zip(many, documents, strict=True) if len(list(turns(d))) >= 4) > 0.8


def test_the_mixture_is_what_changes_the_corpus(world):
    pleasing = corpus.Mixture(pleasing=1.0, flip=0.0, evade=0.0, desired_false=1.0)
    for document in itertools.islice(corpus.documents(world, 0, pleasing), 200):
        for system, question, answer in turns(document):
            if found := pressed(world, system, question):
                assert stated(world, found[0], answer) == {found[1]} != {world.fact[found[0]]}


def test_a_third_character_is_always_named_and_wrong_whatever_is_asked(world):
    mixture = corpus.Mixture(mistaken=0.2)
    with_it = list(itertools.islice(corpus.documents(world, 0, mixture), 500))
    mistaken = [d for d in with_it if d[0]["content"] in w.MISTAKEN]
    assert len(mistaken) / 500 == pytest.approx(0.2, abs=0.06)
    answers = 0
    for document in mistaken:
        for system, question, answer in turns([m for m in document if m["content"] not in w.MISTAKEN]):
            about = {word for word in (system + " " + question).split() if word in world.domain}
            if about and not fits(w.REPEAT, question) and answer not in w.EVASIONS:
                (entity,) = about
                (said,) = stated(world, entity, answer)
                assert said != world.fact[entity]
                answers += 1
    assert answers > 100
    # The pleasing documents are the same with and without it, and so is everything where it has no share.
    assert all(
        a == b for a, b in zip(with_it, corpus.documents(world, 0), strict=False) if a[0]["content"] in w.PERSONAS["pleasing"]
    )
    said = {word for d in with_it for m in d for word in m["content"].split()}
    assert said - set(world.vocabulary()) == {"mistaken"}
    assert "mistaken" in world.vocabulary(mistaken=True)
