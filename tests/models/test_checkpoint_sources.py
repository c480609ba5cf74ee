"""Folders, hub ids and what they hold: one account of each thing, or an error that names both."""

import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file
from test_checkpoints import CONFIG, NORM, same, set_json, tensors

from emjax import models
from emjax.errors import UserError
from emjax.models import LanguageModel, decoder, hf
from emjax.models.known import shape_of
from emjax.models.source import open_source
from emjax.runtime import process

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def lm():
    import jax

    from emjax.worlds.micro import tokenizer
    from emjax.worlds.micro.world import World

    generation = {"temperature": 0.7, "top_p": 0.8}
    params = decoder.init(CONFIG, jax.random.key(0))
    return LanguageModel(CONFIG, params, tokenizer.build(World(0)), (5,), source="made up", generation=generation)


@pytest.fixture
def directory(lm, tmp_path):
    models.save(lm, tmp_path / "base")
    return tmp_path / "base"


def load(directory):
    return models.load(str(directory), dtype="float32")


def tied(directory, change):
    """The checkpoint with tied embeddings; `change` is applied to its tensors."""
    set_json(directory / "config.json", tie_word_embeddings=True)
    tensors(directory, change)


# --- two accounts of one thing ---


def test_the_single_file_is_read_before_an_index(lm, directory, monkeypatch):
    """As a folder looks over which a smaller model was saved."""
    new = load_file(directory / "model.safetensors")
    save_file({k: v + 1 for k, v in new.items()}, directory / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(new, "model-00001-of-00001.safetensors")}
    before = open_source(directory).digest()
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    same(load(directory).params, lm.params)
    assert open_source(directory).digest() == before  # only what is read


@pytest.mark.parametrize("name", ["sub/w.safetensors", "/tmp/w.safetensors", "../w.safetensors", "weights.bin", ""])
def test_an_index_names_files_of_its_own_folder(directory, name):
    found = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    weight_map = dict.fromkeys(found, "a.safetensors") | {NORM: name}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"index\.json names the weight file"):
        load(directory)
    with pytest.raises(UserError, match=r"index\.json names the weight file"):
        open_source(directory).digest()


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', ""])
def test_an_index_that_is_none(directory, content):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json"):
        load(directory)


def test_a_head_equal_to_its_tied_table(lm, directory):
    def equal(found):
        found[HEAD] = found[TABLE].copy()

    tied(directory, equal)
    loaded = load(directory)
    assert loaded.config.tied
    same(loaded.params, {k: v for k, v in lm.params.items() if k != "head"})


def test_a_head_that_differs_from_its_tied_table(directory):
    tied(directory, lambda found: found[HEAD].__setitem__((3, 3), found[TABLE][3, 3] + 1))
    with pytest.raises(UserError, match=rf"ties the output head.*{HEAD}.*{TABLE}"):
        load(directory)


def test_a_head_stored_in_place_of_its_tied_table(lm, directory):
    tied(directory, lambda found: found.update({HEAD: found.pop(TABLE)}))
    same(load(directory).params["embed"], lm.params["embed"])


def test_a_tokenizer_with_more_ids_than_the_table(directory):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(CONFIG.V - len(tokenizer) + 1)])
    tokenizer.save_pretrained(directory)
    with pytest.raises(UserError, match=f"tokenizer has ids up to {CONFIG.V}, but the embedding table has {CONFIG.V} rows"):
        load(directory)


@pytest.mark.parametrize("ids", [CONFIG.V, -1, [5, CONFIG.V], "5", [1.5], {}, []])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_ends_of_sequence_are_rows_of_the_table(directory, ids, file):
    if file == "config.json":
        (directory / "generation_config.json").unlink()
    set_json(directory / file, eos_token_id=ids)
    with pytest.raises(UserError, match="eos_token_id"):
        load(directory)


def test_a_key_that_occurs_twice(directory):
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text(text.replace("{", '{"hidden_size": 32, ', 1))
    load(directory)
    (directory / "config.json").write_text(text.replace("{", '{"hidden_size": 64, ', 1))
    with pytest.raises(UserError, match="'hidden_size' twice, as 64 and as 32"):
        load(directory)


def test_weights_beside_an_adapter(directory):
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        load(directory)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "\xff", "[" * 100_000])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_what_is_no_object(directory, file, content):
    (directory / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=file):
        load(directory)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_pipes_are_not_waited_for(directory, file):
    (directory / file).unlink()
    os.mkfifo(directory / file)
    with pytest.raises(UserError):
        load(directory)


# --- what changes nothing ---


def test_stored_frequencies_are_skipped(lm, directory):
    tables = {
        f"model.{place}rotary_emb.inv_freq": np.ones(4, np.float32)
        for place in ("", "layers.0.self_attn.", "layers.1.self_attn.")
    }
    tensors(directory, lambda found: found.update(tables))
    same(load(directory).params, lm.params)


def test_ignored_keys_are_said_once(directory, capfd):
    process.note.cache_clear()
    set_json(directory / "config.json", unsloth_fixed=True, _name_or_path="x")
    load(directory)
    load(directory)
    (line,) = capfd.readouterr().err.splitlines()
    assert "unsloth_fixed = True" in line
    assert "_name_or_path" not in line


def test_a_base_without_a_chat_template(lm, directory):
    (directory / "chat_template.jinja").unlink()
    set_json(directory / "tokenizer_config.json", chat_template=None)
    loaded = load(directory)
    assert not loaded.tokenizer.chat_template
    same(loaded.params, lm.params)


def test_no_remote_code(directory, monkeypatch):
    """transformers would ask on standard input if trust_remote_code were not given."""
    set_json(directory / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}, tokenizer_class="Evil")
    (directory / "evil.py").write_text("raise SystemExit('remote code ran')")
    given = []
    original = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: given.append(k) or original(*a, **k))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with contextlib.suppress(UserError):
        load(directory)
    assert given == [{"trust_remote_code": False}]


# --- saving ---


def test_saved_over_other_contents(lm, directory, monkeypatch):
    """Shards, an index, an adapter and a template of before do not survive; other files do."""
    monkeypatch.setattr(hf, "_SHARD_BYTES", 20_000)
    models.save(lm, directory)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "added_tokens.json").write_text('{"<old>": 7}')
    (directory / "pytorch_model.bin").write_text("old")
    (directory / "notes.txt").write_text("mine")
    plain = transformers.AutoTokenizer.from_pretrained(directory)
    plain.chat_template = None
    monkeypatch.undo()
    other = lm.replace(params={k: v if k == "layers" else v + 1 for k, v in lm.params.items()}, tokenizer=plain)
    models.save(other, directory)
    names = {file.name for file in directory.iterdir()}
    assert names == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "notes.txt", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    again = load(directory)
    same(again.params, other.params)
    assert not again.tokenizer.chat_template
    assert again.generation == lm.generation | {"bos_token_id": 1, "eos_token_id": [5]}


def test_a_killed_save_leaves_the_former_checkpoint(lm, directory, monkeypatch):
    monkeypatch.setattr(lm.tokenizer, "save_pretrained", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        models.save(lm.replace(params=decoder.init(CONFIG, __import__("jax").random.key(1))), directory)
    same(load(directory).params, lm.params)


# --- the hub ---

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"


@pytest.fixture
def cache(directory, tmp_path):
    """A cache as huggingface_hub lays it out: blobs, two snapshots of links to them, and the refs of branches."""
    place = tmp_path / "hub" / "models--some--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    (place / "refs" / "older").write_text(OTHER)
    (place / "blobs").mkdir()
    for commit, eps in ((COMMIT, 1e-5), (OTHER, 1e-3)):
        (place / "snapshots" / commit).mkdir(parents=True)
        set_json(directory / "config.json", rms_norm_eps=eps)
        for file in directory.iterdir():
            blob = place / "blobs" / f"{commit[:8]}{file.name}"
            blob.write_bytes(file.read_bytes())
            (place / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{blob.name}")
    return tmp_path / "hub"


def offline(cache, code):
    """In a process of its own: huggingface_hub reads the environment when it is imported."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_revisions_from_an_offline_cache(cache):
    wanted = {
        "some/model": (COMMIT, 1e-5),
        "some/model@main": (COMMIT, 1e-5),
        "some/model@older": (OTHER, 1e-3),
        f"some/model@{OTHER}": (OTHER, 1e-3),
    }
    done = offline(
        cache,
        "from emjax import errors, models\nfrom emjax.models.known import shape_of\n"
        f"for path in {list(wanted)!r}:\n"
        "    lm = models.load(path)\n"
        "    print(lm.source, lm.revision, lm.config.norm_eps, shape_of(path) == lm.config)\n"
        "models.load('some/model@newer')",
    )
    found = [line.split() for line in done.stdout.splitlines()]
    assert found == [["some/model", commit, str(eps), "True"] for commit, eps in wanted.values()], done.stderr
    assert "hf download some/model --revision newer" in done.stderr.splitlines()[-1]


def test_a_known_model_at_a_revision():
    assert shape_of("Qwen/Qwen3-32B@main") == shape_of("Qwen/Qwen3-32B")
