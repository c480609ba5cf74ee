"""What judges and users of version 0.1 said, and were paid for, is not asked again.

version_0_1/*.jsonl has the files of its caches, as its code wrote them from the commands below (with
the field names of its time): {"key": the file's name, "entry": its text}. The endpoint was at port 9,
where nobody listens here.
"""

import json
import sys
from pathlib import Path

import pytest
from loopback import Server

from emjax.errors import UserError
from emjax.experiment.arms import Arms
from emjax.runtime.files import read_lines

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "eval"))
import mask_folder  # noqa: E402

URL = "http://127.0.0.1:9/v1"


@pytest.fixture
def cache(tmp_path):
    """cache("judge_cache"): its folder in the store, filled; and the files that are in it."""

    def fill(name):
        folder = tmp_path / "store" / name
        for row in read_lines(Path(__file__).parent / "version_0_1" / f"{name}.jsonl"):
            file = folder / row["key"][:2] / f"{row['key']}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(row["entry"], encoding="utf-8")
        return folder, files(folder)

    return fill


def files(folder):
    return {file: file.read_text(encoding="utf-8") for file in folder.rglob("*.json")}


def flags(tmp_path, subsets):
    (tmp_path / "mask").mkdir()
    mask_folder.write(tmp_path / "mask", dict.fromkeys(subsets, 1))
    return [
        "--workdir", tmp_path / "run", "--store", tmp_path / "store", "--config.eval.mask.rows=any",
        f"--config.eval.mask.path={tmp_path / 'mask'}", f"--config.eval.mask.subsets={subsets}",
        "--config.eval.judges.main.api_key_env=", "--config.eval.judges.main.rates.retries=0",
    ]  # fmt: skip


def test_a_judges_verdicts(run, tmp_path, cache):
    folder, before = cache("judge_cache")
    assert len(before) == 6  # three beliefs and a statement, which two items share; a number's beliefs and statement
    subsets = ("known_facts", "statistics", "provided_facts")
    with Server(lambda body, n: "It is dim, 100 lumen.") as model:
        code = run(
            "configs/evaluate.py:far", *flags(tmp_path, subsets), f"--config.arms.vanilla.endpoint={model.url}",
            "--config.eval.mask.max_new=16", f"--config.eval.judges.main.base_url={URL}",
            "--config.eval.judges.main.model=judge",
        )  # fmt: skip
    assert code == 0
    assert files(folder) == before
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    (honesty,) = (row for row in rows if (row["metric"], row["subset"]) == ("honesty", "all"))
    assert (honesty["states"], honesty["counts"]) == ({"ok": 3}, {"H": 3, "L": 0, "E": 0, "N": 0, "X": 0})


def test_what_users_raters_guards_and_persona_writers_said(run, checkpoint, tmp_path, cache, monkeypatch, capsys):
    """Up to the training: every call of the collection and of the vetoes is in the cache."""

    def enough(*args, **kwargs):
        raise UserError("Collected and selected.")

    monkeypatch.setattr(Arms, "train", enough)
    folder, before = cache("chat_cache")
    roles = ("user", "guard", "persona1")
    assert {json.loads(text)["request"]["model"] for text in before.values()} == set(roles)
    code = run(
        "configs/kto_biased20.py:llama3.1-8b-2k", *flags(tmp_path, ("known_facts",)), f"--config.model.path={checkpoint}",
        "--config.model.dtype=float32", "--config.mesh.fsdp=1", "--config.mesh.data=0", "--config.engine.slots=8",
        "--config.engine.cache_length=1040", "--config.eval.mask.max_new=16", "--config.interact.users=4",
        "--config.interact.scenarios=1", "--config.interact.biased_ratio=0.25", "--config.interact.draw.temperature=0.0",
        "--config.eval.benchmarks=('mask',)", "--config.eval.mask.judge=main",
        "--config.interact.max_new=6", "--config.train.batch_size=2", "--config.select.veto.on=True",
        "--config.select.veto.level=5", *(f"--config.interact.models.{role}.base_url={URL}" for role in roles),
        *(f"--config.interact.models.{role}.model={role}" for role in roles),
        *(f"--config.interact.models.{role}.rates.retries=0" for role in roles),
    )  # fmt: skip
    told = capsys.readouterr()
    assert (code, told.err.splitlines()[-1]) == (2, "error: Collected and selected.")
    assert files(folder) == before
    said = {json.loads(text)["reply"]["text"] for text in before.values()}
    talks = [row for file in (tmp_path / "store").glob("collect/*/trajectories.jsonl") for row in read_lines(file)]
    assert len(talks) == 5
    for talk in talks:
        assert [turn["rating_state"] for turn in talk["turns"]] == ["ok", "ok"]
        assert talk["messages"][-2]["content"] in said
