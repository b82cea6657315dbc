"""The command line starts quickly: nothing heavy is imported until a command needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "datasets", "onnx", "onnxruntime", "transformers")


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    assert loaded_after("import mmcli.cli") == set()


def test_importing_the_python_interface_loads_nothing_heavy() -> None:
    assert loaded_after("import mmcli.api") == set()
    assert loaded_after("import mmcli.testing") == set()
    light = (
        "Adapter, ConfigError, DataConfig, OptimConfig, Stage, StageContext, TrainConfig, UserError, option, run_stage"
    )
    assert loaded_after(f"from mmcli.api import {light}") == set()


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["params", "count", "--json"],
        ["params", "compare"],
        ["presets", "list"],
        ["config", "show", "pretrain"],
        ["pretrain", "--help"],
        ["runs", "list"],
        ["eval", "--help"],
        ["import", "--help"],
        ["export", "hf", "--help"],
        ["export", "onnx", "--help"],
        ["bench", "--help"],
        ["data", "--help"],
        ["chat", "--help"],
        ["serve", "--help"],
        ["tokenizer", "--help"],
    ],
    ids=" ".join,
)
def test_light_commands_load_nothing_heavy(argv: list[str]) -> None:
    quiet = "with contextlib.redirect_stdout(io.StringIO()):"
    code = f"import io, contextlib\nfrom mmcli.cli import run\n{quiet} run({argv!r})"
    assert loaded_after(code) == set()
