"""docs/guides/recipes.md: each command line is taken; all of them run one after the other in one folder (slow)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[2] / "docs/guides/recipes.md"
BLOCK = re.compile(r"^```\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMANDS = [line.split() for block in BLOCK.findall(GUIDE.read_text(encoding="utf-8")) for line in block.splitlines()]
STAGES = [words[1:] for words in COMMANDS if words[1] not in ("tokenizer", "export", "serve")]
SHORT = ["--steps", "2", "--set", "train.eval_every=2"]


def test_every_stage_has_a_recipe() -> None:
    assert all(words[0] == "mmcli" for words in COMMANDS)
    assert {words[0] for words in STAGES} == {"pretrain", "sft", "dpo", "grpo", "distill", "prefs", "kto", "reward"}


@pytest.mark.parametrize("words", STAGES, ids=" ".join)
def test_every_option_of_a_recipe_is_one_of_its_stage(real: Any, words: list[str]) -> None:
    done = real.mmcli_here("config", "show", *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_recipes_run_one_after_the_other(real: Any, tmp_path: Path) -> None:
    runs = ["--runs-dir", str(tmp_path)]
    for _, *words in COMMANDS:
        if words[0] == "serve":
            continue
        if words in STAGES:
            for option in ("--budget", "--steps"):
                if option in words:
                    del words[words.index(option) : words.index(option) + 2]
            words = [*words, *SHORT]
        done = real.mmcli(*words, *runs)
        assert done.returncode == 0, f"{words}\n{done.stderr}"
