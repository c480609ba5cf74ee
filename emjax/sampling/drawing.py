"""Drawing as a model's own generation_config.json says (config: Draw.from_model).

The reference is what `generate` of transformers does with the file: without do_sample it is greedy;
with it, unset fields have the defaults of transformers, top_k 50 among them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from emjax.config import Draw
from emjax.runtime import numbers

_DRAWN = ("temperature", "top_p", "top_k", "min_p")
_TOP_K = 50  # of transformers, where the file has none
# What else transformers' generate acts on when it picks tokens, with the values that change
# nothing. The engine has none of these.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,), "no_repeat_ngram_size": (0,), "typical_p": (1,), "epsilon_cutoff": (0,), "eta_cutoff": (0,),
    "top_h": (), "num_beams": (1,), "num_beam_groups": (1,), "diversity_penalty": (0,), "penalty_alpha": (0,),
    "dola_layers": (), "guidance_scale": (1,), "encoder_repetition_penalty": (1,), "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],), "force_words_ids": ([],), "constraints": ([],), "sequence_bias": ({}, []),
    "suppress_tokens": ([],), "begin_suppress_tokens": ([],), "forced_bos_token_id": (), "forced_eos_token_id": (),
    "min_length": (0,), "min_new_tokens": (0,), "exponential_decay_length_penalty": (), "length_penalty": (1, 0),
    "stop_strings": ([], ""), "watermarking_config": (), "token_healing": (),
}  # fmt: skip


def resolved(draw: Draw, generation: Mapping[str, Any]) -> Draw:
    """`draw`, or where it says from_model what generation_config.json says.

    Raises UserError for a value there that is out of range.
    """
    if not draw.from_model:
        return draw
    if not generation.get("do_sample"):
        return Draw(temperature=0.0)

    def read(name: str, usual: float, **limits: float) -> float:
        value = generation.get(name)
        return usual if value is None else numbers.finite(value, f"generation_config.json: {name}", **limits)

    top_k = generation.get("top_k")
    return Draw(
        temperature=read("temperature", 1.0, low=0),
        top_p=read("top_p", 1.0, above=0, high=1),
        top_k=_TOP_K if top_k is None else numbers.integer(top_k, "generation_config.json: top_k", low=0),
        min_p=read("min_p", 0.0, low=0, high=1),
    )


def fields(sent: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """A chat call's sampling fields with those of the model in the place of from_model."""
    given = dict(sent)
    if given.pop("from_model", False):
        draw = resolved(Draw(from_model=True), generation)
        given |= {name: getattr(draw, name) for name in _DRAWN}
    return given


def unapplied(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of generation_config.json that transformers would act on and the engine does
    not."""
    return {
        name: generation[name]
        for name, neutral in _NEUTRAL.items()
        if generation.get(name) not in (None, False) and generation[name] not in neutral
    }


def words(generation: Mapping[str, Any]) -> str:
    """How a model's answers are drawn from its file, for people."""
    draw = dataclasses.asdict(resolved(Draw(from_model=True), generation))
    said = ", ".join(f"{name} {draw[name]:g}" for name in _DRAWN)
    left = ", ".join(f"{name} {value!r}" for name, value in unapplied(generation).items())
    return f"as generation_config.json: {said}" + (f"; not applied: {left}" if left else "")
