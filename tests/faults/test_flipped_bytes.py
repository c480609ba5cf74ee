"""A byte of a finished run changes, somewhere: the next start names the file, or ends with the same files.

EMJAX_TEST_FLIPS=50 tries fifty places.
"""

import json
import os
import random
import shutil

import pytest

FLIPS = int(os.environ.get("EMJAX_TEST_FLIPS", "4"))
SMALL = [
    "--config.interact.users=6", "--config.interact.dialogues=2", "--config.interact.biased_ratio=0.5",
    "--config.train.epochs=1", "--config.train.batch_size=8", "--config.engine.slots=16",
    "--config.eval.mask.sizes.all=6", "--config.eval.mask.sizes.unseen_entities=4",
    "--config.eval.mask.sizes.unseen_templates=4", "--config.eval.mask.sizes.tuned_domain=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tmp_path_factory.mktemp("flips") / "run"


def started(run, workdir):
    return run("configs/kto_biased10.py:micro", "--workdir", workdir, *SMALL)


def without_costs(workdir):
    """results.json as it was; what the run says of itself is compared, too."""
    return json.loads((workdir / "results.json").read_text())


def test_a_flipped_byte_is_named_or_without_effect(run, finished, tmp_path, capsys):
    assert started(run, finished) == 0
    wanted = without_costs(finished)
    seed = int.from_bytes(os.urandom(4), "big")
    draw = random.Random(seed)
    named = 0
    for flip in range(FLIPS):
        workdir = tmp_path / f"{flip}"
        shutil.copytree(finished, workdir)
        files = sorted(f for f in workdir.rglob("*") if f.is_file() and f.stat().st_size)
        file = draw.choice(files)
        raw = bytearray(file.read_bytes())
        at = draw.randrange(len(raw))
        raw[at] ^= 1 << draw.randrange(8)
        file.write_bytes(raw)
        capsys.readouterr()
        code = started(run, workdir)
        said = capsys.readouterr()
        where = f"seed {seed}, flip {flip}: {file.relative_to(workdir)}, byte {at}"
        if code:
            assert code == 2, where
            assert file.name in said.err or "belongs to another experiment" in said.err or "another version" in said.err, where
            assert "honesty" not in said.out, where  # before a number is printed
            named += 1
        else:
            assert without_costs(workdir) == wanted, where
        shutil.rmtree(workdir)
    print(f"seed {seed}: {FLIPS} flips, {named} named, {FLIPS - named} without effect")


def test_a_rebuilt_stage_ends_the_same(run, finished, tmp_path, capsys):
    """The command that the error gives has the damaged stage, and what was made from it, made anew."""
    assert started(run, finished) == 0
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (file,) = list(workdir.glob("store/select/*/examples.jsonl"))[:1]
    text = file.read_text()
    file.write_text(text.replace("true", "tru3", 1))
    capsys.readouterr()
    assert started(run, workdir) == 2
    said = capsys.readouterr().err
    assert str(file) in said
    folders = said.split("rm -r ")[1].split()
    assert {f.split("/")[-2] for f in folders} >= {"select", "train"}
    for folder in folders:
        shutil.rmtree(folder)
    assert started(run, workdir) == 0
    assert without_costs(workdir) == without_costs(finished)
