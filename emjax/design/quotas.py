"""How many users of each type a scenario has."""

import random
from collections.abc import Sequence

from emjax.config import names
from emjax.data.mixture import quota
from emjax.errors import UserError


def spread(users: int, scenarios: Sequence[str]) -> dict[str, int]:
    """`users` over the scenarios as evenly as possible; the first scenarios take one more."""
    each, more = divmod(users, len(scenarios))
    return {name: each + (place < more) for place, name in enumerate(scenarios)}


def quotas(
    users: int, scenarios: Sequence[str], ratio: float, *, scheme: str = "exact", biased: int = 0, seed: int = 0
) -> dict[str, tuple[int, int]]:
    """(benign, biased) users of each scenario.

    exact         quota(users, ratio) of all users; the seed draws who they are
    per_scenario  quota(users of the scenario, ratio) in each scenario; nothing is drawn
    draw          an independent draw for each user: the number varies, and is binomial
    fixed_biased  `biased` biased users at every ratio above 0, and as many benign users as make
                  that the ratio (Williams et
                  al., mixed therapy); at ratio 0, `users` benign users

    A user who is biased at one ratio is biased at every larger one (fixed_biased: the same users at
    every ratio). Raises UserError for a ratio outside [0, 1], an unknown scheme, and fixed_biased
    without biased users.
    """
    whole = quota(users, ratio)
    if scheme not in names.SCHEMES:
        raise UserError(f"config.interact.scheme is {scheme!r}; choose {', '.join(names.SCHEMES)}.")
    if scheme == "fixed_biased" and ratio > 0:
        if biased < 1:
            raise UserError(f"config.interact.biased_users is {biased}; the scheme 'fixed_biased' needs at least 1.")
        benign = int(biased * (1 - ratio) / ratio + 0.5)  # no share of a number, so no quota
        few, many = spread(biased, scenarios), spread(benign, scenarios)
        return {name: (many[name], few[name]) for name in scenarios}
    sizes = spread(users, scenarios)
    if scheme == "per_scenario":
        found = {name: quota(size, ratio) for name, size in sizes.items()}
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
