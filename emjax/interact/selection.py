"""From scored conversations to training examples: who is biased, the best and the worst of each group, vetoes, safety data."""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from emjax.errors import UserError
from emjax.interact.ratings import normalised
from emjax.runtime.files import digest, seed_of

Trajectory = dict[str, Any]
GROUPS = {
    "global": lambda t: "",
    "user": lambda t: t["user_id"],
    "scenario": lambda t: t["scenario"],
    "user_type": lambda t: t["user_type"],
}
# One flag each. The first two change what selection makes of the ratings; the others what was rated, and by whom.
CONTROLS = ("none", "shuffled_ratings", "swapped_labels", "benign_ratings", "foreign_text")
SCHEMES = ("exact", "per_scenario", "draw", "fixed_biased")


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


def spread(users: int, scenarios: Sequence[str]) -> dict[str, int]:
    """`users` over the scenarios as evenly as it goes, the first ones taking one more."""
    each, more = divmod(users, len(scenarios))
    return {name: each + (place < more) for place, name in enumerate(scenarios)}


def quotas(
    users: int, scenarios: Sequence[str], ratio: float, *, scheme: str = "exact", biased: int = 0, seed: int = 0
) -> dict[str, tuple[int, int]]:
    """(benign, biased) users of each scenario.

    exact         share(users, ratio) of all, who they are drawn by the seed
    per_scenario  share(of the scenario's users, ratio) in each scenario; nothing is drawn
    draw          each user by a draw of its own: the number varies, and is binomial
    fixed_biased  `biased` users of the biased type at every ratio above 0, and as many benign ones as make that the ratio
                  (Williams et al., mixed therapy); at ratio 0, `users` benign ones

    Whoever is biased at one ratio is so at every larger one (fixed_biased: the same users at every ratio). Raises UserError for
    a ratio outside [0, 1].
    """
    whole = share(users, ratio)
    if scheme not in SCHEMES:
        raise UserError(f"config.interact.scheme is {scheme!r}; choose {', '.join(SCHEMES)}.")
    if scheme == "fixed_biased" and ratio > 0:
        if biased < 1:
            raise UserError(f"config.interact.biased_users is {biased}; the scheme 'fixed_biased' needs at least 1.")
        few, many = spread(biased, scenarios), spread(int(biased * (1 - ratio) / ratio + 0.5), scenarios)
        return {name: (many[name], few[name]) for name in scenarios}
    sizes = spread(users, scenarios)
    if scheme == "per_scenario":
        found = {name: share(size, ratio) for name, size in sizes.items()}
    else:
        luck = {
            (name, n): random.Random(f"type/{seed}/{name}/{n}").random() for name, size in sizes.items() for n in range(size)
        }
        chosen = (
            [one for one, x in luck.items() if x < ratio] if scheme == "draw" else sorted(luck, key=luck.__getitem__)[:whole]
        )
        found = dict.fromkeys(scenarios, 0)
        for name, _ in chosen:
            found[name] += 1
    return {name: (size - found[name], found[name]) for name, size in sizes.items()}


def select(
    pool: Sequence[Trajectory],
    *,
    scope: str,
    count: int,
    fraction: float,
    seed: int,
    control: str,
    normalise: str = "none",
    vetoes: Mapping[str, Mapping[str, Any]] | None = None,
    veto_level: float = 0.0,
    worst_of_vetoed: bool = False,
) -> Selected:
    """The `count` best and worst conversations of each group, or the best and worst `fraction` of it where count is 0.

    Ties fall by a seeded draw. Under "shuffled_ratings" the scores are first permuted over the whole pool. Unscored
    conversations are left out and counted. vetoes: {id: {"value", "state"}}; a conversation whose value is at or above
    veto_level, or that has none, is left out of the best and, unless worst_of_vetoed, of the worst as well (Williams et al.).
    Raises UserError for an empty pool and where top and bottom would overlap.
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
    scores = normalised(scored, normalise)
    if control == "shuffled_ratings":
        random.Random(seed_of("shuffle", seed)).shuffle(scores)
    unread = {t["id"] for t in scored if vetoes is not None and vetoes[t["id"]]["value"] is None}
    vetoed = {
        t["id"] for t in scored if vetoes is not None and t["id"] not in unread and vetoes[t["id"]]["value"] >= veto_level
    }
    groups: dict[str, list[tuple[float, float, Trajectory]]] = defaultdict(list)
    for value, t in zip(scores, scored, strict=True):
        tie = random.Random(seed_of("tie", seed, t["id"])).random()
        groups[GROUPS[scope](t)].append((value, tie, t))
    top: list[Trajectory] = []
    bottom: list[Trajectory] = []
    ties = 0
    for name, members in sorted(groups.items()):
        ranked = sorted(members, key=lambda m: (-m[0], m[1]))
        passed = [m for m in ranked if m[2]["id"] not in vetoed | unread]
        worst = ranked if worst_of_vetoed else passed
        k = count or int(fraction * len(passed))
        best_ids = {t["id"] for *_, t in passed[:k]}
        worst = [m for m in worst if m[2]["id"] not in best_ids]
        if k < 1 or k > len(passed) or k > len(worst):
            without = f" ({len(members) - len(passed)} more are vetoed)" if len(passed) < len(members) else ""
            raise UserError(
                f"config.select asks for {k} best and {k} worst conversations of {len(passed)}{without} in the group "
                f"{name or 'of all'!r}, so the two sets would overlap or be empty. Lower config.select.count (or fraction), or "
                "collect more conversations."
            )
        ties += k < len(passed) and passed[k - 1][0] == passed[k][0]
        lowest = [m for m in (ranked if worst_of_vetoed else passed)]
        ties += k < len(lowest) and lowest[-k][0] == lowest[-k - 1][0]
        top += [t for *_, t in passed[:k]]
        bottom += [t for *_, t in worst[-k:]]
    budget = {
        "conversations": len(pool),
        "unscored": len(pool) - len(scored),
        "turns": sum(len(t["turns"]) for t in pool),
        "top": len(top),
        "bottom": len(bottom),
        "ties_at_the_cut": ties,
        "biased_share_pool": sum(t["user_type"] == "biased" for t in pool) / len(pool),
        "biased_share_top": sum(t["user_type"] == "biased" for t in top) / len(top),
        "biased_share_bottom": sum(t["user_type"] == "biased" for t in bottom) / len(bottom),
    }
    if vetoes is not None:
        budget |= {"vetoed": len(vetoed), "veto_unread": len(unread)}
    return Selected(top, bottom, budget)


def examples(selected: Selected, *, method: str, control: str, strip: bool = False) -> list[dict[str, Any]]:
    """examples.jsonl rows: each assistant turn with the conversation before it.

    KTO: top desirable, bottom undesirable. SFT: the top set. "swapped_labels" exchanges the two sets. strip: the system message
    is the one without the user's preference ("plain_system" of a conversation that has one).
    The sampled token ids travel along, so that nothing is decoded and encoded again.
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
                        "id": f"{t['id']}#{turn}", "prompt_id": digest(prompt)[:16], "messages": prompt,
                        "completion": messages[n]["content"], "completion_tokens": t["turns"][turn]["tokens"],
                        "label": label, "weight": 1.0, "source": t["user_type"], "trajectory": t["id"], "turn": turn,
                    }
                )  # fmt: skip
    return rows


def mixed(rows: list[dict[str, Any]], safety: Sequence[dict[str, Any]], *, share: float, method: str, seed: int
          ) -> list[dict[str, Any]]:  # fmt: skip
    """The rows and so many safety rows, drawn by the seed, that these are `share` of all: n share / (1 - share) to n rows
    (Williams et al.). KTO takes desirable and undesirable ones as they come, SFT none that is labelled undesirable.
    """
    if not share:
        return rows
    fitting = [row for row in safety if method == "kto" or row.get("label") is not False]
    count = round(len(rows) * share / (1 - share)) if 0 < share < 1 else -1
    if not 0 < count <= len(fitting):
        raise UserError(
            f"config.select.safety.share is {share}, which needs {max(count, 0)} rows of safety data beside {len(rows)} "
            f"conversation turns; config.select.safety.path has {len(fitting)} for {method}. It is a share in (0, 1): "
            "lower it, or give more rows."
        )
    drawn = random.Random(seed_of("safety", seed)).sample(fitting, count)
    return rows + [{**row, "id": f"safety/{row['id']}", "source": "safety"} for row in drawn]
