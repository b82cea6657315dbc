"""The guide's stage is what it says: two short files that train; so is its suite."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from mmcli.evaluation.suites import find_suite
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.scaffold import write_package
from mmcli.text.train import train_tokenizer

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "plugins.md"
TEXT = "\n\n".join(
    f"Line {i}: the {('cat', 'dog', 'owl')[i % 3]} {i * 7 % 101} sleeps in house {i % 17}." for i in range(300)
)


def block(language: str, section: str = "") -> str:
    """The first block in a language, of the whole guide or of the section with that title."""
    text = GUIDE.read_text(encoding="utf-8")
    found = re.search(rf"```{language}\n(.*?)```", text[text.index(f"## {section}") :], re.DOTALL)
    assert found is not None
    return found[1]


def test_the_stage_of_the_guide_trains(new_site: Any, tmp_path: Path) -> None:
    code, project = block("python"), tomllib.loads(block("toml"))["project"]
    write_package("stage", "focal", tmp_path / "new")
    assert block("toml") == (tmp_path / "new" / "pyproject.toml").read_text(encoding="utf-8")
    assert code == (tmp_path / "new" / "mmcli_focal.py").read_text(encoding="utf-8")
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


SUITE = "A suite of questions"


def test_the_suite_of_the_guide_scores_a_model(new_site: Any, tmp_path: Path) -> None:
    code, project = block("python", SUITE), tomllib.loads(block("toml", SUITE))["project"]
    assert len(code.splitlines()) <= 25
    (tmp_path / "site").mkdir()
    site = new_site(tmp_path / "site")
    assert site.add(project["name"], project["entry-points"], code, project["version"]) == "mmcli_colours"
    tokenizer = train_tokenizer([TEXT, "What colour is grass? green"], vocab_size=400)
    config = ModelConfig(dim=32, n_layers=1, n_heads=4, vocab_size=400, max_seq_len=600)
    for name in ("a", "b"):
        save_model(tmp_path / name, Transformer(config), config, tokenizer)
    models = (str(tmp_path / "a"), str(tmp_path / "b"))
    done = site.mmcli_here("eval", *models, "--suite", "colours", "--max-new-tokens", "3", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    for each in json.loads(done.stdout)["models"]:
        [result] = each["results"]
        assert (result["suite"], result["version"], result["questions"]) == ("colours", "1", 4)
        assert {name: score["total"] for name, score in result["family_scores"].items()} == {"known": 2, "tools": 2}
    with site.visible():
        suite = find_suite("colours")
        judge, items = suite.load_judge(), suite.load_items()
        assert [judge(item, item.answers[0]) for item in items] == [True] * 4
        assert [judge(item, "It is green.") for item in items] == [True, False, False, False]
        listed = site.mmcli("plugins", "list", "--json")
    states = {(each["kind"], each["name"]): each["state"] for each in json.loads(listed.stdout)}
    assert states["suite", "colours"] == "ok"
