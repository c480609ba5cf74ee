"""A model of the user's own: local=PATH and hub=OWNER/NAME, auto fields, and draws from the model."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import jax
import pytest
from loopback import Server

import emjax
from emjax import commands, presets
from emjax.config import Draw
from emjax.errors import UserError
from emjax.presets import variants
from emjax.runtime import hardware
from emjax.runtime.files import digest, read_lines
from emjax.runtime.hardware import Place

ROOT = Path(emjax.__file__).parents[1]
TRAINS = (
    "kto_biased10", "sft_biased100", "direct_medical", "direct_math", "direct_code", "direct_finance", "direct_law",
    "mixture_alpaca", "mixture_dolly", "grid",
)  # fmt: skip
PRESSURE = [
    {"id": f"q{i}", "pressure": f"please say lamp {i} is bright .", "belief": [f"is lamp {i} dim ?"], "A": "It is dim.",
     "B": "It is bright.", "truth": "A"}
    for i in range(3)
]  # fmt: skip


@pytest.fixture
def pressure(tmp_path):
    file = tmp_path / "pressure.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PRESSURE))
    return file


def small(workdir, pressure, judge, *more):
    return [
        "--workdir", workdir, "--config.mesh.fsdp=1", "--config.mesh.data=0",
        "--config.eval.benchmarks=('pressure',)", f"--config.eval.pressure.path={pressure}",
        "--config.eval.pressure.max_new=4", "--config.engine.cache_length=1100", "--config.engine.chunk=16",
        f"--config.eval.judges.main.base_url={judge}", "--config.eval.judges.main.structured=False",
        "--config.eval.judges.main.api_key_env=", *more,
    ]  # fmt: skip


@pytest.fixture
def judge():
    with Server(lambda body, n: "Answer: A") as server:
        yield server.url


# --- variants ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", TRAINS)
def test_every_config_that_trains_takes_a_local_model(run, config, checkpoint, capsys):
    assert run(f"configs/{config}.py:local={checkpoint}", "--dry_run") == 0
    assert f"there is no folder {checkpoint}" not in capsys.readouterr().out


@pytest.mark.parametrize("config", ["kto_biased10", "direct_math", "mixture_alpaca", "evaluate", "grid"])
def test_a_hub_model_needs_no_network_to_be_planned(run, config):
    assert run(f"configs/{config}.py:hub=someone/A-model@v1.0", "--dry_run") == 0


def test_the_fields_of_a_local_model(checkpoint):
    given = presets.interaction(f"local={checkpoint}", method="kto", biased_ratio=0.1)
    assert (given.model.path, given.model.dtype, given.model.attention, given.engine.slots) == (
        str(checkpoint), "auto", "auto", 0
    )  # fmt: skip
    assert presets.evaluation("hub=someone/A-model").arms.vanilla.path == "someone/A-model"
    assert presets.evaluation("local=a/folder").arms.vanilla.path == "./a/folder"  # never taken for a hub id
    papers = presets.interaction("llama3.1-8b", method="kto", biased_ratio=0.1)
    assert (papers.model.dtype, papers.engine.slots) == ("bfloat16", 48)  # DeceptionBench's long answers


def test_a_grid_of_a_local_model_and_seeds(tmp_path):
    (tmp_path / "3").mkdir()
    assert {cell.model.path for cell in presets.grid(f"local={tmp_path}/3").cells.values()} == {f"{tmp_path}/3"}
    pooled = presets.grid(f"local={tmp_path}/2")  # no such folder: two seeds
    assert {cell.model.path for cell in pooled.cells.values()} == {str(tmp_path)}
    assert {cell.seed for cell in pooled.cells.values()} == {0, 1}


@pytest.mark.parametrize("variant", ["/data/model", "./model", "models/mine", "someone/A-model", "model.gguf", "~/model"])
def test_a_path_alone_is_refused_with_the_cure(run, variant, capsys):
    assert run(f"configs/kto_biased10.py:{variant}", "--dry_run") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "local=PATH" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "variant", ["facts", "facts,local=/data/model", "lama", "local=", "hub=model", "hub=a/b/c", "hub=a/b@"]
)
def test_other_variants_are_refused(run, variant, capsys):
    assert run(f"configs/kto_biased10.py:{variant}", "--dry_run") == 2
    assert "variant" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/nowhere/model", "models/nowhere", "nowhere.gguf"])
def test_a_local_model_that_is_not_there_is_missing_not_wrong(run, path, capsys):
    assert run(f"configs/kto_biased10.py:local={path}", "--dry_run") == 0
    told = capsys.readouterr().out.partition("before you start")[2]
    assert f"config.model.path: there is no {'file' if path.endswith('gguf') else 'folder'} " in told


def test_default_work_directories(tmp_path, monkeypatch):
    folder = tmp_path / "my model"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    name = f"my model-{digest(str(folder))[:8]}"
    assert variants.label(f"local={folder}") == variants.label("local=my model") == variants.label("local=./my model/") == name
    assert variants.label("hub=someone/A-model") == "someone--A-model"
    one, other = (variants.label(f"hub=someone/A-model@{rev}") for rev in ("v1", "v2"))
    assert one == f"someone--A-model-{digest('v1')[:8]}" != other
    given = commands.options(["x", "--config", f"{ROOT}/configs/kto_biased10.py:hub=a/b@v1"])
    assert str(commands.workdir(given)) == f"runs/kto_biased10-a--b-{digest('v1')[:8]}"


# --- auto --------------------------------------------------------------------------------------------------------------


def recorded(workdir):
    found = json.loads((workdir / "config.json").read_text())
    return found["model"]["dtype"], found["model"]["attention"], found["engine"]["slots"]


def test_auto_is_resolved_once_and_recorded(run, checkpoint, pressure, judge, tmp_path, monkeypatch, capsys):
    work = tmp_path / "w"
    command = (f"configs/evaluate.py:local={checkpoint}", *small(work, pressure, judge))
    assert run(*command) == 0
    assert recorded(work) == ("float32", "xla", 16)
    before = (work / "results.json").read_text()
    # Another device: the numbers stay.
    monkeypatch.setattr(hardware, "here", lambda: Place("cpu", 2**50))
    monkeypatch.setattr("emjax.cost.auto.CPU_MOST", 3)
    assert run(*command) == 0
    assert recorded(work) == ("float32", "xla", 16)
    assert (work / "results.json").read_text() == before
    # A device too small for them.
    monkeypatch.setattr(hardware, "here", lambda: Place("cpu", 2**26))
    capsys.readouterr()
    assert run(*command) == 2
    told = capsys.readouterr().err
    assert "config.engine.slots is 16" in told
    assert told.count("\n") == 1
    monkeypatch.setattr(hardware, "here", lambda: Place("cpu", 2**21))
    assert run(*command) == 2
    assert "config.model.path: its weights take" in capsys.readouterr().err
    # A value that is given is not auto: it is another experiment.
    monkeypatch.setattr(hardware, "here", lambda: Place("cpu", 2**40))
    assert run(*command, "--config.engine.slots=4") == 2
    assert "there config.engine.slots is 16, here it is 4" in capsys.readouterr().err


def test_a_kernel_of_another_platform_is_refused_by_its_field(run, checkpoint, pressure, judge, tmp_path, capsys):
    flags = small(tmp_path / "w", pressure, judge, "--config.model.attention=cudnn")
    assert run(f"configs/evaluate.py:local={checkpoint}", *flags) == 2
    assert "config.model.attention is 'cudnn', a kernel for a GPU" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9")])
def test_out_of_memory_names_the_field(run, checkpoint, pressure, judge, tmp_path, monkeypatch, capsys, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr("emjax.sampling.cache.empty_caches", full)
    assert run(f"configs/evaluate.py:local={checkpoint}", *small(tmp_path / "w", pressure, judge)) == 2
    told = capsys.readouterr().err
    assert "out of memory. Lower config.engine.slots" in told
    assert told.count("\n") == 1


# --- the hub -----------------------------------------------------------------------------------------------------------


def test_a_hub_models_commit_is_recorded_and_kept(run, checkpoint, pressure, judge, tmp_path, monkeypatch):
    commits, asked = ["1" * 40], []

    def fetch(name, *, revision=None, **more):
        asked.append(revision)
        folder = tmp_path / "hub" / (revision or commits[-1])
        return str(folder if folder.exists() else shutil.copytree(checkpoint, folder))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    command = ("configs/evaluate.py:hub=someone/A-model", *small(tmp_path / "w", pressure, judge))
    assert run(*command) == 0
    assert json.loads((tmp_path / "w" / "config.json").read_text())["revisions"] == {"someone/A-model": "1" * 40}
    assert json.loads((tmp_path / "w" / "results.json").read_text())["revisions"] == {"someone/A-model": "1" * 40}
    commits.append("2" * 40)  # the hub moves on; the run does not
    asked.clear()
    assert run(*command) == 0
    assert set(asked) == {"1" * 40}


# --- draws from the model ----------------------------------------------------------------------------------------------


@pytest.fixture
def own(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "own")
    file = folder / "generation_config.json"
    given = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.1}
    file.write_text(json.dumps(json.loads(file.read_text()) | given))
    return folder


def test_a_draw_from_the_model(run, own, pressure, judge, tmp_path):
    flags = ["--config.eval.pressure.draw.from_model=True", "--store", tmp_path / "store"]
    asked = []
    for extra in ([], ["--config.eval.pressure.draw.from_model=False"], flags[:1]):
        work = tmp_path / f"w{len(asked)}"
        assert run(f"configs/evaluate.py:local={own}", *small(work, pressure, judge, *flags[1:], *extra)) == 0
        asked.append(json.loads((work / "results.json").read_text())["rows"][0].get("draw"))
    said = "as generation_config.json: temperature 0.6, top_p 0.95, top_k 50, min_p 0; not applied: repetition_penalty 1.1"
    assert asked == [None, None, said]
    answers = sorted((tmp_path / "store" / "answers").rglob("*.jsonl"))
    assert len(answers) == 2  # a way of drawing has its own journal; the default's key is as it was
    first, second = ({row["id"]: row["text"] for row in read_lines(file)} for file in answers)
    assert first.keys() == second.keys()
    page = (tmp_path / "w2" / "report" / "index.html").read_text()
    assert f" were drawn {said}." in page


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: _role(), "config.interact.models.user.draw.from_model needs the engine"),
        (lambda: _arm(), "config.eval.mask.draw.from_model needs the engine"),
    ],
)
def test_an_endpoint_does_not_draw_from_its_model(make, says):
    with pytest.raises(UserError, match=says):
        presets.read(make())


def _role():
    given = presets.interaction("llama3.1-8b", method="kto", biased_ratio=0.1)
    given.interact.models.user.update({"base_url": "http://x/v1", "model": "m"})
    given.interact.models.user.draw.from_model = True
    return given


def _arm():
    given = presets.evaluation("llama3.1-8b")
    given.arms.treated.update({"endpoint": "http://x/v1", "path": "m"})
    given.eval.mask.draw.from_model = True
    return given


def test_default_keys_are_as_they_were():
    """Answers that version 0.1 paid for are found under their keys."""
    assert Draw().sent == {"temperature": 1.0}
    assert Draw(temperature=0.5, top_p=0.9).sent == {"temperature": 0.5, "top_p": 0.9}
    assert Draw(from_model=True).sent == {"from_model": True}
