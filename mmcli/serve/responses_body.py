"""The body of `POST /v1/responses` and the items that it holds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from mmcli.serve.requests import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Body,
    Count,
    Effort,
    Function,
    FunctionName,
    ResponseStreamOptions,
    Sampling,
    TemplateOptions,
    Word,
    only,
)


def _refused(why: str) -> AfterValidator:
    """Refuses every value but null."""

    def check(value: Any) -> Any:
        if value is None:
            return value
        raise ValueError(why)

    return AfterValidator(check)


class TextPart(Body):
    """A piece of a message of the Responses API; what was written comes back with its annotations, of which none is."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class ReasoningPart(Body):
    """A piece of reasoning."""

    type: Literal["reasoning_text"]
    text: str


class Item(Body):
    """What items of the Responses API have in common; they come back as the server wrote them."""

    id: Word = None
    status: Word = None


class MessageItem(Item):
    """A message; `type` may be left out."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[TextPart]


class CallItem(Item):
    """A call that the model wrote; `arguments` is the JSON text of an object."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutputItem(Item):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[TextPart]


class ReasoningItem(Item):
    """Reasoning that the model wrote."""

    type: Literal["reasoning"]
    summary: list[Any] | None = None
    content: list[ReasoningPart] | None = None


ITEM_KINDS = ("message", "function_call", "function_call_output", "reasoning")


def _item_kind(value: Any) -> str | None:
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


def _without_nulls(value: Any) -> Any:
    """Client libraries write out every field that an item could have."""
    return {key: each for key, each in value.items() if each is not None} if isinstance(value, dict) else value


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _item_kind,
        custom_error_type="unknown_item",
        custom_error_message=f"there is no such item here; give one of {', '.join(ITEM_KINDS)}",
    ),
    BeforeValidator(_without_nulls),
]


class FunctionTool(Function):
    """A tool of the Responses API."""

    type: Literal["function"]


class NamedFunction(FunctionName):
    """The one tool of the Responses API that is to be called."""

    type: Literal["function"]


class TextFormat(Body):
    """The form of a response's text."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str | None, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    """Of a response's text."""

    format: TextFormat | None = None
    verbosity: Annotated[str | None, only("medium")] = None


class ReasoningOptions(Body):
    """Of a response's reasoning; there are no summaries."""

    effort: Effort | None = None
    summary: Annotated[str | None, only("auto")] = None


class ResponsesRequest(Sampling):
    """`POST /v1/responses`. Nothing is kept, so a conversation comes whole with every request."""

    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: Count = None
    tools: Annotated[list[FunctionTool] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    stream_options: ResponseStreamOptions | None = None
    truncation: Annotated[str | None, only("disabled")] = None
    background: Annotated[bool | None, only(False)] = None
    previous_response_id: Annotated[
        str | None, _refused("no response is kept; give the whole conversation in input")
    ] = None
    conversation: Annotated[Any, _refused("no conversation is kept; give it whole in input")] = None
    prompt: Annotated[Any, _refused("no prompt is kept; give it in input")] = None
    max_tool_calls: Annotated[int | None, _refused("limits built-in tools, of which there are none; leave it out")] = (
        None
    )

    @property
    def wants_logprobs(self) -> bool:
        """Log probabilities are to be told."""
        return self.top_logprobs is not None or bool(self.include)
