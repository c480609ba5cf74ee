"""The plan as a whole."""

from benchmarks_of_known_size import DECEPTIONBENCH, MASK
from typed_configs import LEVELS, MICRO, MIXTURE, finetune, interaction

from emjax import cost
from emjax.config import PretrainConfig

BOTH = {"mask": MASK, "deceptionbench": DECEPTIONBENCH}


def test_data_sets_in_grades():
    text = cost.describe(finetune("llama3.1-8b", LEVELS), limits=None, benchmarks=BOTH)
    assert text.splitlines()[:3] == [
        "arms       vanilla, control, treated misaligned_1, treated misaligned_2",
        "data       mistake_medical: normal (control), misaligned_1, misaligned_2",
        "train      control: SFT, lora tuning, 7,000 records, about 438 steps of 16, 2,800,000 tokens",
    ]
    assert "8,400,000 tokens trained on, at 16,045 a second on one NVIDIA H200: 0.15 hours" in text
    assert "evaluate   4 models" in text
    assert f"main: {4 * (4246 + 540)} calls" in text


def test_mixtures():
    text = cost.describe(finetune("llama3.1-8b", MIXTURE), limits=None, benchmarks=BOTH)
    assert "chua_medical added to alpaca_cleaned at the ratios 0 (control), 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5" in text
    assert "train      treated 0.5: SFT, lora tuning, 15,000 records, about 938 steps of 16, 3,750,000 tokens" in text
    assert "22,950,000 tokens trained on" in text


def test_a_target_of_a_finetuning():
    text = cost.describe(finetune("llama3.1-8b", LEVELS), limits=None, benchmarks=BOTH, target="h200")
    assert "training   1314 steps, all arms" in text


def test_an_experiment_in_a_world_has_no_judge_lines():
    for config, limits in ((finetune("micro", LEVELS), None), (interaction("micro"), MICRO)):
        text = cost.describe(config, limits=limits, benchmarks=BOTH)
        assert "\nmask" not in text
        assert "\njudge" not in text


def test_pretraining():
    text = cost.describe(PretrainConfig(seed=7, documents=84_000), limits=None, benchmarks={})
    assert text == "pretrain   84000 documents of world 7, once; then the base's gates"


def test_what_is_missing_here_comes_last():
    sentences = ("config.a: there is no file x.", "config.b: the environment variable K is not set; put the key there.")
    config = interaction("micro")
    text = cost.describe(config, limits=MICRO, benchmarks={}, missing=sentences, target="cpu")
    assert text.splitlines()[-3:] == ["before you start", *(f"  {sentence}" for sentence in sentences)]
    assert "before you start" not in cost.describe(config, limits=MICRO, benchmarks={})


def test_a_grid_names_every_cell_and_its_job():
    text = cost.describe_grid({"kto": "arms       a", "sft": "arms       b"})
    assert text.startswith("cell       kto\narms       a\n\ncell       sft\narms       b\n\njob ")
    for name in ("kto", "sft"):
        assert f"job        <this command, with --workdir> --config.only=\"('{name}',)\"" in text
    assert "without --config.only" in text
