"""The benchmark that docs/benchmarks.md shows, outside the package, from its plan to its report."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from emjax.worlds.micro.offline import CHECKPOINT

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(tmp_path):
    """start(flags): main.py with the page's module and config file, as a user saves them; (exit code, stdout, stderr)."""
    module, config = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "benchmarks.md").read_text(), re.DOTALL)
    (tmp_path / "quiz.py").write_text(module)
    (tmp_path / "quiz_config.py").write_text(config)

    def start(*flags):
        command = [
            sys.executable, "main.py", "--config", f"{tmp_path / 'quiz_config.py'}:{CHECKPOINT}", "--workdir", tmp_path / "run",
            "--config.eval.benchmarks=('quiz',)", "--config.eval.metric=accuracy", "--config.model.dtype=float32",
            "--config.engine.slots=4", "--config.engine.cache_length=320", "--config.mesh.fsdp=1", "--config.mesh.data=0",
            f"--config.eval.quiz.path={tmp_path / 'quiz.jsonl'}", "--config.eval.quiz.draw.temperature=0", *flags,
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        return done.returncode, done.stdout, done.stderr

    return start


def test_plan_run_and_report(start, tmp_path):
    code, plan, error = start("--dry_run")
    assert code == 0, error
    assert "quiz" in plan
    assert f"config.eval.quiz.path: there is no file {tmp_path / 'quiz.jsonl'}." in plan
    code, _, error = start()
    assert code == 2
    assert "there is no file" in error
    # What the micro-world's base knows: single-digit sums, and nothing of the second topic.
    rows = [{"id": f"sum-{x}", "topic": "sums", "question": f"what is {x} plus 1 ?", "answer": str(x + 1)} for x in range(6)]
    rows += [{"id": f"town-{x}", "topic": "towns", "question": f"what is {x} plus 2 ?", "answer": "town"} for x in range(3)]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, printed, error = start()
    assert code == 0, error
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    values = {row["subset"]: (row["value"], row["n"]) for row in results["rows"] if row["metric"] == "accuracy"}
    assert values["towns"] == (0.0, 3)
    assert values["sums"][0] > 80
    assert results["data"]["quiz"]["rows"] == {"sums": 6, "towns": 3}
    assert {row["judge"] for row in results["rows"]} == {"rule"}
    assert "custom:quiz" in printed
    assert "custom:quiz" in (tmp_path / "run" / "report" / "index.html").read_text()
