"""The fields of the server's requests: OpenAI's and a few more.

Fields that would be ignored are refused by name.
"""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from emjax.data import chat
from emjax.sampling.processors import TOP_LOGPROBS

CHOICES = 128  # completions of one prompt
STOPS = 32  # stop strings: lm-eval sends more than OpenAI's four

# Fields that cannot change the text: accepted and ignored.
_HARMLESS = frozenset(
    ["metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier"]
    + ["store", "user"]
)
# Unsupported fields, with the values that have no effect.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "suffix": ("",),
    "tool_calls": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}


def _text(value: str) -> str:
    # JSON can spell half a surrogate pair, which is not text; it raises a ValueError here.
    value.encode()
    return value


Str = Annotated[str, AfterValidator(_text)]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[Id], Field(fail_fast=True)]


class Body(BaseModel):
    """The base of all bodies.

    A field that is null counts as absent. An unknown field that would change the result is refused
    by name.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    harmless: ClassVar[frozenset[str]] = _HARMLESS

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Body":
        for name, value in (self.model_extra or {}).items():
            if name not in self.harmless and value not in _NOTHING.get(name, ()):
                raise ValueError(f"{name}: this server does not support the field, and ignoring it could change the result")
        return self


class StreamOptions(Body):
    include_usage: bool = False


class Sampled(Body):
    """The sampling fields of a request."""

    model: Str
    n: int = Field(1, ge=1, le=CHOICES)
    # Beyond these bounds float32 cannot represent the quotients.
    temperature: float = Field(1.0, ge=0, le=100, description="0 = greedy; else at least 0.001")
    top_p: float = Field(1.0, ge=1e-6, le=1)
    top_k: int = Field(0, ge=0, lt=2**31, description="0 = off")
    min_p: float = Field(0.0, ge=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: (
        Annotated[Str, Field(min_length=1, max_length=256)]
        | Annotated[list[Annotated[Str, Field(min_length=1, max_length=256)]], Field(fail_fast=True, max_length=STOPS)]
    ) = Field([], union_mode="left_to_right")
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Sampled":
        if 0 < self.temperature < 1e-3:
            raise ValueError("temperature: must be 0 (greedy) or at least 0.001")
        if self.stream_options and not self.stream:
            raise ValueError("stream_options: requires stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class Completion(Sampled):
    # Left to right and failing fast: a long prompt of the wrong type costs one check, not one error
    # per token.
    prompt: (
        Str
        | Annotated[Ids, Field(min_length=1)]
        | Annotated[list[Str], Field(fail_fast=True, min_length=1)]
        | Annotated[list[Annotated[Ids, Field(min_length=1)]], Field(fail_fast=True, min_length=1)]
    ) = Field(union_mode="left_to_right")
    max_tokens: int = Field(16, ge=0, lt=2**31)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=TOP_LOGPROBS)
    add_special_tokens: bool = Field(True, description="for text: whether the tokenizer adds its special tokens (BOS)")

    @model_validator(mode="after")
    def _something_to_do(self) -> "Completion":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 is allowed only with echo: true")
        if self.max_tokens == 0 and self.n > 1:
            raise ValueError("n: without new tokens there is only one answer")
        if self.echo and self.stream:
            raise ValueError("echo: cannot be streamed")
        return self


class TextPart(Body):
    type: Literal["text"]
    text: Str


class Message(Body):
    # Clients send back what they were sent.
    harmless: ClassVar[frozenset[str]] = frozenset(["annotations", "name"])
    role: Literal["system", "developer", "user", "assistant"]
    content: Str | Annotated[list[TextPart], Field(fail_fast=True)] = Field(union_mode="left_to_right")

    @property
    def plain(self) -> dict[str, str]:
        """The message for the tokenizer.

        OpenAI's `developer` role is the `system` of models; the parts of a text are joined
        unchanged.
        """
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if name not in chat.SETTINGS or value != chat.SETTINGS[name]:
            known = ", ".join(f"{name}: {json.dumps(value)}" for name, value in chat.SETTINGS.items())
            raise ValueError(f"{name} is not supported; templates are always given {known}")
    return values


# Only what changes nothing is accepted, so nobody reads it.
Settings = Annotated[dict[Str, Any], AfterValidator(_settings)]
Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1)]


class Chat(Sampled):
    messages: Messages
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=TOP_LOGPROBS)
    continue_final_message: bool | None = Field(None, description="default: a trailing assistant message is continued")
    chat_template_kwargs: Settings = Field({}, description="accepted where it changes nothing")

    @model_validator(mode="after")
    def _consistent(self) -> "Chat":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: requires logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens: differs from max_completion_tokens; give only one of them")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message: requires that the last message is the assistant's")
        return self

    @property
    def continues(self) -> bool:
        return self.messages[-1].role == "assistant" and self.continue_final_message is not False


class Tokenize(Body):
    model: Str | None = None
    prompt: Str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
    chat_template_kwargs: Settings = Field({}, description="accepted where it changes nothing")

    @model_validator(mode="after")
    def _one_of_them(self) -> "Tokenize":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        return self


class Detokenize(Body):
    model: Str | None = None
    tokens: Ids
