"""The bodies of requests: what may stand in them, within which limits. Whatever has no effect here is refused by name.

Fields and their limits are those of OpenAI's reference; `top_k`, `min_p`, `repetition_penalty` and
`chat_template_kwargs` are those of vLLM.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_BODY = 4 * 2**20  # bytes
MAX_DEPTH = 128  # lists and objects inside one another
MAX_N = 16  # replies to one request
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_TOKENS = 10_000_000
MAX_STOP = 4
MAX_STOP_LENGTH = 500  # characters


def only(*neutral: Any) -> AfterValidator:
    """Refuses a value that would have to change the reply in a way that is not implemented."""

    def check(value: Any) -> Any:
        if value is None or any(value == each and isinstance(value, type(each)) for each in neutral):
            return value
        raise ValueError(f"is not supported here; leave it out, or give {neutral[0]!r}")

    return AfterValidator(check)


Penalty = Annotated[float | None, Field(ge=-2, le=2), only(0.0)]
Count = Annotated[int | None, Field(ge=1, le=MAX_TOKENS)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Word = Annotated[str | None, Field(max_length=1024)]


class Body(BaseModel):
    """A JSON object: no unknown key, no number as text, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ResponseStreamOptions(Body):
    """Of a stream of the Responses API."""

    include_obfuscation: Annotated[bool | None, only(False)] = None


class StreamOptions(ResponseStreamOptions):
    """Of a stream."""

    include_usage: bool | None = None


class Sampling(Body):
    """What every way of asking for text has."""

    model: Annotated[str, Field(max_length=1024)]
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0, le=1_000_000)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    repetition_penalty: Annotated[float | None, Field(ge=0.01, le=100)] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**64)] = None
    stream: bool | None = None
    # Words of the client for itself, which no reply depends on.
    user: Word = None
    metadata: dict[str, Any] | None = None
    service_tier: Word = None
    safety_identifier: Word = None
    prompt_cache_key: Word = None
    prompt_cache_retention: Word = None
    store: Annotated[bool | None, only(False)] = None


class Generation(Sampling):
    """What `/v1/chat/completions` and `/v1/completions` share."""

    n: Annotated[int | None, Field(ge=1, le=MAX_N)] = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOP)] | None = None
    max_tokens: Count = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    logit_bias: Annotated[dict[str, float] | None, only({})] = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """A stream is to end with the token counts."""
        return bool(self.stream_options is not None and self.stream_options.include_usage)


class Function(Body):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """The name of a function."""

    name: str


class NamedTool(Body):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(Body):
    """A schema that the reply is to fit."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of the reply."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class TemplateOptions(Body):
    """Variables of the chat template."""

    enable_thinking: bool | None = None


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    tools: Annotated[list[Tool] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    response_format: ResponseFormat | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateOptions | None = None
    modalities: Annotated[list[str] | None, only(["text"])] = None

    @property
    def usable_tools(self) -> list[Tool]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def thinking(self) -> bool | None:
        """Whether the model is to reason; None leaves it to the chat template."""
        if self.chat_template_kwargs is not None and self.chat_template_kwargs.enable_thinking is not None:
            return self.chat_template_kwargs.enable_thinking
        return None if self.reasoning_effort is None else self.reasoning_effort != "none"


TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class CompletionRequest(Generation):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    logprobs: Annotated[int | None, Field(ge=0, le=5)] = None
    echo: bool | None = None
    best_of: Annotated[int | None, Field(ge=1, le=MAX_N)] = None
    suffix: Annotated[str | None, only("")] = None
