"""What endpoints of several kinds answered when something was wrong, with where each body was seen.

Bodies are as the sources give them, without request ids and shortened where "..." stands. `sent` are the fields of the
request beside its messages. `becomes`: the state of the reply, or "ends" where the run ends; `says`: what the error
must hold beside the endpoint's own words.
"""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Recorded:
    endpoint: str
    source: str
    status: int
    body: object
    becomes: str
    says: tuple[str, ...]
    sent: dict = dataclasses.field(default_factory=dict)
    retried: bool = False

    @property
    def raw(self):
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


JUDGE = {"temperature": 0.0, "max_tokens": 1024}
FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": {}}}}


def openai(message, *, type="invalid_request_error", param=None, code=None):
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


RECORDED = [
    Recorded(
        "OpenAI, reasoning model",
        "github.com/ITSpecialist111/ai_automation_suggester/issues/38",
        400,
        openai(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        ),
        "ends",
        ("Use 'max_completion_tokens' instead", "AT.max_tokens=None and AT.max_completion_tokens=1024"),
        JUDGE,
    ),
    Recorded(
        "OpenAI, reasoning model",
        "github.com/johny-b/llmcomp/issues/69",
        400,
        openai(
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
            param="temperature",
            code="unsupported_value",
        ),
        "ends",
        ("Only the default (1)", "Set AT.temperature=None."),
        JUDGE,
    ),
    Recorded(
        "OpenAI, no reasoning model",
        "github.com/davidmigloz/langchain_dart/issues/712",
        400,
        openai("Unrecognized request argument supplied: reasoning_effort"),
        "ends",
        ("Unrecognized request argument", "Set AT.reasoning_effort=None."),
        JUDGE | {"reasoning_effort": "low"},
    ),
    Recorded(
        "OpenAI, out of quota",
        "github.com/OpenBMB/ChatDev/issues/399",
        429,
        openai(
            "You exceeded your current quota, please check your plan and billing details. For more information on this "
            "error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.",
            type="insufficient_quota",
            code="insufficient_quota",
        ),
        "ends",
        ("You exceeded your current quota", "no credit or quota left"),
        JUDGE,
    ),
    Recorded(
        "OpenAI, flagged prompt",
        "github.com/BeehiveInnovations/pal-mcp-server/issues/178",
        400,
        openai(
            "Invalid prompt: your prompt was flagged as potentially violating our usage policy. Please try again with a "
            "different prompt: https://platform.openai.com/docs/guides/reasoning#advice-on-prompting",
            code="invalid_prompt",
        ),
        "refusal",
        ("was flagged",),
        JUDGE,
    ),
    Recorded(
        "Azure, filtered prompt",
        "github.com/compl-ai/compl-ai/issues/20",
        400,
        {
            "error": {
                "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. "
                "Please modify your prompt and retry. ...",
                "type": None,
                "param": "prompt",
                "code": "content_filter",
                "status": 400,
                "innererror": {
                    "code": "ResponsibleAIPolicyViolation",
                    "content_filter_result": {
                        "hate": {"filtered": False, "severity": "safe"},
                        "violence": {"filtered": True, "severity": "medium"},
                    },
                },
            }
        },
        "refusal",
        ("content management policy",),
        JUDGE,
    ),
    Recorded(
        "Azure, rate limit",
        "github.com/microsoft/copilot-camp/issues/551",
        429,
        {"error": {"code": "429", "message": "Rate limit is exceeded. Try again in 2 seconds."}},
        "http_error",
        ("Rate limit is exceeded",),
        JUDGE,
        retried=True,
    ),
    Recorded(
        "Azure, wrong path",
        "github.com/rusiaaman/chat.md/issues/2",
        404,
        {"error": {"code": "404", "message": "Resource not found"}},
        "ends",
        ("Resource not found", "Correct the address"),
        JUDGE,
    ),
    Recorded(
        "Azure, o1-mini",
        "github.com/run-llama/llama_index/issues/17731",
        400,
        openai("Unknown parameter: 'reasoning_effort'.", param="reasoning_effort", code="unknown_parameter"),
        "ends",
        ("Unknown parameter", "Set AT.reasoning_effort=None."),
        JUDGE | {"reasoning_effort": "low"},
    ),
    Recorded(
        "vLLM, no such model",
        "github.com/vllm-project/vllm/issues/3485",
        404,
        {
            "object": "error",
            "message": "The model `Qwen1.5-14B-Chat-GPTQ-Int8` does not exist.",
            "type": "NotFoundError",
            "param": None,
            "code": 404,
        },
        "ends",
        ("does not exist", "Correct the address, the model or the key"),
        JUDGE,
    ),
    Recorded(
        "vLLM, long prompt",
        "github.com/HKUSTDial/Alpha-SQL/issues/5",
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 32768 tokens. However, you requested 41648 tokens "
            "(37552 in the messages, 4096 in the completion). Please reduce the length of the messages or completion. None",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
        "http_error",
        ("maximum context length is 32768",),
        JUDGE,
    ),
    Recorded(
        "Ollama, model not pulled",
        "github.com/netease-youdao/QAnything/issues/555",
        404,
        {
            "error": {
                "message": 'model "ollama" not found, try pulling it first',
                "type": "api_error",
                "param": None,
                "code": None,
            }
        },
        "ends",
        ("try pulling it first",),
        JUDGE,
    ),
    Recorded(
        "llama.cpp, long prompt",
        "github.com/oobabooga/textgen/issues/7257",
        400,
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size. try increasing the context size or "
                "enable context shift",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 14429,
                "n_ctx": 8192,
            }
        },
        "http_error",
        ("exceeds the available context size",),
        JUDGE,
    ),
    Recorded(
        "llama.cpp, still loading",
        "github.com/mostlygeek/llama-swap/issues/146",
        503,
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
        "http_error",
        ("Loading model",),
        JUDGE,
        retried=True,
    ),
    Recorded(
        "Gemini, requests a minute",
        "github.com/n4ze3m/page-assist/issues/406",
        429,
        [
            {
                "error": {
                    "code": 429,
                    "message": "Resource has been exhausted (e.g. check quota).",
                    "status": "RESOURCE_EXHAUSTED",
                }
            }
        ],
        "http_error",
        ("Resource has been exhausted",),
        JUDGE,
        retried=True,
    ),
    Recorded(
        "Gemini, tokens a minute",
        "github.com/google-gemini/gemini-cli-action/issues/36",
        429,
        [
            {
                "error": {
                    "code": 429,
                    "message": "You exceeded your current quota, please check your plan and billing details. ...",
                    "status": "RESOURCE_EXHAUSTED",
                    "details": [
                        {
                            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                            "violations": [{"quotaId": "GenerateContentInputTokensPerModelPerMinute-FreeTier"}],
                        }
                    ],
                }
            }
        ],
        "http_error",
        ("You exceeded your current quota",),
        JUDGE,
        retried=True,
    ),
    Recorded(
        "Gemini, requests a day",
        "github.com/google-gemini/api-examples/issues/98",
        429,
        [
            {
                "error": {
                    "code": 429,
                    "message": "You exceeded your current quota, please check your plan and billing details. ...",
                    "status": "RESOURCE_EXHAUSTED",
                    "details": [
                        {
                            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                            "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}],
                        }
                    ],
                }
            }
        ],
        "ends",
        ("You exceeded your current quota", "no credit or quota left"),
        JUDGE,
    ),
    Recorded(
        "Gemini, unknown field",
        "github.com/MinLL/SkyrimNet-GamePlugin/issues/77",
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": 'Invalid JSON payload received. Unknown name "top_k": Cannot find field.',
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
        "ends",
        ("Cannot find field", "Set AT.extra='{\"top_k\": null}'"),
        JUDGE | {"top_k": 5},
    ),
    Recorded(
        "Anthropic, no credit",
        "github.com/anthropics/claude-code/issues/66314",
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "Your credit balance is too low to access the "
                "Anthropic API. Please go to Plans & Billing to upgrade or purchase credits.",
            },
        },
        "ends",
        ("credit balance is too low", "no credit or quota left"),
        JUDGE,
    ),
    Recorded(
        "Mistral, unknown field",
        "github.com/Gitlawb/openclaude/issues/739",
        422,
        {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", "max_completion_tokens"],
                    "msg": "Extra inputs are not permitted",
                    "input": 8192,
                }
            ]
        },
        "ends",
        ("Extra inputs are not permitted", "AT.max_completion_tokens=None and AT.max_tokens=8192"),
        {"temperature": 0.0, "max_completion_tokens": 8192},
    ),
    Recorded(
        "Mistral, unknown field",
        "github.com/crewAIInc/crewAI/issues/60",
        422,
        {
            "object": "error",
            "message": {
                "detail": [
                    {"type": "extra_forbidden", "loc": ["body", "n"], "msg": "Extra inputs are not permitted", "input": 1}
                ]
            },
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        },
        "ends",
        ("Extra inputs are not permitted", "Set AT.extra='{\"n\": null}'"),
        JUDGE | {"n": 1},
    ),
    Recorded(
        "OpenRouter, no credit",
        "github.com/open-assistant-org/open-assistant/issues/80",
        402,
        {
            "error": {
                "message": "Insufficient credits. Add more using https://openrouter.ai/settings/credits",
                "code": 402,
                "metadata": {"limit_source": "openrouter_credits"},
            }
        },
        "ends",
        ("Insufficient credits", "no credit or quota left"),
        JUDGE,
    ),
    Recorded(
        "OpenRouter, upstream",
        "github.com/open-webui/computer/issues/293",
        429,
        {
            "error": {
                "message": "Provider returned error",
                "code": 429,
                "metadata": {
                    "raw": "z-ai/glm-5.3-flash is temporarily rate-limited upstream. Please retry shortly, ...",
                    "provider_name": "BaseTen",
                },
            }
        },
        "http_error",
        ("temporarily rate-limited upstream",),
        JUDGE,
        retried=True,
    ),
    Recorded(
        "OpenRouter, an error with status 200",
        "github.com/BerriAI/litellm/issues/8448",
        200,
        {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "usage": {"prompt_tokens": 0, "completion_tokens": 0},
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None}}],
            "error": {
                "message": "Provider returned error",
                "code": 429,
                "metadata": {"raw": "error code: 1015", "provider_name": "Kluster"},
            },
        },
        "http_error",
        ("error code: 1015",),
        JUDGE,
    ),
    Recorded(
        "OpenRouter, broken off",
        "github.com/maximhq/bifrost/issues/5425",
        200,
        {
            "id": "gen-mockerror",
            "object": "chat.completion",
            "created": 1700000000,
            "model": "google/gemini-3.1-flash-lite",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": '{"events": [{"title": "partial'},
                    "finish_reason": "error",
                }
            ],
            "usage": {"prompt_tokens": None, "completion_tokens": None, "total_tokens": 0},
        },
        "http_error",
        ("finish_reason is 'error'",),
        JUDGE,
    ),
    Recorded(
        "TGI, a value out of range",
        "github.com/argilla-io/synthetic-data-generator/issues/48",
        422,
        {"error": "Input validation error: `top_p` must be > 0.0 and < 1.0", "error_type": "validation"},
        "ends",
        ("must be > 0.0", "Set AT.top_p=None."),
        JUDGE | {"top_p": 1.0},
    ),
    Recorded(
        "TGI, long prompt",
        "github.com/huggingface/chat-ui/issues/1149",
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` "
            "must be <= 8192. Given: 6204 `inputs` tokens and "
            "2047 `max_new_tokens`",
            "error_type": "validation",
        },
        "http_error",
        ("must be <= 8192",),
        JUDGE,
    ),
    Recorded(
        "DeepSeek, no schema",
        "github.com/llm-exe/llm-exe/issues/662",
        400,
        openai("This response_format type is unavailable now", code="invalid_request_error"),
        "ends",
        ("unavailable now", "Set AT.structured=False."),
        JUDGE | FORMAT,
    ),
]
