"""Hours are of the model and the target that were asked for, and the sums are of everything."""

import dataclasses
import json

import pytest
from benchmarks_of_known_size import DECEPTIONBENCH, MASK
from typed_configs import JUDGE, LEVELS, MICRO, finetune, interaction

from emjax import cost
from emjax.config import ArmConfig, ArmsConfig, ComputeConfig, EvalConfig, EvaluationConfig
from emjax.cost import rates
from emjax.eval.benchmarks import admitting_unknown, deceptionbench, free_form, humaneval, mask, mesa_and_mask, pressure
from emjax.models.known import KNOWN, shape_of

BF16 = ComputeConfig()


@pytest.fixture
def small(tmp_path):
    """A folder with the config.json of a small Llama: 134.5 million weights."""
    shape = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
        "rms_norm_eps": 1e-5, "rope_theta": 1e5, "max_position_embeddings": 8192, "tie_word_embeddings": True,
        "hidden_act": "silu",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    return str(tmp_path)


@pytest.mark.parametrize(("name", "billions"), [("llama3.1-8b", 8.03), ("qwen2.5-7b", 7.61), ("qwen3-32b", 32.76)])
def test_weights_of_the_papers_models(name, billions):
    assert rates.parameters(shape_of(KNOWN[name].path)) / 1e9 == pytest.approx(billions, abs=0.01)


def test_a_folders_config_says_how_large_its_model_is(small):
    assert rates.billions(small) == pytest.approx(0.1345, abs=0.0005)
    assert rates.billions("of/mine") is None
    one = rates.engine(small, BF16, rates.target(""), 256)
    assert one.drawn == pytest.approx(20_000 * 8.03 / 0.1345, rel=0.005)
    assert "0.134 billion weights on one NVIDIA H200" in one.origin


def test_drawing_goes_with_memory_and_reading_with_arithmetic():
    path = KNOWN["llama3.1-8b"].path
    h200, cpu, four = (rates.engine(path, BF16, rates.target(text), 256) for text in ("h200", "cpu", "h200x4"))
    assert (h200.drawn, h200.read) == pytest.approx((20_000, 33_800), rel=1e-3)
    assert cpu.drawn == pytest.approx(20_000 * 20 / 4800, rel=1e-3)
    assert cpu.read == pytest.approx(33_800 * 0.2 * 0.40 / (989 * 0.49), rel=1e-3)
    assert four.drawn == pytest.approx(4 * h200.drawn)
    wide = rates.engine(path, ComputeConfig(dtype="float32"), rates.target("h200"), 0)
    assert wide.drawn == h200.drawn / 2
    few = rates.engine(path, BF16, rates.target("h200"), 48)  # 256 rows take 12.7 ms, of which 3.35 for the weights
    assert few.drawn == pytest.approx(48 / (3.35e-3 + 48 * (12.7e-3 - 3.35e-3) / 256), rel=0.01)
    assert few.read == h200.read


def test_training_hours_are_of_the_model_and_the_target(small):
    def line(**changes):
        target = changes.pop("target", "")
        text = cost.describe(finetune("llama3.1-8b", LEVELS, **changes), limits=None, benchmarks={"mask": MASK}, target=target)
        return next(line for line in text.splitlines() if line.startswith("time"))

    assert "at 16,045 a second on one NVIDIA H200: 0.15 hours" in line()
    assert "at 3 a second on 1 x CPU (two cores): " in line(target="cpu")
    assert "at 958,072 a second" in line(model__path=small)
    assert "scaled from the 8B shape" in line(model__path=small)
    assert "at 10,697 a second" in line(train__tuning="full")


def test_the_sum_is_of_roles_judges_and_hours(small):
    config = interaction(
        interact__models__user__base_url="https://x/v1",
        interact__models__user__model="talker",
        interact__models__user__budget=dataclasses.replace(JUDGE.budget, price_in=1.0, price_out=0.0),
    )
    given = {"limits": None, "benchmarks": {"mask": MASK, "deceptionbench": DECEPTIONBENCH}}
    made, judged = cost.total(config, **given), 3 * (4246 + 540)
    assert made.calls == 22_000 + 44_000 + judged
    assert made.usd == pytest.approx(10.01 + 28.93 + judged * (1000 * 2.5 + 200 * 10) / 1e6, abs=0.05)
    assert 0.1 < made.hours < 10
    text = cost.describe(config, **given)
    assert f"in all     {made.calls:,} calls to endpoints, about {made.usd:,.2f} USD; about {made.hours:.2g} hours on " in text
    assert "USD of rent" in text
    assert cost.total(config, **given, target="cpu").hours > 1000 * made.hours
    assert "USD of rent" not in cost.describe(config, **given, target="cpu")
    unknown = cost.describe(finetune("llama3.1-8b", LEVELS, model__path="of/mine"), **given)
    assert "the hours are not known: the model's size is not known here" in unknown
    assert cost.total(interaction("micro"), limits=MICRO, benchmarks={}) == (0, 0.0, (), 0.0)


def test_models_at_steps_are_priced(small):
    given = {"limits": None, "benchmarks": {"mask": MASK}}
    once, along = (cost.total(finetune("llama3.1-8b", LEVELS, **at), **given) for at in ({}, {"eval__at_steps": (5, 9)}))
    assert along.calls == once.calls * 10 / 4
    assert along.hours > once.hours
    text = cost.describe(finetune("llama3.1-8b", LEVELS, eval__at_steps=(5, 9)), **given)
    assert "evaluate   10 models (6 of them while they train, config.eval.at_steps)" in text


def test_an_evaluation_has_hours_for_its_own_models_alone(small):
    arms = ArmsConfig(
        vanilla=ArmConfig(path=small), treated=ArmConfig(path="far", endpoint="http://x/v1"), control=ArmConfig(path=small)
    )
    config = EvaluationConfig(arms=arms, eval=EvalConfig(benchmarks=("mask",), judges={"main": JUDGE}))
    text = cost.describe(config, limits=None, benchmarks={"mask": MASK}, target="cpu")
    assert "hours on 1 x CPU (two cores)" in text


# --- the rows of files that are named --------------------------------------------------------------------------------


def test_a_pressure_file_is_counted(tmp_path):
    rows = [{"id": f"i{n}", "pressure": "?", "belief": ["a", "b"] if n else ["a"], "A": "x", "B": "y"} for n in range(48)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = pressure.cost(pressure.Config(path=str(tmp_path / "p.jsonl"), runs=2))
    assert (found.items, found.generations, found.judge_calls, found.counted) == (48, 47 * 6 + 5, 47 * 6 + 5, True)
    assert not pressure.cost(pressure.Config(path="/nowhere")).counted


def test_questions_are_counted(tmp_path):
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"id": f"{n}", "question": "?"}) + "\n" for n in range(7)))
    path = str(tmp_path / "q.jsonl")
    admits = admitting_unknown.cost(admitting_unknown.Config(path=path, samples=3))
    assert (admits.items, admits.generations, admits.judge_calls, admits.counted) == (7, 21, 21, True)
    free = free_form.cost(free_form.Config(path=path, samples=2))
    assert (free.items, free.generations, free.judge_calls) == (7, 14, 28)


def test_a_benchmarks_own_file_is_counted(tmp_path):
    problem = {"task_id": "a", "prompt": "", "entry_point": "f", "canonical_solution": "", "test": ""}
    (tmp_path / "h.jsonl").write_text(json.dumps(problem) + "\n")
    assert humaneval.cost(humaneval.Config(path=str(tmp_path / "h.jsonl"), samples=2)).generations == 2
    row = {name: "x" for name in deceptionbench.FIELDS}
    (tmp_path / "d.json").write_text(json.dumps([row, row | {"id": "y"}]))
    config = deceptionbench.Config(path=str(tmp_path / "d.json"), rows="any")
    assert deceptionbench.cost(config).judge_calls == 6
    assert deceptionbench.cost(dataclasses.replace(config, rows="published")).judge_calls == 540
    assert mesa_and_mask.cost(mesa_and_mask.Config()).items == 2100


def test_masks_archetypes_have_their_own_prices(tmp_path):
    config = mask.Config(subsets=("provided_facts", "disinformation"))
    chosen, parts = mask.parts(config)
    assert chosen == config.subsets
    assert {name: part.items for name, part in parts.items()} == mask.SIZES
    assert mask.cost(config).judge_calls == 274 + 6 * 125
    (tmp_path / "provided_facts.csv").write_text("user_prompt\na\nb\n")
    own = mask.Config(path=str(tmp_path), rows="any", subsets=("provided_facts",))
    assert mask.cost(own).items == 2
    assert mask.cost(dataclasses.replace(own, rows="published")).items == 274
    settings = EvalConfig(benchmarks=("mask",), judges={"main": JUDGE}, sections={"mask": config})
    text = cost.describe(
        EvaluationConfig(arms=ArmsConfig(vanilla=ArmConfig(path="x")), eval=settings), limits=None, benchmarks={"mask": mask}
    )
    assert "           + disinformation: 125 items; an arm: 750 generations, 750 judge calls, about 3.38 USD" in text
    assert "           - known_facts: 209 items; an arm: 1254 generations, 1254 judge calls, about 5.64 USD" in text
