"""Which files an argument of `--data` names: each real file once, none that mmcli wrote, none that is no file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from mmcli.data.record import Record
from mmcli.data.sources.sources import Sources, open_sources
from mmcli.errors import UserError


def write(path: Path, text: str = '{"text": "hello"}\n') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(argument: Path, base: Path) -> list[str]:
    return [file.path.relative_to(base).as_posix() for file in open_sources([str(argument)]).files]


def records(sources: Sources) -> list[dict[str, object]]:
    items = list(sources.records())
    assert all(isinstance(item, Record) for item in items), items
    return [item.value for item in items if isinstance(item, Record)]


def make_outputs(folder: Path) -> None:
    """A run, a model and a tokenizer folder, as mmcli leaves them."""
    for name in (
        "config.toml",
        "run.json",
        "metrics.jsonl",
        "quarantine.jsonl",
        "model/config.json",
        "model/README.md",
    ):
        write(folder / "runs/0001-pretrain-x" / name, "{}\n")
    write(folder / "runs/0001-pretrain-x/export/onnx-fp32/genai_config.json", "{}\n")
    write(folder / "runs/.cache/tokens/x.json", "{}\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt", "README.md"):
        write(folder / "words" / name, "{}\n")


@pytest.mark.parametrize("pattern", [".", "**/*.*", "**/*"])
def test_own_output_is_no_input_and_that_is_said(tmp_path: Path, pattern: str) -> None:
    make_outputs(tmp_path)
    write(tmp_path / "a.jsonl")
    write(tmp_path / "words/corpus.jsonl")
    assert names(tmp_path / pattern, tmp_path) == ["a.jsonl", "words/corpus.jsonl"]
    said = open_sources([str(tmp_path / pattern)]).describe
    assert "left out: " in said and "6 files of runs" in said and "4 files of models and tokenizers" in said


def test_a_folder_of_nothing_but_output_is_refused_and_a_named_file_is_read(tmp_path: Path) -> None:
    make_outputs(tmp_path)
    with pytest.raises(UserError, match="no data file in it, only 6 files of runs"):
        open_sources([str(tmp_path / "runs")])
    with pytest.raises(UserError, match="matches no file but"):
        open_sources([str(tmp_path / "runs/**/*.jsonl")])
    named = write(tmp_path / "runs/0001-pretrain-x/quarantine.jsonl")
    assert records(open_sources([str(named)])) == [{"text": "hello"}]


@pytest.mark.parametrize("pattern", ["", "**/*.jsonl"])
def test_each_real_file_comes_once(tmp_path: Path, pattern: str) -> None:
    base = tmp_path / "d"
    for number in range(3):
        write(base / f"{number}.jsonl", json.dumps({"text": f"text {number}"}) + "\n")
    write(tmp_path / "elsewhere/more.jsonl")
    (base / "loop").symlink_to(".")
    (base / "again").symlink_to("loop")
    (base / "part").symlink_to("../elsewhere")
    (base / "alias.jsonl").symlink_to("0.jsonl")
    os.link(base / "1.jsonl", base / "hard.jsonl")
    assert names(base / pattern, base) == ["0.jsonl", "1.jsonl", "2.jsonl", "part/more.jsonl"]
    assert "2 files found twice" in open_sources([str(base / pattern)]).describe


def test_a_pattern_without_stars_for_folders_stays_in_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    write(tmp_path / "b/a.jsonl")
    assert names(tmp_path / "*.jsonl", tmp_path) == ["a.jsonl"]
    assert names(tmp_path / "*/[a]?jsonl", tmp_path) == ["b/a.jsonl"]
    assert names(tmp_path / "**", tmp_path) == ["a.jsonl", "b/a.jsonl"]


def test_a_data_sets_card_is_no_text_and_a_readme_alone_is(tmp_path: Path) -> None:
    write(tmp_path / "set/README.md", "---\nlicense: mit\n---\n# A data set\n")
    (tmp_path / "set/data").mkdir()
    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), tmp_path / "set/data/train.parquet")
    write(tmp_path / "docs/README.md", "# A program\n")
    assert names(tmp_path / "set", tmp_path) == ["set/data/train.parquet"]
    assert names(tmp_path / "docs", tmp_path) == ["docs/README.md"]
    assert "1 file that describe a data set" not in open_sources([str(tmp_path / "docs")]).describe


def test_a_folder_of_save_to_disk_is_its_arrow_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"text": [f"number {n}" for n in range(600)]})
    datasets.DatasetDict({"train": whole, "test": whole.select([0, 1])}).save_to_disk(str(tmp_path / "saved"))
    write(tmp_path / "saved/train/cache-0123.arrow", "made by map()")
    found = open_sources([str(tmp_path / "saved" / "train")])
    assert [value["text"] for value in records(found)] == [f"number {n}" for n in range(600)]
    assert len(records(open_sources([str(tmp_path / "saved")]))) == 602


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "a.jsonl"
    os.mkfifo(pipe)
    for name in (str(pipe), "/dev/zero"):
        with pytest.raises(UserError, match="is a pipe or a device, not a file"):
            open_sources([name])
    write(tmp_path / "b.jsonl")
    assert names(tmp_path, tmp_path) == ["b.jsonl"]
