"""The guide's stage is what it says: two short files that train."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "plugins.md"
TEXT = "\n\n".join(
    f"Line {i}: the {('cat', 'dog', 'owl')[i % 3]} {i * 7 % 101} sleeps in house {i % 17}." for i in range(300)
)


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_stage_of_the_guide_trains(new_site: Any, tmp_path: Path) -> None:
    code, project = block("python"), tomllib.loads(block("toml"))["project"]
    assert len(block("toml").splitlines()) == 5
    assert len(code.splitlines()) <= 72
    (tmp_path / "site").mkdir()
    site = new_site(tmp_path / "site")
    assert site.add(project["name"], project["entry-points"], code, project["version"]) == "mmcli_focal"
    (tmp_path / "text.txt").write_text(TEXT)
    settings = ["model.dim=32", "model.n_layers=1", "model.n_heads=4", "model.vocab_size=400", "model.use_moe=true"]
    argv = [word for setting in settings for word in ("--set", setting)]
    argv += ["--data", str(tmp_path / "text.txt"), "--seq-len", "64", "--batch-size", "4", "--steps", "8"]
    done = site.mmcli("focal", "--gamma", "1.5", *argv, "--runs-dir", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "0001-focal-tiny"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = metrics[0], metrics[7]
    assert last["loss"] < first["loss"]
    assert 0 < first["loss"] < first["cross_entropy"]
    assert last["cross_entropy"] < first["cross_entropy"]
    assert (run / "model" / "config.json").is_file()
