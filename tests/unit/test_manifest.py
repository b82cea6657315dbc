"""Manifests show every changed byte, say where it is, and leave other people's folders alone."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmcli import manifest
from mmcli.errors import UserError
from mmcli.files import atomic_folder, write_json
from mmcli.manifest import BLOCK, MANIFEST, damage, damages, refuse_damaged


def flip(path: Path, at: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed folder with a small file and a safetensors file of several blocks: `first`, `second`, `third`."""
    with atomic_folder(tmp_path / "model") as beside:
        (beside / "config.json").write_text("{}")
        tensors = {name: np.arange(300_000, dtype=np.float32) for name in ("first", "second", "third")}
        save_file(tensors, beside / "model.safetensors")
    return tmp_path / "model"


def test_every_flip_and_every_cut_of_a_manifest_is_seen(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "step") as beside:
        (beside / "progress.json").write_text("{}")
    path = tmp_path / "step" / MANIFEST
    whole = path.read_bytes()
    assert damage(tmp_path / "step", needed=["progress.json"]) is None
    for at in range(len(whole)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128):
            flip(path, at, mask)
            assert damage(tmp_path / "step", needed=["progress.json"]) is not None, (at, mask)
            with pytest.raises(UserError):
                refuse_damaged(tmp_path / "step", ["progress.json"])
            path.write_bytes(whole)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            refuse_damaged(tmp_path / "step", ["progress.json"])


def test_damage_names_the_bytes_and_the_tensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    flip(path, 2 * BLOCK + 5)
    assert str(damage(folder)) == f"{path} is damaged: bytes 2,097,152 to 3,145,727, in second, third"
    with pytest.raises(UserError) as caught:
        refuse_damaged(folder, ["model.safetensors"], remake="mmcli export hf")
    assert caught.value.what == str(damage(folder))
    assert caught.value.fix.startswith("restore it from a copy, or make it again (mmcli export hf); if it was changed")
    flip(path, 0)  # the header, which names the tensors
    assert str(damage(folder)).endswith("is damaged: bytes 0 to 1,048,575, bytes 2,097,152 to 3,145,727")


def test_a_cut_file_says_where_it_ends(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, BLOCK + 100)
    problem = str(damage(folder))
    assert "bytes 1,048,576 to 1,048,675" in problem and "it ends after 1,048,676 bytes" in problem
    assert "in first, second, third" in problem
    os.truncate(path, 0)
    assert "model.safetensors is damaged" in str(damage(folder))
    path.unlink()
    assert str(damage(folder)) == f"{path} is missing"


def test_appended_bytes_are_damage(folder: Path) -> None:
    with open(folder / "model.safetensors", "ab") as file:
        file.write(bytes(2 * BLOCK))
    assert "is damaged: bytes 3,145,728 to " in str(damage(folder))


def test_a_manifest_must_name_what_is_needed(folder: Path) -> None:
    assert damage(folder, needed=["config.json"]) is None
    assert str(damage(folder, needed=["other.json"])) == f"{folder / MANIFEST} does not name other.json"
    write_json(folder / MANIFEST, {})
    assert str(damage(folder)) == f"{folder / MANIFEST} names no file"
    with pytest.raises(UserError, match=r"manifest\.json does not name config\.json"):
        refuse_damaged(folder, ["config.json"])


def test_all_damage_is_listed(folder: Path) -> None:
    flip(folder / "config.json", 0)
    (folder / "model.safetensors").unlink()
    assert [each.path.name for each in damages(folder)] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("content", [None, '{"name": "an app", "icons": []}', "[1, 2]"])
def test_other_peoples_folders_are_taken(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "config.json").write_text("{}")
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    refuse_damaged(tmp_path, ["config.json"])
    refuse_damaged(tmp_path)


@pytest.mark.parametrize("name", ["../config.json", "/etc/hostname", "a/../../b"])
def test_a_manifest_stays_inside_its_folder(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / MANIFEST, {name: "0" * 64})
    with pytest.raises(UserError, match="which is outside its folder"):
        refuse_damaged(tmp_path)


def test_manifests_with_one_digest_a_file_are_read(folder: Path) -> None:
    path = folder / "model.safetensors"
    digests = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in (folder / "config.json", path)}
    write_json(folder / MANIFEST, digests)
    assert damage(folder) is None
    flip(path, BLOCK)
    assert "model.safetensors is damaged: bytes 0 to " in str(damage(folder))


def test_a_file_is_read_once_until_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    whole = manifest.file_digests
    monkeypatch.setattr(manifest, "_whole_digest", lambda path: [read.append(path), whole(path)][1])
    monkeypatch.setattr(manifest, "SETTLED_SECONDS", -1.0)
    for _ in range(2):
        refuse_damaged(folder, ["config.json"])
    assert len(read) == 1
    data = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(data)
    refuse_damaged(folder, ["config.json"])
    assert len(read) == 2


def test_what_has_just_changed_is_read_again(folder: Path) -> None:
    path, times = folder / "config.json", os.stat(folder / "config.json")
    refuse_damaged(folder, ["config.json"])
    with open(path, "r+b") as file:  # the same size, and in the same tick of the clock
        file.write(b"[")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match="is damaged"):
        refuse_damaged(folder, ["config.json"])


def test_the_manifest_is_canonical_json(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    found = json.loads(text)
    assert list(found) == ["config.json", "model.safetensors"]
    data = (folder / "model.safetensors").read_bytes()
    blocks = [hashlib.sha256(data[at : at + BLOCK]).hexdigest() for at in range(0, len(data), BLOCK)]
    assert found["model.safetensors"] == blocks
    assert found["config.json"] == hashlib.sha256(b"{}").hexdigest()
