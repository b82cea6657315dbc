"""The sandbox that renders chat templates as transformers does."""

from __future__ import annotations

import datetime
import functools
from contextvars import ContextVar
from typing import Any, Protocol

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmcli.errors import UserError


class JsonWriter(Protocol):
    """What the `tojson` filter writes with during one rendering."""

    def to_json(self, value: Any, **options: Any) -> str: ...


# The template never holds the writer itself, so it cannot reach the texts behind it.
writer: ContextVar[JsonWriter] = ContextVar("writer")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    options = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
    return writer.get().to_json(value, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up: templates written for it render the same."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` of transformers: renders what is inside."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


@functools.lru_cache(maxsize=64)
def compile_template(source: str) -> jinja2.Template:
    """The compiled template.

    Raises:
        UserError: it is not valid Jinja.
    """
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        what = f"the chat template is not valid Jinja: line {error.lineno}: {error.message}"
        raise UserError(what, "mend chat_template in tokenizer_config.json, or chat_template.jinja") from None


def render(template: jinja2.Template, texts: JsonWriter, variables: dict[str, Any]) -> str:
    """The template's output; `texts` writes its JSON.

    Raises:
        UserError: the template refuses the conversation or fails on it.
    """
    token = writer.set(texts)
    try:
        return template.render(variables)
    # A template is foreign code: besides its own errors it raises what Python's operators raise.
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        what = f"the chat template refuses this conversation: {error}"
        raise UserError(what, "mend the messages, or use a tokenizer with another chat template") from error
    finally:
        writer.reset(token)
