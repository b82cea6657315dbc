"""What a run reads besides its data: Python files and models of rewards, files of tools, and the reference model."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import nn

from mmcli.api import Input, StageContext, Start, UserError, load_model, pin_inputs
from mmcli_grpo import GrpoConfig
from mmcli_grpo.python_file import digest_of, is_python_file
from mmcli_grpo.rewards import split_reward


def pin_files(config: GrpoConfig, context: StageContext) -> Mapping[str, list[str]]:
    """`--reward` and `--tool` with absolute paths, the same in a resumed run, whose files must be as they were.

    Raises:
        UserError: a file that the run began with is gone or another one, or there is no such model of a reward.
    """
    found: dict[str, list[str]] = {}
    digests: dict[str, str] = {}
    for name, arguments in (("reward", config.reward), ("tool", config.tool or ())):
        absolute: Callable[[], list[str]] = functools.partial(_all_absolute, arguments, context)
        found[name] = [str(each) for each in context.run.choose(name, absolute)]
        for argument in found[name]:
            named = split_reward(argument)[0] if name == "reward" else argument
            file = named.rpartition(":")[0]
            if is_python_file(named):
                digests |= {file: digest_of(named)} if Path(file).is_file() else {}
            elif "=" in named:
                digests |= _weights(Path(named.partition("=")[2]))
    if digests:
        pin_inputs(context, {"data/functions": Input.of(digests)})
    return found


def _all_absolute(arguments: Sequence[str], context: StageContext) -> list[str]:
    return [_absolute(argument, context) for argument in arguments]


def _absolute(argument: str, context: StageContext) -> str:
    """A file by its whole path, and the model of `NAME=MODEL` by that of its folder."""
    if ".py:" in argument:
        path, ending, function = argument.partition(".py:")
        return str(Path(path).expanduser().absolute()) + ending + function
    named = split_reward(argument)[0]
    name, _, model = named.partition("=")
    if not model:
        return argument
    return f"{name}={context.find_model(model).path.absolute()}{argument.removeprefix(named)}"


def _weights(folder: Path) -> dict[str, str]:
    """The SHA-256 (hex) of each file of weights in a folder."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


def open_reference(config: GrpoConfig, start: Start, context: StageContext) -> nn.Module | None:
    """The starting model, frozen, where a KL divergence from it is asked for and no adapter has it already.

    Raises:
        UserError: a resumed run finds it gone or changed.
    """
    if config.kl_coef == 0 or start.adapter is not None:
        return None
    assert start.parent is not None
    folder = start.parent.path
    if not (folder / "config.json").is_file():
        raise UserError(f"the reference of {context.run.name}, {folder}, is gone", "bring it back")
    weights = {Path(path).name: digest for path, digest in _weights(folder).items()}
    pin_inputs(context, {"reference": Input.of(weights)})
    return load_model(folder, device=start.accelerator.device).eval().requires_grad_(False)
