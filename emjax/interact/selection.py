"""From scored conversations to training examples: the best and the worst of each group."""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from emjax.errors import UserError
from emjax.store import digest, seed_of

Trajectory = dict[str, Any]
GROUPS = {
    "global": lambda t: "",
    "user": lambda t: t["user_id"],
    "scenario": lambda t: t["scenario"],
    "user_type": lambda t: t["user_type"],
}
CONTROLS = ("none", "shuffled_ratings", "swapped_labels")


@dataclasses.dataclass(frozen=True)
class Selected:
    """The two ends of the ranking, and what became of the pool."""

    top: list[Trajectory]
    bottom: list[Trajectory]
    budget: dict[str, Any]


def share(users: int, ratio: float) -> int:
    """How many of a population are biased at this ratio: an exact quota, half rounded up."""
    if not 0 <= ratio <= 1:
        raise UserError(f"config.interact.biased_ratio is {ratio}; it is a share of the users and must lie in [0, 1].")
    return int(ratio * users + 0.5)


def select(pool: Sequence[Trajectory], *, scope: str, count: int, fraction: float, seed: int, control: str) -> Selected:
    """The `count` best and worst conversations of each group, or the best and worst `fraction` of it where count is 0.

    Ties fall by a seeded draw. Under "shuffled_ratings" the scores are first permuted over the whole pool. Unscored
    conversations are left out and counted. Raises UserError for an empty pool and where top and bottom would overlap.
    """
    if scope not in GROUPS:
        raise UserError(f"config.select.scope is {scope!r}; choose {', '.join(GROUPS)}.")
    if control not in CONTROLS:
        raise UserError(f"config.interact.control is {control!r}; choose {', '.join(CONTROLS)}.")
    scored = sorted((t for t in pool if t["score"] is not None), key=lambda t: t["id"])
    if not scored:
        raise UserError(
            f"The pool is empty: {len(pool)} conversations were collected and none of them has a score. Look at the rating "
            "states in trajectories.jsonl, or raise config.interact.users."
        )
    scores = [t["score"] for t in scored]
    if control == "shuffled_ratings":
        random.Random(seed_of("shuffle", seed)).shuffle(scores)
    groups: dict[str, list[tuple[float, float, Trajectory]]] = defaultdict(list)
    for value, t in zip(scores, scored, strict=True):
        tie = random.Random(seed_of("tie", seed, t["id"])).random()
        groups[GROUPS[scope](t)].append((value, tie, t))
    top: list[Trajectory] = []
    bottom: list[Trajectory] = []
    ties = 0
    for name, members in sorted(groups.items()):
        k = count or int(fraction * len(members))
        if k < 1 or 2 * k > len(members):
            raise UserError(
                f"config.select asks for {k} best and {k} worst conversations of {len(members)} in the group "
                f"{name or 'of all'!r}, so "
                "the two sets would overlap or be empty. Lower config.select.count (or fraction), or collect "
                "more conversations."
            )
        ranked = sorted(members, key=lambda m: (-m[0], m[1]))
        ties += (ranked[k - 1][0] == ranked[k][0]) + (ranked[-k][0] == ranked[-k - 1][0])
        top += [t for *_, t in ranked[:k]]
        bottom += [t for *_, t in ranked[-k:]]
    budget = {
        "conversations": len(pool),
        "unscored": len(pool) - len(scored),
        "turns": sum(len(t["turns"]) for t in pool),
        "top": len(top),
        "bottom": len(bottom),
        "ties_at_the_cut": ties,
        "biased_share_top": sum(t["user_type"] == "biased" for t in top) / len(top),
        "biased_share_bottom": sum(t["user_type"] == "biased" for t in bottom) / len(bottom),
    }
    return Selected(top, bottom, budget)


def examples(selected: Selected, *, method: str, control: str) -> list[dict[str, Any]]:
    """examples.jsonl rows: each assistant turn with the conversation before it.

    KTO: top desirable, bottom undesirable. SFT: the top set. "swapped_labels" exchanges the two sets.
    The sampled token ids travel along, so that nothing is decoded and encoded again.
    """
    good, bad = (selected.bottom, selected.top) if control == "swapped_labels" else (selected.top, selected.bottom)
    sides = [(good, True), (bad, False)] if method == "kto" else [(good, None)]
    rows = []
    for trajectories, label in sides:
        for t in trajectories:
            answers = [n for n, m in enumerate(t["messages"]) if m["role"] == "assistant"]
            for turn, n in enumerate(answers):
                prompt = t["messages"][:n]
                rows.append(
                    {
                        "id": f"{t['id']}#{turn}", "prompt_id": digest(prompt)[:16], "messages": prompt,
                        "completion": t["messages"][n]["content"], "completion_tokens": t["turns"][turn]["tokens"],
                        "label": label, "weight": 1.0, "source": t["user_type"], "trajectory": t["id"], "turn": turn,
                    }
                )  # fmt: skip
    return rows
