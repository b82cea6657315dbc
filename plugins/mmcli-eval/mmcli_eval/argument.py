"""What follows the name of a suite: `NAME[,NAME...][,KEY=VALUE...]`."""

from __future__ import annotations

from typing import Any, TypeVar

from mmcli.api import Layer, UserError, parse_set, resolve

Settings = TypeVar("Settings")


def read_argument(suite: str, argument: str, config: type[Settings], example: str) -> tuple[list[str], Settings]:
    """(names, settings) of `a,b,key=value`.

    Args:
        config: a frozen dataclass, whose fields are the keys.
        example: a whole argument, for whoever gave none.

    Raises:
        UserError: there is no name, an unknown key or a wrong value.
    """
    parts = [part.strip() for part in argument.split(",") if part.strip()]
    names = [part for part in parts if "=" not in part]
    if not names:
        raise UserError(f"--suite {suite} does not say what to measure", f"give it after a colon: --suite {example}")
    values = parse_set([part for part in parts if "=" in part]).values
    settings: Any = resolve(config, [Layer(f"--suite {suite}:{argument}", values)]).config
    return names, settings
