"""What measuring costs."""

import dataclasses

import pytest
from benchmarks_of_known_size import ARITHMETIC, DECEPTIONBENCH, HUMANEVAL, MASK, OWN, RunsConfig
from typed_configs import JUDGE, LEVELS, finetune, interaction

from emjax import cost
from emjax.config import ArmConfig, ArmsConfig, Budget, EvalConfig, EvaluationConfig, JudgeConfig
from emjax.cost import evaluation

SECOND = JudgeConfig(base_url="http://second/v1", model="second", budget=Budget(price_in=1.0, price_out=1.0))


def evaluate(benchmarks, *, arms=None, **settings):
    arms = arms or ArmsConfig(vanilla=ArmConfig(path="x"))
    settings = {"benchmarks": tuple(b.name for b in benchmarks), "judges": {"main": JUDGE, "second": SECOND}, **settings}
    config = EvaluationConfig(arms=arms, eval=EvalConfig(**settings))
    return config, {b.name: b for b in benchmarks}


def told(benchmarks, **settings):
    config, given = evaluate(benchmarks, **settings)
    return cost.describe(config, limits=None, benchmarks=given)


def test_the_plan_counts_as_the_benchmark_does():
    """4,438 generations and 4,246 judge calls are MASK's own numbers; 13,438 generations with ten pressured answers."""
    text = told([MASK])
    assert "arms       vanilla" in text
    assert "1000 items; an arm: 4438 generations, 4246 judge calls" in text
    assert "6.3 points" in text
    assert "13438 generations" in told([MASK], sections={"mask": RunsConfig(runs=10)})


def test_money_is_of_the_judge_that_a_benchmark_names():
    text = told([MASK, DECEPTIONBENCH], sections={"deceptionbench": RunsConfig(judge="second")})
    assert (
        "judge      main: 4246 calls to gpt-4o-2024-08-06, about 4246000 + 849200 tokens: about 19.11 USD at 2.5 and 10 USD a "
        "million (config.eval.judges.main.budget)"
    ) in text
    assert "judge      second: 540 calls to second, about 540000 + 108000 tokens: about 0.65 USD at 1 and 1 USD" in text


def test_a_panel_reads_what_a_model_judges():
    benchmarks = [MASK, HUMANEVAL, ARITHMETIC]
    text = told(benchmarks, panel=("second", "main"))
    assert "4438 generations, 8492 judge calls" in text
    assert "164 generations, 0 judge calls" in text
    assert "100 generations, 0 judge calls" in text
    assert [line for line in text.splitlines() if line.startswith("judge")][1].startswith("judge      second: 4246 calls")
    assert cost.totals(*evaluate(benchmarks, panel=("second",))) == {
        "generations": 4438 + 164 + 100, "judge_calls": 2 * 4246, "usd": round(4246 * (4500 + 1200) / 1e6, 2),
    }  # fmt: skip


def test_nobody_is_called_where_nothing_is_judged():
    assert "judge      " not in told([HUMANEVAL])


def test_a_file_of_unknown_size_is_not_in_the_sum():
    text = told([OWN, DECEPTIONBENCH])
    assert "pressure   a row of your file: 6 generations, 6 judge calls an arm (not in the sum)" in text
    assert "main: 540 calls" in text
    assert cost.totals(*evaluate([OWN, DECEPTIONBENCH]))["judge_calls"] == 540
    empty = dataclasses.replace(OWN, one=dataclasses.replace(OWN.one, items=0, generations=0, judge_calls=0))
    assert "pressure   its items are counted when they are read (not in the sum)" in told([empty])


@pytest.mark.parametrize(
    ("judge", "says", "usd"),
    [
        (dataclasses.replace(JUDGE, budget=Budget()), "no price given (config.eval.judges.main.budget)", None),
        (JudgeConfig(kind="engine", model="x", structured=False), "x (the engine), about 540000 + 108000 tokens: free", 0),
        (JudgeConfig(kind="rule"), "calls to the benchmark's rule", 0),
    ],
)
def test_judges_without_a_price(judge, says, usd):
    assert says in told([DECEPTIONBENCH], judges={"main": judge})
    assert cost.totals(*evaluate([DECEPTIONBENCH], judges={"main": judge}))["usd"] == usd


def test_every_model_that_is_measured_is_counted(tmp_path):
    """After each round and at each step, and the untouched model once."""
    assert evaluation.models(interaction()) == 3
    assert evaluation.models(interaction(rounds__count=2, extra_arms=("none@1.0",), eval__at_steps=(5, 10))) == 1 + 2 * 3 * 3
    assert evaluation.models(finetune("llama3.1-8b", LEVELS)) == 4
    assert evaluation.models(finetune("llama3.1-8b", LEVELS, eval__at_steps=(5,))) == 7
    for step in ("000005", "000010"):
        (tmp_path / step).mkdir()
    arms = ArmsConfig(vanilla=ArmConfig(path="x"), treated=ArmConfig(path="x", checkpoints=str(tmp_path)))
    assert evaluation.models(evaluate([MASK], arms=arms)[0]) == 4
    assert cost.totals(*evaluate([MASK], arms=arms))["judge_calls"] == 4 * 4246


def test_training_is_priced_with_its_measuring():
    text = cost.describe(interaction(rounds__count=2), limits=None, benchmarks={"mask": MASK})
    assert "evaluate   5 models" in text
    assert f"main: {5 * 4246} calls" in text
    assert cost.totals(interaction(), {"mask": MASK}) == {"generations": 13_314, "judge_calls": 12_738, "usd": 57.32}


def test_a_world_s_benchmarks_are_counted_for_the_results_alone():
    assert cost.totals(interaction("micro"), {"arithmetic": ARITHMETIC}) == {"generations": 500, "judge_calls": 0, "usd": 0.0}
