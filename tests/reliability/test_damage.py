"""Each flipped byte and each cut of a file that mmcli reads back is detected, by its reader and by `runs verify`."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmcli.cli import run as mmcli
from mmcli.data.encode.cache import TOKEN_CACHES, TokenCache
from mmcli.data.encode.stored import DamagedCacheError
from mmcli.errors import UserError
from mmcli.generate.onnx_engine import OnnxEngine
from mmcli.manifest import MANIFEST, refuse_damaged
from mmcli.model.formats.hf_folder import load_model
from mmcli.run import CHECKPOINT_FILES, Run
from mmcli.text.tokenizer import Tokenizer
from mmcli.verify import verify_cache, verify_run

NAMES, PLACES = ("Ada", "Bo", "Cy", "Di", "小明", "小红"), ("Rome", "Oslo", "Lima", "北京")
SHAPE = ["--set", "model.dim=128", "--set", "model.n_layers=2", "--set", "model.n_heads=4"]
SMALL = ["--seq-len", "64", "--batch-size", "4", "--micro-batch", "2", "--steps", "4", "--compile", "off"]
OFTEN = ["--set", "train.checkpoint_every=2"]
NOT_CHECKED = {  # without a manifest
    *("run.json", "metrics.jsonl", "samples.jsonl", "config.toml", "resolved.toml", "inputs.json"),
    "evaluations.json",  # results of `mmcli eval`
    "report.html",  # made of the others
}
PRETRAIN, DPO = "0002-pretrain-tiny", "0003-dpo-tiny"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a tokenizer, a model with both exports, and a model trained on preferences."""
    root = tmp_path_factory.mktemp("damage")
    facts = [(name, place) for name in NAMES for place in PLACES]
    texts = [f"{name} lives in {place}. The home of {name} is {place}." for name, place in facts]
    (root / "text.txt").write_text("\n".join(texts * 3), encoding="utf-8")
    pairs = [{"prompt": f"Where is {n}?", "chosen": f"In {p}.", "rejected": f"Not in {p}."} for n, p in facts]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    text, folder = ["--data", str(root / "text.txt")], ["--runs-dir", str(root / "runs")]
    for argv in (
        ["tokenizer", "train", *text, "--vocab-size", "400"],
        ["pretrain", *text, *SHAPE, *SMALL, *OFTEN],
        ["export", "onnx", "2"],
        ["export", "hf", "2"],
        ["eval", "2", "--limit", "1", "--max-new-tokens", "2"],
        ["dpo", "--data", str(root / "pairs.jsonl"), "--from", "2", *SMALL, *OFTEN],
    ):
        assert mmcli([*argv, *folder]) == 0, argv
    return root / "runs"


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "runs"))


def read_model(folder: Path) -> None:
    load_model(folder)
    Tokenizer.load(folder)


def read_sealed(*names: str) -> Callable[[Path], None]:
    return lambda folder: refuse_damaged(folder, [*names] or None)


# How each kind of folder is read back, by its place in the runs folder.
READERS: dict[str, Callable[[Path], object]] = {
    "0001-*/model": Tokenizer.load,
    "*/tokenizer": Tokenizer.load,
    "000[23]-*/model": read_model,
    "*/export/hf": read_model,
    "*/export/onnx-fp32": OnnxEngine.load,
    "*/checkpoints/step-*": read_sealed(*CHECKPOINT_FILES),
    "*/reference": read_sealed(),
    f"{TOKEN_CACHES}/*": TokenCache,
}
UNREAD = {"README.md", "export.json"}  # not read by who loads the model of a folder


def read_back(runs: Path) -> Iterator[tuple[Path, Callable[[Path], object]]]:
    """(file, reader of its folder) of every file that has a checksum."""
    for pattern, reader in READERS.items():
        folders = [path for path in sorted(runs.glob(pattern)) if path.is_dir()]
        assert folders, pattern
        for folder in folders:
            yield from ((path, reader) for path in sorted(folder.rglob("*")) if path.is_file())


def test_every_file_of_a_run_is_of_a_known_kind(runs: Path) -> None:
    known = {path for path, _ in read_back(runs)}
    others = {path.relative_to(runs).as_posix() for path in runs.rglob("*") if path.is_file() and path not in known}
    assert {other.rsplit("/", 1)[-1] for other in others} <= NOT_CHECKED | {"files.json"}
    assert {path.stat().st_mode for path in known} == {(runs / PRETRAIN / "run.json").stat().st_mode}


def damaged(path: Path, how: str, at: float) -> bytes:
    """Flip a bit at the share `at` of a file, or cut it there; the content before."""
    whole = path.read_bytes()
    place = min(int(at * len(whole)), len(whole) - 1)
    if how == "flip":
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
    else:
        os.truncate(path, place)
    return whole


def detected(runs: Path, path: Path, reader: Callable[[Path], object]) -> None:
    """Assert that damage of `path` is seen and named: by its reader, and by the check of its run or cache."""
    folder = next(each for each in path.parents if (each / MANIFEST).exists() or (each / "meta.json").exists())
    named = (str(path), str(folder / MANIFEST))  # what is wrong in a manifest may show as a file's damage
    is_manifest = path.name == MANIFEST
    if path.name not in UNREAD and not is_manifest:
        with pytest.raises((UserError, DamagedCacheError)) as caught:
            reader(folder)
        assert any(name in str(caught.value) for name in named), caught.value
    if TOKEN_CACHES in path.as_posix():
        found = verify_cache(folder)
    else:
        found = verify_run(Run(runs / path.relative_to(runs).parts[0]))
    assert found.faults
    assert is_manifest or all(str(path) in fault.what for fault in found.faults), found.faults


@pytest.mark.parametrize(("how", "at"), [("flip", 0.7), ("cut", 0.4)])
def test_damage_of_any_file_is_detected(copy: Path, how: str, at: float) -> None:
    for path, reader in read_back(copy):
        whole = damaged(path, how, at)
        detected(copy, path, reader)
        path.write_bytes(whole)


@pytest.mark.parametrize(("how", "at"), [("flip", 0.7), ("cut", 0.4), ("flip", 0.1)])
@pytest.mark.parametrize("name", ["config.toml", "resolved.toml", "inputs.json"])
def test_damage_of_what_tells_what_a_run_is_is_detected(copy: Path, name: str, how: str, at: float) -> None:
    path = copy / PRETRAIN / name
    damaged(path, how, at)
    faults = verify_run(Run(copy / PRETRAIN)).faults
    assert faults and str(path) in faults[0].what


def test_a_cut_file_of_results_is_detected_and_no_more_than_that(copy: Path) -> None:
    path = copy / PRETRAIN / "evaluations.json"
    damaged(path, "cut", 0.6)
    [fault] = verify_run(Run(copy / PRETRAIN)).faults
    assert str(path) in fault.what and "mmcli eval 2" in fault.fix
    assert mmcli(["runs", "show", "2", "--runs-dir", str(copy)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_hundred_random_damages_are_detected(copy: Path, how: str) -> None:
    draw = random.Random(how)
    files = list(read_back(copy))
    for number in range(100):
        path, reader = files[number % len(files)]
        whole = damaged(path, how, draw.random())
        detected(copy, path, reader)
        path.write_bytes(whole)


def zeroed(path: Path) -> None:
    """Write zeros near the end of a file, 4 KiB if it is that large."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(size * 3 // 4)
        file.write(bytes(min(4096, size // 4)))


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The two lines of a command that exits with 2."""
    assert mmcli(argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "  fix:"))]
    assert len(lines) == 2
    return lines


@pytest.mark.parametrize(
    "argv", [["chat", "--prompt", "Hi"], ["eval"], ["export", "onnx"], ["export", "hf"], ["sft", "--from"]]
)
def test_a_zeroed_model_is_not_used(copy: Path, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    weights = copy / PRETRAIN / "model" / "model.safetensors"
    zeroed(weights)
    where = [argv[0], *argv[1:], "2"] if argv[0] != "chat" else ["chat", "2", *argv[1:]]
    what, _ = refused([*where, "--runs-dir", str(copy)], capsys)
    assert f"{weights} is damaged: bytes " in what and ", in model.layers." in what
    assert not (copy / PRETRAIN / "export" / "onnx-int8").exists()


def test_a_damaged_export_is_made_anew_unless_it_was_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = copy / PRETRAIN / "export" / "onnx-fp32"
    zeroed(export / "model.onnx")
    what, fix = refused(["chat", str(export), "--backend", "onnx", "--prompt", "Hi"], capsys)
    assert f"{export / 'model.onnx'} is damaged: bytes" in what and "mmcli export onnx" in fix
    argv = ["chat", "2", "--backend", "onnx", "--prompt", "Hi", "--runs-dir", str(copy), "--max-new-tokens", "2"]
    assert mmcli(argv) == 0
    assert f"{export / 'model.onnx'} is damaged" in capsys.readouterr().err
    assert verify_run(Run(copy / PRETRAIN)).faults == ()


def stopped(run: Path) -> None:
    """Make a finished run one that can be resumed from the checkpoint before its last."""
    shutil.rmtree(run / "checkpoints" / "step-000004")
    Run(run).update(state="stopped")


def test_a_damaged_tokenizer_of_a_run_is_named_on_resume(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = "tokenizer/tokenizer.json"
    stopped(copy / DPO)
    whole = damaged(copy / DPO / part, "flip", 0.8)
    what, _ = refused(["resume", "3", "--runs-dir", str(copy)], capsys)
    assert f"{copy / DPO / part} is damaged" in what
    (copy / DPO / part).write_bytes(whole)
    Run(copy / DPO).update(state="stopped")
    assert mmcli(["resume", "3", "--runs-dir", str(copy)]) == 0


def test_a_damaged_reference_is_named_and_computed_again(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped(copy / DPO)
    table = copy / DPO / "reference/logps.safetensors"
    whole = damaged(table, "flip", 0.8)
    assert mmcli(["resume", "3", "--runs-dir", str(copy)]) == 0
    assert f"{table} is damaged" in " ".join(capsys.readouterr().err.split())
    assert table.read_bytes() == whole


def test_a_manifest_of_nothing_is_no_checkpoint(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(copy / PRETRAIN).update(state="stopped")
    newest = copy / PRETRAIN / "checkpoints" / "step-000004"
    (newest / MANIFEST).write_text("{}\n")
    assert mmcli(["resume", "2", "--runs-dir", str(copy)]) == 0
    said = capsys.readouterr().err
    assert f"{newest / MANIFEST} names no file; trying an older checkpoint" in said and "resumed at step 2" in said
    for path in (copy / PRETRAIN / "checkpoints").iterdir():
        (path / MANIFEST).write_text("{}\n")
    Run(copy / PRETRAIN).update(state="stopped")
    what, _ = refused(["resume", "2", "--runs-dir", str(copy)], capsys)
    assert "every checkpoint in" in what


def test_a_damaged_token_cache_is_made_anew_in_a_training(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped(copy / PRETRAIN)
    key = Run(copy / PRETRAIN).info()["data"]["cache"]
    tokens = copy / TOKEN_CACHES / key / "tokens.bin"
    whole = tokens.read_bytes()
    zeroed(tokens)
    assert mmcli(["runs", "verify", "2", "--runs-dir", str(copy)]) == 2
    assert f"{tokens} is damaged: bytes 0 to" in capsys.readouterr().err
    assert mmcli(["resume", "2", "--runs-dir", str(copy)]) == 0
    assert f"{tokens} is damaged: bytes 0 to" in capsys.readouterr().err
    assert tokens.read_bytes() == whole
