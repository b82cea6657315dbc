"""The built-in stages are registered as a plugin would be, and `mmcli --help` says what they say."""

from __future__ import annotations

import tomllib
from pathlib import Path

import mmcli.stages
from mmcli import plugins
from mmcli.cli import COMMANDS
from mmcli.cli.stages import BUILT_IN_SUMMARIES, stage_entries
from mmcli.stage import Stage

ROOT = Path(__file__).parents[2]
STAGES = {name: each for name, each in vars(mmcli.stages).items() if isinstance(each, Stage)}


def test_summaries_are_those_of_the_stages() -> None:
    assert {each.name: each.summary for each in STAGES.values()} == BUILT_IN_SUMMARIES


def test_every_stage_is_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    expected = {each.name: f"mmcli.stages:{name}" for name, each in STAGES.items()}
    assert project["entry-points"]["mmcli.stages"] == expected


def test_built_ins_come_first_and_in_order() -> None:
    assert [entry.name for entry in stage_entries() if entry.built_in] == list(BUILT_IN_SUMMARIES)


def test_no_plugin_can_take_the_name_of_a_command() -> None:
    assert frozenset(COMMANDS) == plugins.COMMANDS
