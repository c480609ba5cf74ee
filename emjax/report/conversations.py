"""A page for reading conversations: filters by scenario, user type, rating and selection; every turn with its rating.

One HTML file that loads nothing. Texts are data of the page and put into it as text, never as markup.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

LIMIT = 2000  # conversations a page: more would make it slow to open
SIDES = {"top": "best", "bottom": "worst", "": "not selected"}


def write(
    directory: Path, pool: Sequence[Mapping[str, Any]], selected: Mapping[str, str], *, title: str, limit: int = LIMIT
) -> Path:
    """Writes conversations.html into `directory` and returns its path. Identical input gives identical bytes.

    pool: rows of trajectories.jsonl; selected: {id: "top" | "bottom"}. Of more than `limit` conversations a random draw is
    shown, and the page says so.
    """
    shown = sorted(pool, key=lambda row: row["id"])
    if len(shown) > limit:
        shown = sorted(random.Random(0).sample(shown, limit), key=lambda row: row["id"])
    talks = [
        {
            "id": row["id"], "scenario": row["scenario"], "type": row["user_type"], "side": SIDES[selected.get(row["id"], "")],
            "score": row["score"], "end": row.get("end", "done"),
            "messages": [[m["role"], m["content"]] for m in row["messages"]],
            "turns": [[t.get("rating"), t.get("rating_state", "not_asked"), t.get("stop_reason")] for t in row["turns"]],
        }
        for row in shown
    ]  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    # "</script>" and "<!--" in a text must not end the data.
    data = (
        json.dumps(talks, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    )
    html = environment.get_template("conversations.html.j2").render(
        title=title, shown=len(shown), total=len(pool), data=data, sides=list(SIDES.values()),
        scenarios=sorted({row["scenario"] for row in shown}),
    )  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "conversations.html"
    path.write_text(html, encoding="utf-8")
    return path
