"""The sandbox that renders chat templates as transformers does, within limits of time and size.

A template is foreign code: it comes with a model that somebody downloads. Beyond jinja's sandbox, which lets it reach
nothing outside, each turn of a loop and each call of a macro is counted, and no text or list may grow without end.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmcli.errors import UserError
from mmcli.text.limits import (
    MAX_BITS,
    Rendering,
    TooMuch,
    check_format,
    check_join,
    check_replace,
    check_widths,
    count_made,
    length_of,
    rendering_now,
)
from mmcli.text.marked import OPEN, Marked, real
from mmcli.text.opaque import Texts

# Filters whose result for a string with marks is that for its texts (see `Marked`), or that look into no string.
FOLLOWED = frozenset(
    (
        *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "first", "groupby", "items", "join"),
        *("last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse"),
        *("safe", "select", "selectattr", "sort", "string", "sum", "tojson", "trim", "unique", "upper"),
    )
)
NOT_FOLLOWED = frozenset(("e", "escape", "float", "indent", "int", "title", "truncate", "urlencode", "wordcount"))
# Methods that are called without asking jinja whether they are safe, which takes longer than the call.
SAFE = frozenset(
    ("strip", "lstrip", "rstrip", "split", "rsplit", "startswith", "endswith", "lower", "upper", "replace", "join")
)
INTERNAL = frozenset(("_loop_vars", "_block_vars"))  # what jinja adds to each call
DICT = frozenset(dir(dict))
PADDING = frozenset(("center", "ljust", "rjust", "zfill", "expandtabs"))


def _join(parts: Iterable[str]) -> str:
    """What jinja joins output with: strings that hold marks are `Marked` again."""
    parts = list(parts)
    count_made(sum(map(str.__len__, parts)))
    joined = "".join(parts)
    return rendering_now.get().texts.wrap(joined) if OPEN in joined else joined


def _joined(value: Any) -> Any:
    """A result of jinja's own, which knows no marks."""
    return rendering_now.get().texts.wrap(value) if type(value) is str and OPEN in value else value


def _step() -> None:
    rendering_now.get().charge(1)


class _Generator(CodeGenerator):
    """Jinja's compiler with `~` and `in` as the sandbox does them."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(map(str, (")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write(")))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        if len(node.ops) > 1 or node.ops[0].op not in ("in", "notin"):
            super().visit_Compare(node, frame)
            return
        self.write("(not " if node.ops[0].op == "notin" else "(")
        self.write("environment.contains(")
        self.visit(node.ops[0].expr, frame)
        self.write(", ")
        self.visit(node.expr, frame)
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    """As transformers sets it up, so that templates written for it render the same, with limits and marks."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "%", "**"))
    concat = staticmethod(_join)
    step = staticmethod(_step)

    def __init__(self) -> None:
        extensions = [GenerationBlock, jinja2.ext.loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self.filters = {name: _counted(name, self.filters[name]) for name in FOLLOWED | NOT_FOLLOWED}
        self.filters["tojson"] = _tojson
        self.tests["in"] = lambda item, container: self.contains(container, item)
        del self.globals["lipsum"]
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """The syntax tree, with a step counted in every turn of a loop and every call of a macro."""
        tree = super()._parse(source, name, filename)
        for block in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            assert isinstance(block, nodes.For | nodes.Macro | nodes.CallBlock)
            call = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
            block.body.insert(0, nodes.ExprStmt(call, lineno=block.lineno))
        return tree

    @staticmethod
    def contains(container: Any, item: Any) -> bool:
        """`item in container`."""
        if type(container) is str and isinstance(item, Marked):
            rendering_now.get().texts.inspected = True
            return real(item) in container
        return item in container

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As in jinja, on the short way for the keys of messages and for methods of texts."""
        if type(obj) is dict and attribute not in DICT:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if attribute in SAFE and isinstance(obj, str):
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, refused before it fills the memory."""
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            count_made(str.__len__(left) + str.__len__(right))
            return left + right if type(left) is Marked or type(right) is Marked else _joined(left + right)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise TooMuch("it computes with numbers of more than a thousand digits")
        elif operator == "+":
            count_made(length_of(left) + length_of(right))
        elif operator == "*":
            count_made(_times(left, right) + _times(right, left))
        elif operator == "%" and isinstance(left, str):
            check_format(left)
            rendering_now.get().texts.inspected = True
        return _joined(OPERATORS[operator](left, right))

    def call(self, context: Any, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        """`callee(*args, **kwargs)`, where it is a method of a string refused before it fills the memory."""
        if callee is _step:
            return _step()
        name, owner = getattr(callee, "__name__", ""), getattr(callee, "__self__", None)
        if name in ("format", "format_map"):
            check_format(getattr(getattr(callee, "__wrapped__", callee), "__self__", ""))
            check_widths([*args, *(kwargs[name] for name in kwargs.keys() - INTERNAL)])
            rendering_now.get().texts.inspected = True
        elif isinstance(owner, str):
            if name == "join" and args:
                args = (list(args[0]),)
                check_join(owner, args[0])
            elif name in PADDING:
                check_widths(args)
                rendering_now.get().texts.inspected = True
            elif name == "replace":
                check_replace(owner, *args[:2])
            if type(owner) is str and name != "join" and any(isinstance(each, Marked) for each in args):
                rendering_now.get().texts.inspected = True
            rendering_now.get().charge(length_of(owner) >> 6)
            if name in SAFE and kwargs.keys() <= INTERNAL:
                return _joined(callee(*args))
        return _joined(super().call(context, callee, *args, **kwargs))


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "*": operator.mul,
    "%": operator.mod,
    "**": operator.pow,
}


def _times(value: Any, count: Any) -> int:
    return length_of(value) * max(count, 0) if isinstance(count, int) else 0


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """One of jinja's filters, the elements that it goes through counted."""
    at = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context comes before the value

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        rendering = rendering_now.get()
        value, rest = args[at], [*args[at + 1 :], *kwargs.values()]
        rendering.charge(length_of(value) >> 6 if isinstance(value, str) else length_of(value))
        if name in NOT_FOLLOWED:
            rendering.texts.inspected = True
        if name == "indent":
            check_widths(rest)
        elif name == "replace":
            check_replace(value, *rest[:2])
        elif name == "join" and not isinstance(value, str):
            value = list(value)
            check_join(str(rest[0]) if rest else "", value)
            args = (*args[:at], value, *args[at + 1 :])
        return _joined(function(*args, **kwargs))

    return counted


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    check_widths([indent])
    options = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
    return rendering_now.get().texts.to_json(value, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return rendering_now.get().texts.now.strftime(format)


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` of transformers: renders what is inside."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


@functools.cache
def _environment() -> _Environment:
    return _Environment()


@functools.lru_cache(maxsize=64)
def compile_template(source: str) -> jinja2.Template:
    """The compiled template.

    Raises:
        UserError: it is not valid Jinja, or is nested too deeply.
    """
    with _mistakes_named():
        return _environment().from_string(source)


def variables_of(source: str) -> frozenset[str]:
    """The names that a template expects to be given.

    Raises:
        UserError: as `compile_template`.
    """
    with _mistakes_named():
        return frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(source)))


@contextmanager
def _mistakes_named() -> Iterator[None]:
    fix = "fix chat_template in tokenizer_config.json, or chat_template.jinja"
    try:
        yield
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}", fix) from None
    except (RecursionError, MemoryError, SyntaxError):  # of Python's own compiler, which jinja's output goes through
        raise UserError("the chat template is nested too deeply", fix) from None


def render(template: jinja2.Template, texts: Texts, variables: dict[str, Any]) -> str:
    """The template's output, with the marks of `texts`.

    Raises:
        UserError: the template refuses the conversation, fails on it, or takes too much time or memory.
    """
    token = rendering_now.set(Rendering(texts))
    try:
        output = str.__str__(template.render(variables))
        count_made(len(output) + sum(len(texts.texts[index]) for index in texts.numbers(output)))
        return output
    except (TooMuch, RecursionError, MemoryError) as error:
        reason = str(error) if isinstance(error, TooMuch) else f"it needs too much memory ({type(error).__name__})"
        raise UserError(f"the chat template was stopped: {reason}", "use a tokenizer with another chat template") from (
            error
        )
    # A template is foreign code: besides its own errors it raises what Python's operators raise.
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        reason = texts.reveal(str(error)).replace(f"'{Marked.__name__}'", "'str'")
        what = f"the chat template refuses this conversation: {reason}"
        raise UserError(what, "fix the messages, or use a tokenizer with another chat template") from error
    finally:
        rendering_now.reset(token)
