"""`FILE.py:FUNCTION`: a function in a Python file of the person's own. No torch here."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmcli.api import UserError


def is_python_file(argument: str) -> bool:
    """True for `FILE.py:FUNCTION`, whether or not there is such a file."""
    return ".py:" in argument or argument.endswith(".py")


def load_python_function(argument: str, what: str) -> tuple[str, Callable[..., Any]]:
    """(its name, the function) that `FILE.py:FUNCTION` names.

    Args:
        what: what it is, for messages: "reward" or "tool".

    Raises:
        UserError: no such file or function, or the file cannot be run.
    """
    name, _, function = argument.rpartition(":")
    path = Path(name).expanduser()
    if not name or not function.isidentifier():
        raise UserError(f'{what} "{argument}" names no function', f"write it like: --{what} my.py:score")
    if not path.is_file():
        raise UserError(f'{what} "{argument}": there is no file {path}', "check the path")
    module = _run_file(path, what)
    found = getattr(module, function, None)
    if not callable(found):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        there = f"it has {', '.join(public[:4])}" if public else "it has none"
        raise UserError(f'{what} "{argument}": no function {function} in {path} ({there})', "name one of its functions")
    return function, found


def place_of(error: BaseException, file: str | None = None) -> str:
    """An error in one line with the place that raised it: `ValueError: no (my.py:7)`.

    Args:
        file: where the place is looked for; None: the innermost one.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename).name}:{error.lineno})"
    where, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if file is None or name == file:
            where = f" ({Path(name).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    lines = str(error).splitlines()
    return f"{type(error).__name__}{f': {lines[0]}' if lines else ''}{where}"


def digest_of(argument: str) -> str:
    """SHA-256 (hex) of the file in `FILE.py:FUNCTION`."""
    return hashlib.sha256(Path(argument.rpartition(":")[0]).expanduser().read_bytes()).hexdigest()


def _run_file(path: Path, what: str) -> Any:
    """The module that a file makes; run again only if it is another one."""
    place = str(path.resolve())
    spec = importlib.util.spec_from_file_location(f"mmcli_{what}_{path.stem}", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also a SystemExit of a script
        raise UserError(f"{what} file {path} cannot be run: {place_of(error, place)}", "correct the file") from error
    return module
