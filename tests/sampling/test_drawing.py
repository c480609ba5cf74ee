"""Draws from generation_config.json, against what transformers' generate makes of the file."""

import pytest

from emjax.config import Draw
from emjax.errors import UserError
from emjax.sampling import drawing

FILES = {
    "none": {},
    "ends alone": {"eos_token_id": [5, 3], "bos_token_id": 1},
    "Qwen2.5": {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
    "Qwen3": {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20},
    "Llama 3.1": {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
    "sampling with nothing else": {"do_sample": True},
    "all tokens": {"do_sample": True, "top_k": 0},
    "min_p": {"do_sample": True, "min_p": 0.05, "top_k": 0, "temperature": 1.2},
    "values that greedy decoding does not read": {"temperature": 0.6, "top_p": 0.9},
    "greedy by name": {"do_sample": False, "temperature": 0.6},
    "nulls": {"do_sample": True, "temperature": None, "top_p": None, "top_k": None, "min_p": None},
}


@pytest.mark.parametrize("generation", FILES.values(), ids=FILES)
def test_as_generate_of_transformers(generation):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config = transformers.GenerationConfig(**generation)
    theirs, _ = model._prepare_generation_config(None)
    wanted = Draw(temperature=0.0)
    if theirs.do_sample:
        wanted = Draw(temperature=theirs.temperature, top_p=theirs.top_p, top_k=theirs.top_k or 0, min_p=theirs.min_p or 0.0)
    assert drawing.resolved(Draw(from_model=True), generation) == wanted


def test_a_draw_of_its_own_is_left_alone():
    assert drawing.resolved(Draw(temperature=0.3), FILES["Qwen3"]) == Draw(temperature=0.3)
    assert drawing.fields({"temperature": 0.3, "max_tokens": 9}, FILES["Qwen3"]) == {"temperature": 0.3, "max_tokens": 9}


def test_a_roles_fields():
    given = Draw(from_model=True).sent | {"max_tokens": 9}
    assert drawing.fields(given, FILES["Qwen3"]) == {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.0,
        "max_tokens": 9,
    }


def test_what_the_engine_does_not_apply_is_said():
    assert drawing.unapplied(FILES["Qwen2.5"]) == {"repetition_penalty": 1.05}
    assert "not applied: repetition_penalty 1.05" in drawing.words(FILES["Qwen2.5"])
    neutral = {"repetition_penalty": 1.0, "num_beams": 1, "no_repeat_ngram_size": 0, "suppress_tokens": None, "max_length": 9}
    assert drawing.unapplied(neutral) == {}
    assert drawing.words(FILES["Qwen3"]).endswith("min_p 0")


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_k": 2.5}, {"min_p": "a"}, {"temperature": float("nan")}]
)
def test_wrong_values(wrong):
    with pytest.raises(UserError, match=rf"generation_config\.json: {next(iter(wrong))} is"):
        drawing.resolved(Draw(from_model=True), {"do_sample": True} | wrong)
