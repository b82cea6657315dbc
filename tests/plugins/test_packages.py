"""The packages of plugins/ as a person gets them: installed by pip, their own tests run against that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"
PACKAGES = ("mmcli-distill", "mmcli-eval", "mmcli-grpo", "mmcli-lora", "mmcli-prefs", "mmcli-replay")


def own_tests(real: Any, marked: str, *packages: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(real.path), "OMP_NUM_THREADS": "1"}
    folders = [str(PLUGINS / package / "tests") for package in packages]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", marked, *folders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_their_own_tests(real: Any) -> None:
    own_tests(real, "not slow", *PACKAGES)


@pytest.mark.slow
def test_their_own_slow_tests(real: Any) -> None:
    own_tests(real, "slow", *PACKAGES)


def test_they_are_listed_and_usable(real: Any) -> None:
    done = real.mmcli("plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    rows = {(row["kind"], row["name"], row["package"]): row["state"] for row in json.loads(done.stdout)}
    assert rows["stage", "continue", "mmcli-replay"] == "ok"
    assert rows["stage", "distill", "mmcli-distill"] == "ok"
    assert rows["stage", "prefs", "mmcli-prefs"] == "ok"
    assert rows["adapter", "lora", "mmcli-lora"] == "ok"
    assert rows["stage", "grpo", "mmcli-grpo"] == "ok"
    assert rows["suite", "code", "mmcli-eval"] == rows["suite", "lm-eval", "mmcli-eval"] == "ok"
    assert {name for kind, name, _ in rows if kind == "reward"} == {"exact-answer", "format", "length", "model"}
    assert all(state == "ok" for (kind, *_), state in rows.items() if kind == "reward")


def test_a_plugin_stage_has_the_options_of_any_stage(real: Any) -> None:
    done = real.mmcli("config", "show", "continue", "--data", "news.txt", "--lr", "1e-4", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["config"]["data"]["sources"] == ["news.txt"]
    assert shown["config"]["optim"]["lr"] == 1e-4
    assert shown["sources"]["optim.lr"] == "--lr"
    assert shown["config"]["replay_share"] == 0.25
