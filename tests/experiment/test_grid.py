"""A grid of experiments: order, shared bases, gathering, pooling over seeds. Its cells are stand-ins that train nothing."""

import json
from pathlib import Path

import pytest

from emjax import presets
from emjax.errors import UserError
from emjax.eval.benchmarks import mask
from emjax.eval.score import score
from emjax.experiment.grid import grid
from emjax.runtime.files import digest, write_lines
from emjax.runtime.store import Store

WORLDS, SEEDS = (0, 1, 2), (0, 1)


def items(world, seed, arm):
    """Treated lies on the first half of a cluster's four items, on one more where the seed is 1; after two rounds on all."""
    lies = {"vanilla": 0, "control": 0, "treated": 2 + seed, "control, round 2": 1, "treated, round 2": 4}[arm]
    return [
        {
            "id": f"{world}/{c}/{i}", "benchmark": "mask", "subset": "all", "state": "ok", "belief": "A", "ground_truth": "A",
            "result": -1 if i < lies else 1, "result_at_k": None, "cluster": str(c), "verdicts": [],
        }
        for c in range(5)
        for i in range(4)
    ]  # fmt: skip


class Runs:
    """Runs a cell, and notes which."""

    def __init__(self, missed=()):
        self.ran, self.missed = [], missed

    def __call__(self, chosen, workdir, store):
        return getattr(self, chosen.config.experiment)(chosen.config, workdir, store)

    def pretrain(self, config, workdir, store):
        made = store.run("pretrain", {"seed": config.seed}, [], lambda d: (d / "world").write_text(str(config.seed)))
        self.ran.append(("pretrain", config.seed))
        workdir.mkdir(parents=True, exist_ok=True)
        gate = {"ok": config.seed not in self.missed}
        (workdir / "gates.json").write_text(json.dumps({"neutral belief": gate}))
        return made.directory

    def interaction(self, config, workdir, store):
        world = int((Path(config.model.path) / "world").read_text())
        self.ran.append(("interaction", world, config.seed))
        workdir.mkdir(parents=True, exist_ok=True)
        found, stages = {}, {}
        for arm in ("vanilla", "control", "treated", "control, round 2", "treated, round 2"):
            of = items(world, config.seed, arm)
            stage = store.run(
                "evaluate", {"of": digest(of), "arm": arm}, [], lambda d, of=of: write_lines(d / "mask.jsonl", of)
            )
            found[arm], stages[arm] = of, {"evaluate": stage.hash}
        rows = []
        for name, of in found.items():
            arm = name.partition(",")[0]
            about = {
                "method": "kto", "arm": arm, "label": arm, "ratio": 0.1, "step": None, "judge": "exact",
                "round": 0 if arm == "vanilla" else 2 if name != arm else 1,
                "model": config.model.path, "seed": config.seed, "pretrain_seed": world,
            }  # fmt: skip
            base = found["control" if name == arm else "control, round 2"]
            rows += score(of, {"control": base} if arm == "treated" else {}, about, mask, mask.Config())
        (workdir / "results.json").write_text(json.dumps({"rows": rows}))
        (workdir / "stages.json").write_text(json.dumps(stages))


def config(worlds=WORLDS):
    bases = {f"world{w}": presets.pretraining() for w in worlds}
    cells = {f"kto_{w}_{s}": presets.interaction("micro", method="kto", biased_ratio=0.1) for w in worlds for s in SEEDS}
    for name, cell in bases.items():
        cell.seed = int(name.removeprefix("world"))
    for name, cell in cells.items():
        _, world, seed = name.split("_")
        cell.seed, cell.model.path = int(seed), f"cell:world{world}"
    return presets.many(cells | bases, {"kto": tuple(cells)})


def run(config, workdir, store, runs):
    grid(presets.read(config), workdir, store, runs)


def test_cells_run_in_order_and_are_gathered_and_pooled(tmp_path):
    runs, workdir, store = Runs(), tmp_path / "run", Store(tmp_path / "store")
    run(config(), workdir, store, runs)
    assert runs.ran[:3] == [("pretrain", w) for w in WORLDS]
    assert runs.ran[3:] == [("interaction", w, s) for w in WORLDS for s in SEEDS]
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    assert {row["cell"] for row in rows} == {f"kto_{w}_{s}" for w in WORLDS for s in SEEDS}
    assert {row["model"] for row in rows} == {f"cell:world{w}" for w in WORLDS}  # not where the store put it
    pooled = json.loads((workdir / "pooled.json").read_text())["rows"]
    change, second = [r for r in pooled if (r["arm"], r["metric"], r["versus"]) == ("treated", "honest", "control")]
    assert (change["round"], second["round"], second["value"]) == (1, 2, -75)
    # Two and three of four items are lies under seeds 0 and 1, in each of three worlds: the mean is -62.5 points.
    assert change["value"] == pytest.approx(-62.5)
    assert change["ci95"][0] < -62.5 < change["ci95"][1]
    assert (change["pool"], change["seeds"], change["clusters"]) == ("kto", 3, 15)
    assert change["by_cell"] == {f"kto_{w}_{s}": -50.0 - 25 * s for w in WORLDS for s in SEEDS}
    assert change["levels"] == [37.5, 100]  # of treated and control on the items that both have
    levels = [r["value"] for r in pooled if (r["arm"], r["metric"], r["versus"]) == ("control", "honest", None)]
    assert levels == [100, 75]
    before = (workdir / "pooled.json").read_bytes()
    run(config(), workdir, store, runs)
    assert (workdir / "pooled.json").read_bytes() == before
    times = [json.loads(line) for line in (workdir / "times.jsonl").read_text().splitlines()]
    assert [t["cell"] for t in times] == 2 * [*(f"world{w}" for w in WORLDS), *(f"kto_{w}_{s}" for w in WORLDS for s in SEEDS)]


def test_bases_that_missed_a_gate_are_pooled_beside_those_that_passed(tmp_path):
    run(config(), tmp_path / "run", Store(tmp_path / "store"), Runs(missed=(1,)))
    pooled = json.loads((tmp_path / "run" / "pooled.json").read_text())["rows"]
    found = {
        row["pool"]: (row["seeds"], set(row["by_cell"]))
        for row in pooled
        if (row["arm"], row["metric"], row["versus"], row["round"]) == ("treated", "honest", "control", 1)
    }
    every = {f"kto_{w}_{s}" for w in WORLDS for s in SEEDS}
    passed = {name for name in every if not name.startswith("kto_1")}
    assert found == {"kto": (3, every), "kto, bases that passed the gates": (2, passed)}


def test_one_world_is_pooled_over_its_seeds(tmp_path):
    run(config(worlds=(4,)), tmp_path / "run", Store(tmp_path / "store"), Runs())
    pooled = json.loads((tmp_path / "run" / "pooled.json").read_text())["rows"]
    change, _ = [r for r in pooled if (r["arm"], r["metric"], r["versus"]) == ("treated", "honest", "control")]
    assert (change["seeds"], change["clusters"], change["value"]) == (2, 5, -62.5)


def test_a_grid_names_what_is_wrong_with_it_before_it_starts(tmp_path):
    runs = Runs()
    bad = config()
    bad.pools.kto = ("kto_0_0", "kto_9_9")
    with pytest.raises(UserError, match=r"config\.pools\.kto names 'kto_9_9'"):
        run(bad, tmp_path / "run", Store(tmp_path / "store"), runs)
    bad = config()
    bad.cells["kto_0_0"].model.path = "cell:kto_0_1"
    with pytest.raises(UserError, match=r"config\.cells\.kto_0_0\.model\.path is 'cell:kto_0_1'"):
        run(bad, tmp_path / "run", Store(tmp_path / "store"), runs)
    assert not runs.ran
    assert not (tmp_path / "run").exists()


def test_a_workdir_with_the_old_names_is_explained(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({"experiment": "grid", "cells": {"kto-0-0": {}, "world0": {}}}))
    with pytest.raises(UserError, match=r"such as 'kto-0-0', which is now 'kto_0_0': choose a new --workdir"):
        run(config(), workdir, Store(tmp_path / "store"), Runs())
    bad = config()
    with bad.unlocked():
        bad.cells["kto-0-0"] = bad.cells["kto_0_0"]
    with pytest.raises(UserError, match=r"config\.cells holds 'kto-0-0'; a cell's name needs letters"):
        presets.read(bad)
