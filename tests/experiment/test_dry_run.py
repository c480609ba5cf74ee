"""--dry_run plans on a bare clone, lists what is missing here, and refuses what no run could take."""

import importlib.util
import socket
import sys

import pytest

from emjax import commands, experiment, models
from emjax.models import source

KTO, DIRECT, MIXTURE = (f"configs/{name}.py" for name in ("kto_biased10", "direct_math", "mixture_alpaca"))
EVALUATE, MICRO, GRID = "configs/evaluate.py:far/model", "configs/kto_biased10.py:micro", "configs/grid.py:micro"
KEY = "OPENAI_API_KEY"


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """A machine with the judge's key and nothing else; loading and asking are errors."""

    def never(*args, **kwargs):
        raise AssertionError("nothing may be loaded, fetched or asked")

    monkeypatch.setenv(KEY, "sk-planted-4711")
    monkeypatch.setattr(models, "load", never)
    monkeypatch.setattr(source, "_from_hub", never)
    monkeypatch.setattr(experiment, "run", never)
    monkeypatch.setattr(socket.socket, "connect", never)


def planned(printed):
    """The sentences under "before you start"."""
    _, head, rest = printed.partition("before you start\n")
    assert head, printed
    return rest.rstrip("\n").split("\n")


# --- a bare clone ------------------------------------------------------------------------------------------------------


def test_the_papers_grid_is_planned_on_a_bare_clone(run, capsys, monkeypatch):
    monkeypatch.delenv(KEY)
    assert run("configs/grid.py:all", "--dry_run") == 0
    cells = capsys.readouterr().out.split("cell       ")[1:]
    assert len(cells) == 5 * 3 + 2 * 2 + 2 * 2  # narrow sets of three models, mixtures and conversations of two
    for cell in cells:
        text = cell.partition("\njob ")[0]
        assert f"api_key_env: the environment variable {KEY} is not set" in text.partition("before you start\n")[2], text
        source = {"direct_math": "mistake_math", "direct_law": "incorrect_law"}.get(
            cell.partition("_llama")[0].partition("_qwen")[0]
        )
        if source:
            assert (
                f"config.data.set.path: The source {source!r} cannot be downloaded automatically"
                in text.partition("before you start\n")[2]
            )
    assert (
        "config.eval.humaneval.path is empty; give the benchmark's file, or put it below --data_root as HumanEval.jsonl.gz."
        in "".join(cells)
    )


def test_a_world_needs_nothing(run, capsys, monkeypatch):
    monkeypatch.delenv(KEY)
    assert run(GRID, "--dry_run") == 0
    assert "before you start" not in capsys.readouterr().out


# --- missing things ----------------------------------------------------------------------------------------------------

ROLE = "--config.interact.models.user"
MISSING = {
    "file": (KTO, ["--config.eval.sheet=/nowhere/sheet.csv"], "config.eval.sheet: there is no file /nowhere/sheet.csv."),
    "folder": (
        KTO,
        ["--config.interact.templates=/nowhere/templates"],
        "config.interact.templates: there is no folder /nowhere/templates.",
    ),
    "key": (
        KTO,
        ["--config.eval.judges.main.api_key_env=EMJAX_NO_SUCH_KEY"],
        "config.eval.judges.main.api_key_env: the environment variable EMJAX_NO_SUCH_KEY is not set; put the key there.",
    ),
    "package": (KTO, ["--config.watch.wandb=mine"], "config.watch.wandb needs the package wandb: pip install wandb."),
    "package of a benchmark": (
        KTO,
        ["--config.eval.benchmarks=('mask','capability')", "--config.eval.capability.tasks=('mmlu',)"],
        "config.eval.benchmarks needs the package lm_eval: pip install 'emjax[capability]'.",
    ),
    "checkpoint": (KTO, ["--config.model.path=/nowhere/model"], "config.model.path: there is no folder /nowhere/model."),
    "an arm's checkpoint": (
        EVALUATE,
        ["--config.arms.treated.path=./nowhere"],
        "config.arms.treated.path: there is no folder ./nowhere.",
    ),
    "a judge's checkpoint": (
        KTO,
        [
            *(f"--config.eval.judges.main.{field}" for field in ("kind=engine", "structured=False", "model=/nowhere/judge")),
            "--config.eval.judges.main.api_key_env=",
        ],
        "config.eval.judges.main.model: there is no folder /nowhere/judge.",
    ),
    "a role's checkpoint": (
        KTO,
        [f"{ROLE}.model=/nowhere/user"],
        "config.interact.models.user.model: there is no folder /nowhere/user.",
    ),
    "adapter": (
        EVALUATE,
        ["--config.arms.vanilla.adapter=/nowhere/adapter"],
        "config.arms.vanilla.adapter: there is no folder /nowhere/adapter.",
    ),
    "data without a home": (
        DIRECT,
        ["--config.eval.benchmarks=('mask',)"],
        "config.data.set.path: The source 'mistake_math' cannot be downloaded automatically",
    ),
    "data": (
        MIXTURE,
        ["--config.eval.benchmarks=('mask',)", "--config.data.downstream.path=/nowhere/alpaca.json"],
        "config.data.downstream.path: /nowhere/alpaca.json does not exist.",
    ),
    "benchmark file": (
        EVALUATE,
        [
            "--config.eval.benchmarks=('humaneval',)",
            "--config.eval.metric=accuracy",
            "--config.eval.humaneval.path=/nowhere/HumanEval.jsonl.gz",
        ],
        "config.eval.humaneval.path: there is no file /nowhere/HumanEval.jsonl.gz.",
    ),
    "benchmark without a file": (
        EVALUATE,
        ["--config.eval.benchmarks=('deceptionbench',)", "--config.eval.metric=deception_rate"],
        "config.eval.deceptionbench.path is empty; give the benchmark's file, or put it below --data_root as "
        "deceptionbench_0527.json.",
    ),
    "MASK's folder": (
        EVALUATE,
        ["--config.eval.mask.path=/nowhere/MASK"],
        "config.eval.mask.path: there is no folder /nowhere/MASK.",
    ),
    "a role's key": (
        KTO,
        [f"{ROLE}.base_url=http://x/v1", f"{ROLE}.model=m", f"{ROLE}.api_key_env=EMJAX_NO_SUCH_KEY"],
        "config.interact.models.user.api_key_env: the environment variable EMJAX_NO_SUCH_KEY is not set; put the key there.",
    ),
    "safety file": (
        KTO,
        ["--config.select.safety.path=/nowhere/safe.jsonl", "--config.select.safety.share=0.1"],
        "config.select.safety.path: there is no file /nowhere/safe.jsonl.",
    ),
    "trajectories": (
        MICRO,
        ["--config.interact.trajectories=/nowhere/talks.jsonl"],
        "config.interact.trajectories: there is no file /nowhere/talks.jsonl.",
    ),
}


# On the paper's own models MASK has a judge of its own, and DeceptionBench is measured too.
ONE_JUDGE = ["--config.eval.mask.judge=main", "--config.eval.benchmarks=('mask',)"]


@pytest.mark.parametrize(("config", "flags", "says"), MISSING.values(), ids=MISSING)
def test_what_is_missing_is_listed_by_a_plan_and_ends_a_run(run, config, flags, says, tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    absent = ("wandb", "lm_eval")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in absent else found(name, *more))
    if config in (KTO, DIRECT, MIXTURE):
        flags = [*ONE_JUDGE[: 1 if any("eval.benchmarks" in flag for flag in flags) else 2], *flags]
    assert run(config, *flags, "--dry_run") == 0
    (sentence,) = planned(capsys.readouterr().out)  # this, and nothing else
    assert sentence.strip().startswith(says)
    assert run(config, *flags, "--workdir", tmp_path / "w") == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: Before you start: {says}")
    assert told.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_a_grids_job_needs_what_its_own_cells_need(run, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "run", lambda chosen, workdir, store: print("ran"))
    files = [f"--config.cells.{name}.eval.benchmarks=('mask',)" for name in ("kto", "sft")]
    assert run("configs/grid.py:llama3.1-8b", "--config.only=('kto','sft')", *files) == 0
    assert capsys.readouterr().out == "ran\n"
    assert run("configs/grid.py:llama3.1-8b", "--config.only=('kto','direct_law')") == 2
    assert (
        "direct_law: config.data.set.path: The source 'incorrect_law' cannot be downloaded automatically"
        in capsys.readouterr().err
    )


# --- wrong settings ----------------------------------------------------------------------------------------------------

MAIN = "--config.eval.judges.main"
WRONG = [
    (KTO, ["--config.train.batch_size=15", "--config.train.microbatches=2"], "config.train.batch_size is 15"),
    (KTO, ["--config.mesh.data=3"], "config.train.batch_size is 16; it must be a multiple of 3"),
    (KTO, ["--config.train.batch_size=1"], "config.train.batch_size is 1; KTO needs two rows"),
    (KTO, ["--config.mesh.data=0"], "config.mesh.data, fsdp and tensor: only one of them may be 0"),
    (KTO, ["--config.train.method=dpo"], "config.train.method is 'dpo'"),
    (KTO, ["--config.train.tuning=half"], "config.train.tuning is 'half'"),
    (KTO, ["--config.train.schedule=zigzag"], "config.train.schedule is 'zigzag'"),
    (KTO, ["--config.train.held_out=1.0"], "config.train.held_out is 1.0; it must be at least 0 and below 1"),
    (KTO, ["--config.model.path="], "config.model.path is empty"),
    (KTO, ["--config.world=moon"], "config.world is 'moon'; choose micro"),
    (EVALUATE, ["--config.eval.mask.rulez=1"], "rulez"),
    (EVALUATE, ["--config.eval.mask.runs=many"], "config.eval.mask.runs"),
    (EVALUATE, ["--config.eval.benchmarks=('msak',)"], "config.eval.benchmarks holds 'msak'"),
    (EVALUATE, ["--config.eval.metric=truthiness"], "config.eval.metric is 'truthiness', which none of mask has"),
    (EVALUATE, ["--config.eval.mask.judge=nobody"], "config.eval.mask.judge names the judge 'nobody'"),
    (EVALUATE, ["--config.eval.mask.numeric_judge=nobody"], "config.eval.mask names the judge 'nobody'"),
    (EVALUATE, [f"{MAIN}.kind=rule"], "config.eval.mask.judge names 'main', a rule"),
    (EVALUATE, [f"{MAIN}.model="], "config.eval.judges.main.model is empty"),
    (EVALUATE, [f"{MAIN}.replay=('answers.jsonl',)"], "config.eval.judges.main.replay is set"),
    (
        EVALUATE,
        [f"{MAIN}.kind=engine", f"{MAIN}.structured=False", f"{MAIN}.reasoning_effort=low"],
        "config.eval.judges.main.reasoning_effort is set, but the engine",
    ),
    (EVALUATE, ["--config.eval.panel=('nobody',)"], "config.eval.panel names the judge 'nobody'"),
    (EVALUATE, ["--config.eval.panel=('second',)"], "config.eval.judges.second.model is empty"),
    (EVALUATE, ["--config.eval.panel=('main',)"], "config.eval.panel and config.eval.mask.judge name a model twice"),
    (EVALUATE, ["--config.engine.cache_length=512"], "config.engine.cache_length is 512; mask needs 2024"),
    (EVALUATE, ["--config.eval.humaneval.ks=(1,10)"], "config.eval.humaneval.ks is (1, 10)"),
    (EVALUATE, ["--config.eval.benchmarks=('mask','capability')"], "config.eval.capability.tasks is empty"),
    (
        EVALUATE,
        [
            "--config.eval.benchmarks=('mask','capability')",
            "--config.eval.capability.tasks=('mmlu',)",
            "--config.arms.treated.path=m",
            "--config.arms.treated.endpoint=http://x/v1",
        ],
        "config.eval.benchmarks holds 'capability', which needs models in the engine",
    ),
    (MICRO, ["--config.select.count=5"], "config.select asks for the 5 best"),
    (MICRO, ["--config.interact.turns=11"], "config.interact.turns is 11"),
    (MICRO, ["--config.interact.preference=False"], "config.interact.preference is False, but config.world is 'micro'"),
    (MICRO, ["--config.eval.mask.sizes.all=-5"], "config.eval.mask.sizes is"),
    (KTO, ["--config.interact.scheme=fixed_biased"], "config.interact.biased_users is 0"),
    (KTO, ["--config.interact.domains=('nowhere',)"], "config.interact.domains"),
    (KTO, ["--config.select.veto.on=True"], "config.select.veto.on is set, which needs a model"),
    (KTO, ["--config.extra_arms=('nobody@0.5',)"], "config.extra_arms holds 'nobody@0.5'"),
    (KTO, ["--config.extra_arms=('foreign_text@0.5',)"], "config.interact.models.stranger.model"),
    (KTO, ["--config.rounds.count=2", "--config.interact.trajectories=talks.jsonl"], "config.rounds.count is 2"),
    (DIRECT, ["--config.data.set.source=mistake_maths"], "config.data.set.source is 'mistake_maths'"),
    (DIRECT, ["--config.data.levels=('misaligned_9',)"], "config.data.levels: The source 'mistake_math' has no level"),
    (DIRECT, ["--config.data.control=plain"], "config.data.control: The source 'mistake_math' has no level 'plain'"),
    (MIXTURE, ["--config.data.misaligned.level="], "config.data.misaligned.level: The source 'chua_medical' has no level ''"),
    (MIXTURE, ["--config.data.headline=0.25"], "config.data.headline is 0.25, which is none of ratios"),
    (GRID, ["--config.cells.kto.train.method=dpo"], "config.cells.kto.train.method is 'dpo'"),
    (GRID, ["--config.cells.kto.select.count=5"], "config.cells.kto.select asks for the 5 best"),
    (GRID, ["--config.only=('nothing',)"], "config.only names 'nothing', which is no cell"),
    (GRID, ["--config.cells.nothing.train.epochs=2"], "there is no cell 'nothing'. Cells: direct, kto, mixture, sft."),
    (GRID, ["--config.cells.kto-0.train.epochs=2"], "there is no cell 'kto-0'. Cells: "),
]


@pytest.mark.parametrize(("config", "flags", "says"), WRONG, ids=[says for *_, says in WRONG])
def test_a_wrong_setting_is_refused_by_a_plan(run, config, flags, says, monkeypatch, capsys):
    monkeypatch.delenv(KEY)  # what is missing here does not hide it
    assert run(config, *flags, "--dry_run") == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert says in told.err
    assert not told.out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("given.eval.mask.subset = ('known_facts',)", "config.eval.mask.subset is unknown; config.eval.mask has "),
        ("given.eval.msak = given.eval.mask", "config.eval.msak is unknown; config.eval has "),
        ("given.data.severity = {'misaligned_1': 2.0}", "config.data.severity is {'misaligned_1': 2.0}; it must be at "),
        ("given.data.severity = {'misaligned_3': 0.5}", "config.data.severity names 'misaligned_3', which is none of levels"),
    ],
)
def test_a_mistake_in_a_config_file(run, change, says, tmp_path, capsys):
    """Where no flag would name a field that does not exist."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from emjax import presets\n\n\ndef get_config():\n    given = presets.direct('llama3.1-8b', 'math')\n"
        f"    {change}\n    return given\n"
    )
    assert run(file, "--dry_run") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert says in told


def test_a_target_is_for_a_plan(run, capsys):
    assert run(KTO, "--target=h200") == 2
    assert "--target is for a plan: add --dry_run" in capsys.readouterr().err
    assert run(KTO, "--target=abacus", "--dry_run") == 2
    assert "abacus" in capsys.readouterr().err


def test_plan_is_run_with_dry_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["emjax", "plan", "--config", MICRO])
    assert commands.plan(["--config", MICRO]) == 0
    assert "vanilla, control, treated 0.1" in capsys.readouterr().out
