"""From scored conversations to training examples.

Selects the best and the worst conversations of each group, applies vetoes, mixes in safety data.
"""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from emjax.config import SafetyConfig, SelectConfig
from emjax.errors import UserError
from emjax.interact.ratings import normalised
from emjax.runtime.files import digest, seed_of

Trajectory = dict[str, Any]
Vetoes = Mapping[str, Mapping[str, Any]]  # id of a conversation -> the guard's {"value", "state"}
GROUPS: dict[str, Callable[[Trajectory], str]] = {  # of config.names.SCOPES
    "global": lambda t: "",
    "user": lambda t: t["user_id"],
    "scenario": lambda t: t["scenario"],
    "user_type": lambda t: t["user_type"],
}


@dataclasses.dataclass(frozen=True)
class Selected:
    """The best and the worst conversations, and counts of what was left out."""

    top: list[Trajectory]
    bottom: list[Trajectory]
    budget: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Left:
    """Ids that the guard leaves out: read at or above the level, or not read."""

    vetoed: frozenset[str]
    unread: frozenset[str]


def select(
    pool: Sequence[Trajectory], config: SelectConfig, *, seed: int, control: str, vetoes: Vetoes | None = None
) -> Selected:
    """The best and the worst config.count conversations of each group (config.fraction if 0).

    A seeded draw breaks ties. Unscored conversations are left out and counted. Under the control
    "shuffled_ratings", scores are first permuted over the whole pool.

    vetoes: with them, a conversation whose reading is at or above config.veto.level, or that has
    none, is left out of the best. It is also left out of the worst unless
    config.veto.worst_of_vetoed (Williams et al.).

    Raises UserError for an empty pool, and if the best and the worst would overlap.
    """
    scored = sorted((t for t in pool if t["score"] is not None), key=lambda t: t["id"])
    if not scored:
        raise UserError(
            f"The pool is empty: {len(pool)} conversations were collected and none of them has a score. Look at the rating "
            "states in trajectories.jsonl, or raise config.interact.users."
        )
    scores = normalised(scored, config.normalise)
    if control == "shuffled_ratings":
        random.Random(seed_of("shuffle", seed)).shuffle(scores)
    left = _left_out(scored, vetoes, config.veto.level)
    groups: dict[str, list[tuple[float, float, Trajectory]]] = defaultdict(list)
    for value, t in zip(scores, scored, strict=True):
        tie = random.Random(seed_of("tie", seed, t["id"])).random()
        groups[GROUPS[config.scope](t)].append((value, tie, t))
    top: list[Trajectory] = []
    bottom: list[Trajectory] = []
    ties = 0
    for name, members in sorted(groups.items()):
        best, worst, tied = _ends(name, members, config, left.vetoed | left.unread)
        top += best
        bottom += worst
        ties += tied
    budget = _budget(pool, len(scored), top, bottom, ties)
    if vetoes is not None:
        budget |= {"vetoed": len(left.vetoed), "veto_unread": len(left.unread)}
    return Selected(top, bottom, budget)


def _left_out(scored: Sequence[Trajectory], vetoes: Vetoes | None, level: float) -> _Left:
    if vetoes is None:
        return _Left(frozenset(), frozenset())
    read = {t["id"]: vetoes[t["id"]]["value"] for t in scored}
    return _Left(
        vetoed=frozenset(name for name, value in read.items() if value is not None and value >= level),
        unread=frozenset(name for name, value in read.items() if value is None),
    )


def _ends(
    name: str, members: Sequence[tuple[float, float, Trajectory]], config: SelectConfig, out: frozenset[str]
) -> tuple[list[Trajectory], list[Trajectory], int]:
    """(best, worst, number of the two cuts that fall between equal scores) of one group.

    members: (score, tie-breaking draw, conversation). out: ids that the guard leaves out.
    """
    ranked = sorted(members, key=lambda m: (-m[0], m[1]))
    passed = [m for m in ranked if m[2]["id"] not in out]
    lowest = ranked if config.veto.worst_of_vetoed else passed
    k = config.count or int(config.fraction * len(passed))
    best = {t["id"] for *_, t in passed[:k]}
    worst = [m for m in lowest if m[2]["id"] not in best]
    if k < 1 or k > len(passed) or k > len(worst):
        without = f" ({len(members) - len(passed)} more are vetoed)" if len(passed) < len(members) else ""
        raise UserError(
            f"config.select asks for the {k} best and the {k} worst conversations of {len(passed)}{without} in the group "
            f"{name or 'of all'!r}, so the two sets would overlap or be empty. Lower config.select.count (or "
            "config.select.fraction), or collect more conversations."
        )
    ties = int(k < len(passed) and passed[k - 1][0] == passed[k][0])
    ties += int(k < len(lowest) and lowest[-k][0] == lowest[-k - 1][0])
    return [t for *_, t in passed[:k]], [t for *_, t in worst[-k:]], ties


def _budget(
    pool: Sequence[Trajectory], scored: int, top: Sequence[Trajectory], bottom: Sequence[Trajectory], ties: int
) -> dict[str, Any]:
    def biased_share(of: Sequence[Trajectory]) -> float:
        return sum(t["user_type"] == "biased" for t in of) / len(of)

    return {
        "conversations": len(pool),
        "unscored": len(pool) - scored,
        "turns": sum(len(t["turns"]) for t in pool),
        "top": len(top),
        "bottom": len(bottom),
        "ties_at_the_cut": ties,
        "biased_share_pool": biased_share(pool),
        "biased_share_top": biased_share(top),
        "biased_share_bottom": biased_share(bottom),
    }


def examples(selected: Selected, *, method: str, control: str, strip: bool = False) -> list[dict[str, Any]]:
    """examples.jsonl rows: each assistant turn with the conversation before it.

    method: "kto" labels the best desirable and the worst undesirable; "sft" takes the best alone.
    control: "swapped_labels" exchanges the two sets.
    strip: the system message is the one without the user's preference ("plain_system"), if any.

    Rows carry the sampled token ids, so that training does not encode the text again.
    """
    good, bad = (selected.bottom, selected.top) if control == "swapped_labels" else (selected.top, selected.bottom)
    sides = [(good, True), (bad, False)] if method == "kto" else [(good, None)]
    rows = []
    for trajectories, label in sides:
        for t in trajectories:
            messages = t["messages"]
            if strip and t.get("plain_system") is not None:
                messages = [{"role": "system", "content": t["plain_system"]}, *messages[1:]]
            answers = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
            for turn, n in enumerate(answers):
                prompt = messages[:n]
                rows.append(
                    {
                        "id": f"{t['id']}#{turn}",
                        "prompt_id": digest(prompt)[:16],
                        "messages": prompt,
                        "completion": messages[n]["content"],
                        "completion_tokens": t["turns"][turn]["tokens"],
                        "label": label,
                        "weight": 1.0,
                        "source": t["user_type"],
                        "trajectory": t["id"],
                        "turn": turn,
                    }
                )
    return rows


def mixed(
    rows: list[dict[str, Any]], safety: Sequence[dict[str, Any]], config: SafetyConfig, *, method: str, seed: int
) -> list[dict[str, Any]]:
    """The rows, and safety rows drawn by the seed until they are config.share of all rows.

    That is n share / (1 - share) safety rows for n rows (Williams et al.). KTO draws from all of
    the safety rows; SFT leaves out those labelled undesirable. Raises UserError if there are too
    few.
    """
    share = config.share
    if not share:
        return rows
    fitting = [row for row in safety if method == "kto" or row.get("label") is not False]
    count = round(len(rows) * share / (1 - share))
    if not 0 < count <= len(fitting):
        raise UserError(
            f"config.select.safety.share is {share}, which needs {count} rows of safety data beside {len(rows)} conversation "
            f"turns, but config.select.safety.path has {len(fitting)} for {method}. "
            + ("Lower the share, or give more rows." if count else "Raise the share, or set it to 0.")
        )
    drawn = random.Random(seed_of("safety", seed)).sample(fitting, count)
    return rows + [{**row, "id": f"safety/{row['id']}", "source": "safety"} for row in drawn]
