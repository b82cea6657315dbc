"""The way of a record from its file to a batch: how many files it passes, and that its source is opened once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import mmcli
from mmcli.config import Resolved
from mmcli.data.config import DataConfig
from mmcli.data.pack.batches import Batches
from mmcli.data.sources import source as source_module
from mmcli.data.sources.sources import open_data
from mmcli.run import Run
from mmcli.stage import Silent, StageContext
from mmcli.stages.tokens import open_rows
from mmcli.text.tokenizer import Tokenizer
from mmcli.train.config import TrainConfig

PACKAGE = Path(mmcli.__file__).parent
# Not on the way of the record: configuration and errors, the reporter, the finding of files, and the run folder with
# what is kept there of the inputs (their names and keys, which no record is part of); what an argument names, and the
# life of a cache's folder.
BESIDE = {
    *("config.py", "errors.py", "stage.py", "data/config.py", "plugins.py", "data/formats/find.py"),
    *("run.py", "files.py", "manifest.py", "inputs.py", "stages/pins.py", "data/sources/pinning.py"),
    *("data/sources/source.py", "data/encode/stored.py"),
}
MOST_FILES = 12


@contextmanager
def traced() -> Iterator[set[str]]:
    """The files of the package in which a function ran."""
    found: set[str] = set()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and frame.f_code.co_name != "<module>" and path.is_relative_to(PACKAGE):
            found.add(path.relative_to(PACKAGE).as_posix())

    sys.setprofile(profile)
    try:
        yield found
    finally:
        sys.setprofile(None)


def context(folder: Path) -> StageContext:
    run = Run.create(folder / "runs", "pretrain", "x")
    return StageContext(run, Silent(), Resolved(None, {}))


def write(path: Path, count: int = 40) -> str:
    path.write_text("".join(json.dumps({"text": f"the quick brown fox {n}"}) + "\n" for n in range(count)))
    return str(path)


def test_a_pretrain_record_passes_few_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = DataConfig(sources=(write(tmp_path / "a.jsonl"),), seq_len=32, val_fraction=0.1)
    place, train = context(tmp_path), TrainConfig()
    with traced() as files:
        data = open_data("text", config)
        rows = open_rows(data, train, tokenizer, place)
        [batch] = Batches(rows.cache, rows.train, batch_size=2, micro_batch=2, seed=0).micro_batches(0)
    assert batch.ids_BT.shape == (2, 32)
    passed = sorted(files - BESIDE)
    assert {"data/formats/lines.py", "data/encode/cache.py", "text/tokenizer.py", "stages/tokens.py"} <= set(passed)
    assert len(passed) <= MOST_FILES, "\n".join(passed)


def test_a_source_is_opened_once(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def open_files(name: str) -> Any:
        opened.append(name)
        return real(name)

    real = source_module.open_files
    monkeypatch.setattr(source_module, "open_files", open_files)
    names = (write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl"))
    data = open_data("text", DataConfig(sources=names[:1], val=names[1:], seq_len=32))
    open_rows(data, TrainConfig(), tokenizer, context(tmp_path))
    assert opened == list(names)
