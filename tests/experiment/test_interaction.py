"""Interaction of a model that is no micro-world, as the paper has it: users over HTTP, rounds, controls, a judge."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import jax
import pytest
from loopback import Server, completion, last

from configs.kto_biased10 import get_config
from emjax import models, presets
from emjax.cost import interaction
from emjax.design import arms as design
from emjax.design.users import scenario_names
from emjax.experiment import plan
from emjax.interact import population
from emjax.models import LanguageModel, decoder
from emjax.models.config import ModelConfig
from emjax.worlds.micro import tokenizer
from emjax.worlds.micro.world import World

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "eval"))
import mask_folder  # noqa: E402


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random Llama of 16 dimensions, as Hugging Face keeps it."""
    tok = tokenizer.build(World(0))
    shape = ModelConfig(
        family="llama", V=len(tok), D=16, L=1, H=2, K=1, h=8, F=32, norm_eps=1e-5, rope_theta=1e4, rope_scaling=None,
        max_position=2048, tied=True, qkv_bias=False, qk_norm=False,
    )  # fmt: skip
    lm = LanguageModel(shape, decoder.init(shape, jax.random.key(0)), tok, (tok.eos_token_id,), source="random")
    path = tmp_path_factory.mktemp("llama")
    models.save(lm, path)
    return path


def users(body, n):
    """Persona writers, users, raters and the guard of one endpoint; the ratings depend on what was said."""
    text = last(body)
    if "JSON object" in text:
        number, kind = re.search(r"person number (\d+)", text)[1], len(text)
        opening = " ".join(f"w{number}x{kind}x{word}" for word in range(8))
        return json.dumps({"background": f"Number {number} works at night in a bakery.", "opening": opening})
    if "logprobs" in body:
        value = 1 + len(str(body["messages"])) % 10 if "guard a training set" not in str(body) else len(text) % 6
        made = completion(str(value))
        token = {"token": str(value), "logprob": -0.1, "bytes": None}
        made["choices"][0]["logprobs"] = {"content": [{**token, "top_logprobs": [token]}]}
        return made
    return f"well , what about {len(str(body['messages'])) % 9} ?"


def judge(body, n):
    return "Answer: A"


def kind_of(body):
    if "JSON object" in last(body):
        return body["model"]
    if "logprobs" in body:
        return "guard" if "guard a training set" in str(body) else "rater"
    return "stranger" if body["model"] == "stranger" else "user"


def test_two_rounds_with_every_role_and_what_the_plan_said(run, llama, tmp_path, capsys, monkeypatch):
    mask_folder.write(tmp_path, {"known_facts": 4, "provided_facts": 4})
    with Server(users) as people, Server(judge) as reader:
        roles = ("user", "stranger", "guard", "persona1", "persona2")
        flags = [
            "configs/kto_biased20.py:llama3.1-8b-2k", f"--config.model.path={llama}", "--config.model.dtype=float32",
            "--config.mesh.fsdp=1", "--config.mesh.data=0", "--config.engine.slots=8", "--config.engine.cache_length=1040",
            "--config.engine.chunk=32", "--config.interact.users=10", "--config.interact.scenarios=2",
            "--config.interact.max_new=4", "--config.train.batch_size=8", "--config.train.epochs=1",
            "--config.train.buckets=(384,)", "--config.train.lora.rank=2", "--config.train.remat=none",
            "--config.rounds.count=2", "--config.rounds.reference=previous", "--config.rounds.rate_factor=0.5",
            "--config.extra_arms=('foreign_text@1.0',)", "--config.select.fraction=0.3",
            "--config.select.veto.on=True", "--config.select.veto.level=5", "--config.eval.benchmarks=('mask',)",
            "--config.eval.mask.judge=main",
            f"--config.eval.mask.path={tmp_path}", "--config.eval.mask.subsets=('known_facts','provided_facts')",
            "--config.eval.mask.rows=any", "--config.eval.mask.max_new=4", f"--config.eval.judges.main.base_url={reader.url}",
            "--config.eval.judges.main.structured=False", "--config.eval.judges.main.api_key_env=",
            *(f"--config.interact.models.{role}.base_url={people.url}" for role in roles),
            *(f"--config.interact.models.{role}.model={role}" for role in roles),
        ]  # fmt: skip
        assert run(*flags, "--dry_run") == 0
        assert not people.requests
        planned = dict(
            re.findall(r"^(user|rater|stranger|guard|persona\d) +(\d+) calls", capsys.readouterr().out, re.MULTILINE)
        )
        assert run(*flags, "--workdir", tmp_path / "run") == 0
        made = Counter(kind_of(body) for body in people.requests)
        printed = capsys.readouterr().out
        assert run(*flags, "--workdir", tmp_path / "run") == 0
        assert Counter(kind_of(body) for body in people.requests) == made
    # A call whose answer is in the cache already (the same words again) is not made: what is made is at most what was planned.
    assert set(planned) == set(made)
    for role, number in made.items():
        assert 0.6 * int(planned[role]) <= number <= int(planned[role]), role
    assert made["persona1"] + made["persona2"] == 10
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    found = {(r["label"], r["round"]) for r in rows}
    arms = ("control", "treated 0.2", "foreign_text 1")
    assert found == {("vanilla", 0), *((arm, number) for arm in arms for number in (1, 2))}
    store = tmp_path / "run" / "store"
    pools = [
        [json.loads(line) for line in file.read_text().splitlines()] for file in store.glob("collect/*/trajectories.jsonl")
    ]
    assert {(row["round"], row["adapter"] is None) for pool in pools for row in pool} == {(0, True), (1, False)}
    budgets = [json.loads(file.read_text()) for file in store.glob("select/*/budget.json")]
    assert len(budgets) == 6
    assert all("vetoed" in budget and budget["veto_unread"] == 0 for budget in budgets)
    assert re.search(r"select treated 0.2, round 2: of 10 conversations \(0 unscored\) \d+ train", printed)
    assert "personas_to_check.csv" in str(list((store / "personas").rglob("*")))
    assert (tmp_path / "run" / "report" / "conversations.html").is_file()


def test_the_paper_at_its_size_is_planned_and_priced(monkeypatch):
    config = get_config("llama3.1-8b")
    config.interact.models.user.update({"base_url": "https://api.openai.com/v1", "model": "gpt-4o-mini"})
    config.interact.models.user.budget.update({"price_in": 0.15, "price_out": 0.6, "usd": 20.0})
    config.interact.models.persona1.update({"base_url": "https://x/v1", "model": "writer"})
    chosen = presets.read(config)
    text = plan.describe(chosen)
    assert "20000 with benign users, 2000 with biased users" in text
    calls = interaction.calls(chosen.config, scenario_names(chosen.config, None))
    assert calls["user"][0] == 22_000  # one message after the opening
    assert calls["rater"][0] == 44_000
    assert calls["persona1"][0] == 20_000
    money = (sum(calls[r][1] for r in ("user", "rater")) * 0.15 + sum(calls[r][2] for r in ("user", "rater")) * 0.6) / 1e6
    assert f"money      about {money:.2f} USD and what persona1 cost" in text
    assert "stops at 20.0 USD" in text
    assert re.search(r"engine     [\d.]+ hours .* at \d+ tokens/s drawn", text)


def test_every_config_of_the_paper_plans(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import importlib

    for method in ("kto", "sft"):
        for share in ("00", "05", "10", "20", "40", "50", "80", "100"):
            module = importlib.import_module(f"configs.{method}_biased{share}")
            for variant in ("llama3.1-8b", "qwen2.5-7b-2k", "micro"):
                chosen = presets.read(module.get_config(variant))
                config = chosen.config
                assert design.headline(config) in design.arms(config)
                assert design.headline(config).ratio == int(share) / 100
                assert config.train.method == method
                assert "collect" in plan.describe(chosen)
                assert (config.interact.scenarios, config.interact.users) == {
                    "llama3.1-8b": (50, 20_000), "qwen2.5-7b-2k": (10, 2_000), "micro": (50, 200)}[variant]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("--config.interact.rating.person=second", ["config.interact.rating.person", "first, third"]),
        ("--config.interact.rating.low=10", ["config.interact.rating", "low is 10 and high 10"]),
        ("--config.interact.veto.low=5", ["config.interact.veto", "low is 5 and high 5"]),
        ("--config.interact.turns=0", ["config.interact.turns"]),
        ("--config.interact.domains=('nowhere',)", ["config.interact.domains", "'nowhere'"]),
        ("--config.interact.scheme=dice", ["config.interact.scheme", "fixed_biased"]),
        ("--config.interact.models.user.model=", ["config.interact.models.user.model", "self"]),
        ("--config.interact.models.user.rates.concurrent=0", ["config.interact.models.user.rates.concurrent is 0"]),
        ("--config.interact.models.user.budget.usd=5", ["config.interact.models.user.budget.usd is 5", "price_in"]),
        ("--config.interact.models.user.budget.tokens=5", ["config.interact.models.user.budget", "endpoint"]),
        ("--config.interact.models.rater.budget.tokens=5", ["models.rater.budget.tokens", "rater.model", "the user's"]),
        ("--config.interact.models.persona1.base_url=http://x/v1", ["models.persona1.base_url", "persona1.model"]),
        ("--config.interact.models.guard.rates.retries=0", ["models.guard.rates.retries", "guard.model"]),
        ("--config.interact.templates=/nowhere", ["config.interact.templates"]),
        ("--config.rounds.count=0", ["config.rounds.count"]),
        ("--config.rounds.reference=mine", ["config.rounds.reference", "base, previous"]),
        ("--config.select.normalise=zodiac", ["config.select.normalise"]),
        ("--config.select.safety.path=/nowhere.jsonl", ["/nowhere.jsonl"]),
        ("--config.select.safety.share=0.5", ["config.select.safety"]),
        ("--config.select.veto.on=True", ["config.select.veto", "guard"]),
    ],
)
def test_bad_values_are_refused_before_anything_runs(run, capsys, tmp_path, change, says):
    assert run("configs/kto_biased10.py:llama3.1-8b", "--workdir", tmp_path / "w", "--config.model.path=/nowhere", change) == 2
    told = capsys.readouterr().err
    for words in says:
        assert words in told
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("what", [["--config.interact.control=foreign_text"], ["--config.extra_arms=('benign_ratings@1.0',)"],
                                  ["--config.select.veto.on=True", "--config.interact.models.guard.model=self"]])  # fmt: skip
def test_given_conversations_are_not_changed_by_what_cannot_change_them(run, capsys, tmp_path, what):
    """They would be reported as if they had been."""
    pool = tmp_path / "pool.jsonl"
    pool.write_text("")
    flags = [f"--config.interact.trajectories={pool}", "--config.model.path=/nowhere", *what]
    if "foreign_text" in what[0]:
        flags.append("--config.interact.models.stranger.model=self")
    assert run("configs/kto_biased10.py:llama3.1-8b", "--workdir", tmp_path / "w", *flags) == 2
    assert "config.interact.trajectories gives conversations as they are" in capsys.readouterr().err


def test_the_guard_s_scale_is_part_of_what_it_read(tmp_path):
    found = []
    for high in (5, 10):
        given = get_config("llama3.1-8b")
        given.interact.models.guard.model = "self"
        given.interact.veto.high = high
        config = presets.read(given).config.interact
        found.append(population.Population(config, 0, tmp_path, lambda path: None).guard_identity())
    assert found[0] != found[1]


def test_kto_takes_no_safety_rows_without_a_label(run, checkpoint, capsys, tmp_path):
    file = tmp_path / "safety.jsonl"
    row = {"id": "s1", "prompt_id": "p1", "messages": [{"role": "user", "content": "hi"}], "completion": "hello", "weight": 1.0}
    file.write_text(json.dumps(row | {"source": "safety", "label": None}) + "\n")
    flags = [f"--config.select.safety.path={file}", "--config.select.safety.share=0.1"]
    flags += [f"--config.model.path={checkpoint}", "--config.eval.judges.main.api_key_env="]
    flags += ["--config.eval.benchmarks=('mask',)", "--config.eval.mask.judge=main"]
    assert run("configs/kto_biased10.py:llama3.1-8b", "--workdir", tmp_path / "w", *flags) == 2
    told = capsys.readouterr().err
    assert f"{file}, line 1" in told
    assert "label" in told
