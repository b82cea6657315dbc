"""Usage errors of the parser (typer's own Click) in our two lines: what is wrong, what to do."""

from __future__ import annotations

import ast
import re
from typing import Any

from mmcli.cli.help import argument_name
from mmcli.errors import UserError, did_you_mean

NUMBERS = {"int": "a whole number", "float": "a number"}


def usage_error(error: Any) -> UserError:
    """The two lines for a usage error: an unknown option, a missing or wrong value, one argument too many."""
    context = error.ctx
    path = context.command_path if context is not None else "mmcli"
    see = f"see: {path} --help"
    message = " ".join(error.format_message().split()).rstrip(".")
    param = getattr(error, "param", None)
    kind = type(error).__name__
    if kind == "NoSuchOption":
        return UserError(f"No such option: {error.option_name}", _nearest_option(error, see))
    if kind == "BadOptionUsage":  # no value where one is needed, or one where none is taken
        what = "needs a value" if "requires" in message else "takes no value"
        return UserError(f"{error.option_name} {what}", see)
    if kind == "MissingParameter":
        return UserError(f"{_name(param)} is missing", _write_it_like(context))
    if kind == "BadParameter" and param is not None:
        return _wrong_value(error, param, see)
    if message.startswith("Got unexpected extra argument"):
        extra = message.rpartition(" (")[2].removesuffix(")")
        return UserError(f'unexpected argument: "{extra}"', _write_it_like(context) + "; quote a text that has spaces")
    if message == "Missing command":
        return UserError(f"{path} needs a command", see)
    return UserError(message, see)


def _name(param: Any) -> str:
    """What a person calls a parameter: `--seed`, or `FILES` for an argument."""
    return argument_name(param) if param.param_type_name == "argument" else str(param.opts[0])


def _write_it_like(context: Any) -> str:
    return "write it like: " + context.get_usage().partition(": ")[2].strip()


def _nearest_option(error: Any, see: str) -> str:
    if error.ctx is None:
        return see
    options = [name for param in error.ctx.command.get_params(error.ctx) for name in param.opts if name[:2] == "--"]
    near = did_you_mean(error.option_name, options)
    return near if near.startswith("did") else see


def _wrong_value(error: Any, param: Any, see: str) -> UserError:
    """A value of another type, or out of its range; the value itself is only in the parser's message."""
    name, message, kind = _name(param), " ".join(str(error.message).split()), param.type
    found = re.match(r"(.*) is not (?:a valid|one of|in the range) ", message)
    if found is None:
        return UserError(f"{name}: {message.rstrip('.')}", see)
    value = found[1]
    if value[0] in "'\"":
        value = str(ast.literal_eval(value))
    choices = [str(choice) for choice in getattr(kind, "choices", ())]
    if choices:
        return UserError(f'{name} "{value}" is not one of {", ".join(choices)}', did_you_mean(value, choices))
    wanted = NUMBERS.get(kind.name.partition(" ")[0], f"a {kind.name}")
    if "is not a valid" in message:
        return UserError(f'{name} "{value}" is not {wanted}', f"give {name} {wanted}")
    low = kind.min is not None and float(value) <= kind.min
    relation, limit, direction = ("below", kind.min, "or more") if low else ("above", kind.max, "or less")
    return UserError(f"{name} {value} is {relation} {limit}", f"give {limit} {direction}")
