"""The door: a ConfigDict becomes typed sections, and a wrong value is refused in one sentence that names its field."""

import dataclasses

import pytest

from emjax import config as cfg
from emjax.config import parse as parsing
from emjax.config.parse import ConfigDict
from emjax.errors import UserError


def none(values):
    return {}


def kto(**parts):
    return cfg.InteractionConfig(experiment="interaction", train=cfg.TrainConfig(method="kto"), **parts)


@pytest.mark.parametrize("made", [kto(), cfg.FinetuneConfig(experiment="finetune", data=cfg.MixtureConfig())])
def test_there_and_back_again(made):
    assert parsing.parse(parsing.to_config_dict(made), none) == made


def test_whole_numbers_are_numbers_and_lists_are_tuples():
    given = parsing.to_config_dict(kto())
    given.train.warmup = 0
    with given.unlocked():
        given.train.buckets = [16, 32]
    made = parsing.parse(given, none)
    assert made.train.warmup == 0.0
    assert isinstance(made.train.warmup, float)
    assert made.train.buckets == (16, 32)


def test_an_absent_field_can_be_set_on_the_command_line():
    given = parsing.to_config_dict(cfg.JudgeConfig())
    assert given.max_completion_tokens is None
    given.max_completion_tokens = 10  # a placeholder knows its type
    with pytest.raises(TypeError):
        given.max_completion_tokens = "ten"


WRONG = {
    "experiment": ("intraction", "config.experiment is 'intraction'; choose interaction"),
    "seed": ("0", "config.seed is '0'; a whole number is needed"),
    "train.method": ("dpo", "config.train.method is 'dpo'; choose sft, kto"),
    "train.tuning": ("qlora", "config.train.tuning is 'qlora'; choose lora, full"),
    "train.schedule": ("cosin", "config.train.schedule is 'cosin'; choose constant, linear, cosine"),
    "train.learning_rate": (-1e-5, "config.train.learning_rate is -1e-05; it must be above 0"),
    "train.warmup": (10.0, "config.train.warmup is 10.0; it must be at least 0 and at most 1"),
    "train.batch_size": (0, "config.train.batch_size is 0; it must be at least 1"),
    "train.buckets": ((512, 256), "config.train.buckets is (512, 256); give different lengths, the shortest first"),
    "train.lora.targets": (("q", "z"), "config.train.lora.targets holds 'z'; choose q, k, v, o, gate, up, down"),
    "kto.beta": (float("nan"), "config.kto.beta is nan; it must be above 0"),
    "kto.preset": ("dpo", "config.kto.preset is 'dpo'; choose emjax, trl, halos, llama_factory"),
    "model.attention": ("flash", "config.model.attention is 'flash'; choose xla, cudnn, splash"),
    "mesh.data": (-1, "config.mesh.data is -1; it must be at least 0"),
    "interact.biased_ratio": (1.5, "config.interact.biased_ratio is 1.5; it must be at least 0 and at most 1"),
    "interact.control": ("shuffled", "config.interact.control is 'shuffled'; choose none, shuffled_ratings"),
    "interact.rating.low": (10, "config.interact.rating.low is 10 and high 10; low must be below high"),
    "interact.draw.top_p": (0.0, "config.interact.draw.top_p is 0.0; it must be above 0 and at most 1"),
    "select.fraction": (0.7, "config.select.fraction is 0.7; it must be at least 0 and at most 0.5"),
    "rounds.count": (0, "config.rounds.count is 0; it must be at least 1"),
    "extra_arms": (("shuffled@1",), "config.extra_arms holds 'shuffled@1'; write <control>@<ratio>"),
    "watch.profile": ((5,), "config.watch.profile is (5,); give the first and the last step"),
    "interact.models.user.extra": ("[1]", "config.interact.models.user.extra is '[1]'; give a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG)
def test_wrong_values_are_refused_by_name(field):
    value, said = WRONG[field]
    given = parsing.to_config_dict(kto())
    *path, name = field.split(".")
    part = given
    for step in path:
        part = part[step]
    with part.ignore_type():
        part[name] = value
    with pytest.raises(UserError) as error:
        parsing.parse(given, none)
    assert str(error.value).startswith(said), str(error.value)
    assert "\n" not in str(error.value)


TOGETHER = {
    "config.train.batch_size is 16; it must be a multiple of 6": {"mesh": cfg.MeshConfig(data=2, fsdp=3)},
    "config.train.batch_size is 1; KTO needs two rows": {"train": cfg.TrainConfig(method="kto", batch_size=1)},
    "config.interact.max_new is 4000; it must be below engine.cache_length": {"interact": cfg.InteractConfig(max_new=4000)},
}


@pytest.mark.parametrize("said", TOGETHER)
def test_what_fields_decide_together_is_refused(said):
    parts = {"train": cfg.TrainConfig(method="kto")} | TOGETHER[said]
    given = parsing.to_config_dict(kto())
    for name, part in parts.items():
        given[name] = parsing.to_config_dict(part)
    with pytest.raises(UserError, match="config") as error:
        parsing.parse(given, none)
    assert str(error.value).startswith(said), str(error.value)


def test_an_unknown_field_names_those_that_there_are():
    given = parsing.to_config_dict(kto())
    given.train = ConfigDict(given.train.to_dict() | {"epoch": 3})
    with pytest.raises(UserError, match=r"^config\.train\.epoch is unknown; config\.train has method, tuning"):
        parsing.parse(given, none)


def test_sections_that_others_declare_are_typed_by_them():
    @dataclasses.dataclass(frozen=True)
    class Own(cfg.BenchmarkConfig):
        path: str = cfg.option("", "A file.", needs="file")

    judged = cfg.EvalConfig(benchmarks=("own",), judges={"main": cfg.JudgeConfig()})
    given = parsing.to_config_dict(kto(eval=judged))
    given.eval.own = ConfigDict({"path": "here", "max_new": 7})
    made = parsing.parse(given, lambda values: {"eval": {"own": Own}})
    assert made.eval.sections == {"own": Own(path="here", max_new=7)}
