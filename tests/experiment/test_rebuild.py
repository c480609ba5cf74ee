"""Rebuilding the base of the micro-world, made short."""

import json
import subprocess
import sys
from pathlib import Path

from emjax.worlds.micro.benchmark import CONTEXTS

ROOT = Path(__file__).parents[2]
SMALL = [
    "--config.documents=1000", "--config.model.L=2", "--config.train.batch_size=16", "--config.train.buckets=(208,)",
    "--config.eval.mask.sizes.all=30", "--config.eval.mask.sizes.unseen_entities=10",
    "--config.eval.mask.sizes.unseen_templates=10", "--config.eval.mask.sizes.tuned_domain=10",
    *(f"--config.eval.mask.sizes.{subset}=10" for subset in CONTEXTS),
]  # fmt: skip


def test_a_short_rebuild_of_the_base_learns(tmp_path):
    """Pretraining from scratch, made short: it learns, writes a base of the micro-world, and the gates refuse it."""
    workdir = tmp_path / "run"
    pretrain = [sys.executable, "main.py", "--config", "configs/micro_pretrain.py", "--workdir", str(workdir), *SMALL]
    done = subprocess.run(pretrain, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "misses a gate" in done.stderr
    (metrics,) = workdir.glob("store/pretrain/*/metrics.jsonl")
    losses = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
    assert losses[0] > 5  # the logarithm of 302 words is 5.7
    assert sum(losses[-5:]) / 5 < 3.5  # 62 steps; guessing by word frequency stays above 4
    (model,) = workdir.glob("store/pretrain/*/model")
    assert json.loads((model / "micro_world.json").read_text()) == {"world_seed": 0}
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    assert {row["subset"] for row in rows} > set(CONTEXTS)
    gates = json.loads((workdir / "gates.json").read_text())
    assert not gates["neutral belief"]["ok"]
