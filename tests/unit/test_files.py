"""Files and folders are whole or absent, and know their damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmcli.files import atomic_folder, damage, write_atomic


def test_a_sealed_folder_knows_its_damage(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "step") as beside:
        (beside / "weights").write_bytes(b"x" * 100)
        assert not (tmp_path / "step").exists()
    assert damage(tmp_path / "step") is None
    (tmp_path / "step" / "weights").write_bytes(b"x" * 99 + b"y")
    assert "weights is damaged" in str(damage(tmp_path / "step"))
    (tmp_path / "step" / "weights").unlink()
    assert "weights is missing" in str(damage(tmp_path / "step"))


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as beside:
        (beside / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "model") as beside:
        (beside / "a").write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_atomic_write_replaces_whole_files(tmp_path: Path) -> None:
    write_atomic(tmp_path / "run.json", b"{}")
    write_atomic(tmp_path / "run.json", json.dumps({"a": 1}).encode())
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
