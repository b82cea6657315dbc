"""A tokenizer trained from Python: its run says what it was trained on and how it measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmcli.errors import UserError
from mmcli.find import find_model
from mmcli.stage import Silent
from mmcli.stages.tokenizer import measure, save_run, train_on
from mmcli.text.tokenizer import Tokenizer

TEXT = "\n\n".join(f"The cat {i} sat on mat {i * 7 % 31}. 猫坐在垫子上。" for i in range(200))


def test_from_a_file_to_a_finished_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    trained = train_on([str(tmp_path / "text.txt")], Silent(), vocab_size=400)
    run = save_run(trained, tmp_path / "runs", "mine")
    assert run.name == "0001-tokenizer-mine"
    info = run.info()
    assert info["state"] == "finished" and info["vocab_size"] == 400
    assert info["bytes"] <= len(TEXT.encode()) and info["rejected"] == 0
    kept = find_model("latest:tokenizer", tmp_path / "runs")
    assert Tokenizer.load(kept.path).fingerprint == info["fingerprint"] == trained.tokenizer.fingerprint
    assert sorted(path.name for path in run.path.iterdir()) == ["model", "run.json"]  # the lock is given up
    assert capfd.readouterr() == ("", "")


def test_data_that_is_not_there_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        train_on([str(tmp_path / "none.txt")], Silent())
    assert list(tmp_path.iterdir()) == []


def test_measurements_are_per_token() -> None:
    assert measure([1, 2, 3, 4], "猫猫 cat") == {
        "characters": 6,
        "bytes": 10,
        "count": 4,
        "characters_per_token": 1.5,
        "bytes_per_token": 2.5,
    }
    assert measure([], "")["bytes_per_token"] == 0.0
