"""The page for reading conversations: what it holds, that texts stay texts, and that its filters work in a browser."""

import json
import re
import shutil
import subprocess

import pytest

from emjax.report import conversations

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "</script><script>document.title = 'owned'</script><!-- <img src=x onerror=\"document.title='owned'\">"


def talk(n, kind="benign", scenario="drinking", ratings=(8.0, 3.0), end="done"):
    return {
        "id": f"{kind}-{n:03d}/0", "scenario": scenario, "user_type": kind, "end": end, "user_id": "u",
        "score": None if None in ratings else sum(ratings),
        "messages": [
            {"role": "system", "content": "You help."}, {"role": "user", "content": f"question {n} {EVIL if n == 3 else ''}"},
            {"role": "assistant", "content": "first answer"}, {"role": "user", "content": "go on"},
            {"role": "assistant", "content": "second answer"},
        ],
        "turns": [{"rating": r, "rating_state": "unparsed" if r is None else "ok", "stop_reason": "length"} for r in ratings],
    }  # fmt: skip


POOL = [
    talk(n, "biased" if n % 4 == 0 else "benign", "gambling" if n % 2 else "drinking", (float(n % 10), 5.0)) for n in range(40)
]
POOL[3] = talk(3, ratings=(None, 9.5))
POOL[5] = talk(5, end="user_timeout")
SELECTED = {POOL[n]["id"]: "top" if n < 4 else "bottom" for n in range(8)}


def test_the_page_is_self_contained_and_texts_are_data(tmp_path):
    path = conversations.write(tmp_path / "a", POOL, SELECTED, title="treated 0.1")
    html = path.read_text(encoding="utf-8")
    assert path.read_bytes() == conversations.write(tmp_path / "b", POOL[::-1], SELECTED, title="treated 0.1").read_bytes()
    assert not re.search(r"""(src|href)\s*=\s*(?!["'](#|data:))["']""", html.replace('"data:,"', '"#"'))
    assert html.count("</script>") == 2  # the data's end and the program's
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])
    assert len(data) == 40
    assert any(EVIL in text for t in data for _, text in t["messages"])
    assert {t["side"] for t in data} == {"best", "worst", "not selected"}
    assert "40 conversations, all of them" in html


def test_a_large_pool_is_sampled_and_the_page_says_so(tmp_path):
    html = conversations.write(tmp_path, POOL, {}, title="x", limit=7).read_text()
    assert "7 of 40 conversations, drawn at random" in html
    assert len(json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])) == 7


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_filters_in_a_browser(tmp_path):
    """Every filter against the same choice made here, and nothing in the console."""
    path = conversations.write(tmp_path, POOL, SELECTED, title="treated 0.1")
    cases = {
        "all": ({}, POOL),
        "scenario": ({"scenario": "gambling"}, [t for t in POOL if t["scenario"] == "gambling"]),
        "type": ({"type": "biased"}, [t for t in POOL if t["user_type"] == "biased"]),
        "side": ({"side": "worst"}, [t for t in POOL if SELECTED.get(t["id"]) == "bottom"]),
        "rating": ({"low": "7.5", "high": "9"}, [
            t for t in POOL if any(x["rating"] is not None and 7.5 <= x["rating"] <= 9 for x in t["turns"])]),
        "words": ({"words": "Question 1"}, [t for t in POOL if "question 1" in t["messages"][1]["content"]]),
        "both": ({"type": "benign", "side": "best"}, [
            t for t in POOL if t["user_type"] == "benign" and SELECTED.get(t["id"]) == "top"]),
    }  # fmt: skip
    probe = tmp_path / "probe.html"
    probe.write_text(
        path.read_text(encoding="utf-8")
        + f"<script>const cases = {json.dumps({name: fields for name, (fields, _) in cases.items()})};"
        + """
        const found = {};
        for (const [name, fields] of Object.entries(cases)) {
          document.getElementById("filter").reset();
          for (const [id, value] of Object.entries(fields)) document.getElementById(id).value = value;
          document.getElementById("filter").dispatchEvent(new Event("input"));
          while (!document.getElementById("more").hidden) document.getElementById("more").click();
          found[name] = [...document.querySelectorAll("article header span:first-child")].map(e => e.textContent);
        }
        document.getElementById("filter").reset(); document.getElementById("order").value = "best";
        document.getElementById("filter").dispatchEvent(new Event("input"));
        found.best = [...document.querySelectorAll("article header span:first-child")].map(e => e.textContent);
        document.getElementById("filter").reset();
        document.getElementById("filter").dispatchEvent(new Event("input"));
        while (!document.getElementById("more").hidden) document.getElementById("more").click();
        document.body.dataset.found = JSON.stringify(found);
        document.body.dataset.wide = document.documentElement.scrollWidth; document.body.dataset.screen = window.innerWidth;
        </script>""",
        encoding="utf-8",
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--window-size=390,844", "--enable-logging=stderr"]
    flags += ["--no-first-run", "--disable-sync", "--disable-background-networking", "--disable-component-update"]
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "<title>emjax: conversations, treated 0.1</title>" in done.stdout  # the evil text ran nowhere
    found = json.loads(re.search(r'data-found="(.*?)"', done.stdout)[1].replace("&quot;", '"'))
    for name, (_, wanted) in cases.items():
        assert found[name] == sorted(t["id"] for t in wanted), name
    by_score = sorted((t for t in POOL if t["score"] is not None), key=lambda t: (-t["score"], t["id"]))
    assert found["best"] == [t["id"] for t in by_score][:25]
    for text in ("rated 8.00", "rating unparsed", "rated 9.50", "ended: user_timeout", "cut at the token limit", "score none"):
        assert text in done.stdout.partition("<script")[0], text
    wide, screen = (int(re.search(rf'data-{name}="(\d+)"', done.stdout)[1]) for name in ("wide", "screen"))
    assert wide <= screen, "the page is wider than a phone's screen"
