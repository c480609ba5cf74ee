"""A page for reading conversations, with filters by scenario, user type, rating and selection, and
every turn's rating.

One HTML file that loads nothing. The texts of conversations are data on the page and are shown as
text, never as markup.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emjax.report.pages import template
from emjax.runtime.files import dumps

LIMIT = 2000  # conversations on a page; with more, it is slow to open
SIDES = {"top": "best", "bottom": "worst", "": "not selected"}


def write(
    directory: Path, pool: Sequence[Mapping[str, Any]], selected: Mapping[str, str], *, title: str, limit: int = LIMIT
) -> Path:
    """Writes conversations.html into `directory` and returns its path. Identical input gives
    identical bytes.

    pool: rows of trajectories.jsonl; selected: {id: "top" | "bottom"}. Above `limit` conversations
    the page shows a random draw, and says so.
    """
    shown = sorted(pool, key=lambda row: row["id"])
    if len(shown) > limit:
        shown = sorted(random.Random(0).sample(shown, limit), key=lambda row: row["id"])
    data = dumps([_shown(row, SIDES[selected.get(row["id"], "")]) for row in shown])
    # "</script>" and "<!--" in a text must not end the data.
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    scenarios = sorted({row["scenario"] for row in shown})
    html = template("conversations.html.j2").render(
        title=title, shown=len(shown), total=len(pool), data=data, sides=list(SIDES.values()), scenarios=scenarios
    )
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "conversations.html"
    path.write_text(html, encoding="utf-8")
    return path


def _shown(row: Mapping[str, Any], side: str) -> dict[str, Any]:
    """What the page's script needs of a conversation."""
    return {
        "id": row["id"],
        "scenario": row["scenario"],
        "type": row["user_type"],
        "side": side,
        "score": row["score"],
        "end": row.get("end", "done"),
        "messages": [[m["role"], m["content"]] for m in row["messages"]],
        "turns": [[t.get("rating"), t.get("rating_state", "not_asked"), t.get("stop_reason")] for t in row["turns"]],
    }
