"""Data sets of the Hugging Face hub, with a local data set in place of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from mmcli.cli import run as mmcli
from mmcli.data.config import DataConfig
from mmcli.data.encode.cache import TokenCache
from mmcli.data.record import Record, Rejected
from mmcli.data.sources.hub import HubData, open_hub
from mmcli.data.sources.pinning import pin_data
from mmcli.data.sources.sources import open_sources
from mmcli.errors import MmcliError, UserError
from mmcli.run import Run, list_runs
from mmcli.text.tokenizer import Tokenizer

COMMIT = "0123456789abcdef" * 2 + "01234567"
MOVED = COMMIT[::-1]
SMALL = [
    *(
        "--set",
        "model.dim=32",
        "--set",
        "model.n_layers=1",
        "--set",
        "model.n_heads=4",
        "--set",
        "model.vocab_size=400",
    ),
    *("--set", "train.device=cpu", "--seq-len", "64", "--batch-size", "2", "--micro-batch", "2", "--steps", "2"),
]


class Hub:
    """A hub with one data set; remembers how it was asked, and how many rows were taken."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.sha = COMMIT
        self.taken = 0
        self.breaks_after: int | None = None

    def dataset_info(self, repo: str, **more: Any) -> Any:
        return huggingface_hub.DatasetInfo(id=repo, sha=self.sha, tags=[], private=False, downloads=0, likes=0)

    def load_dataset(self, path: str, name: str | None = None, **more: Any) -> datasets.IterableDataset:
        self.asked.append({"path": path, "name": name, **more})
        if more["split"] == "missing":
            raise ValueError("Unknown split \"missing\". Should be one of ['train'].\nMore.")

        def rows() -> Any:
            for number in range(3000):
                if number == self.breaks_after:
                    raise ConnectionError("the line went dead")
                self.taken += 1
                yield {"text": f"the quick fox {number}" if number != 7 else "nul \0", "note": None}

        return datasets.IterableDataset.from_generator(rows)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub()
    monkeypatch.setattr(datasets, "load_dataset", fake.load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, repo, **more: fake.dataset_info(repo))
    return fake


@pytest.mark.parametrize(
    ("name", "config", "split"),
    [
        ("hf:o/n", None, "train"),
        ("hf:o/n:validation", None, "validation"),
        ("hf:o/n:wikitext-2", "wikitext-2", "train"),
        ("hf:o/n:cfg:test", "cfg", "test"),
        ("hf:o/n::dev", None, "dev"),
        ("hf:o/n@main:cfg", "cfg", "train"),
    ],
)
def test_names(hub: Hub, name: str, config: str | None, split: str) -> None:
    assert open_hub(name) == HubData("o/n", config, split, COMMIT)


@pytest.mark.parametrize("name", ["hf:", "hf:o", "hf:o/n/x", "hf:o/n:a:b:c", "hf:o/n b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UserError, match="names no data set"):
        open_hub(name)


def test_records_are_streamed_at_the_pinned_commit(hub: Hub) -> None:
    sources = open_sources(["hf:o/n:cfg:train"])
    assert hub.asked[0] == {"path": "o/n", "name": "cfg", "split": "train", "revision": COMMIT, "streaming": True}
    assert hub.taken < 100  # a look at the first ones
    assert sources.describe == "hf:o/n:cfg:train (as of 0123456)"
    items = list(sources.records())
    assert [(item.file, item.line, item.value) for item in items if isinstance(item, Record)][:1] == [
        ("hf:o/n:cfg:train", 1, {"text": "the quick fox 0"})
    ]
    assert [item.line for item in items if isinstance(item, Rejected)] == [8]


def test_the_cache_knows_the_commit(hub: Hub, tmp_path: Path, tokenizer: Tokenizer) -> None:
    def build() -> TokenCache:
        return TokenCache.build_or_open(tmp_path / "cache", open_sources(["hf:o/n"]), tokenizer)

    first = build()
    assert (first.tally.kept, first.tally.rejected) == (2999, 1)
    hub.taken = 0
    assert build().key == first.key
    assert hub.taken < 100  # not read again
    hub.sha = MOVED
    assert build().key != first.key


def test_a_mixture_with_files(hub: Hub, tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("the lazy dog\n" * 50)
    sources = open_sources(["hf:o/n:0.5", f"{tmp_path}/a.txt:0.5"])
    cache = TokenCache.build_or_open(tmp_path / "cache", sources, tokenizer)
    assert cache.sequences_by_source.tolist() == [2999, 50]
    assert sources.total is None


def test_a_commit_needs_no_hub_to_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: Any, repo: str, **more: Any) -> Any:
        raise OfflineModeIsEnabled("offline mode is on")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    assert open_hub(f"hf:o/n@{COMMIT}:test").revision == COMMIT
    with pytest.raises(UserError) as caught:
        open_hub("hf:o/n")
    assert caught.value.what == "hf:o/n: the Hugging Face hub cannot be reached (offline mode is on)"
    assert "download its files" in caught.value.fix and "\n" not in caught.value.fix


def test_what_is_not_there_and_what_breaks_off(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"hf:o/n:missing cannot be opened: Unknown split") as refused:
        open_sources(["hf:o/n::missing"])
    assert "\n" not in refused.value.what
    sources = open_sources(["hf:o/n"])
    hub.breaks_after = 500
    with pytest.raises(MmcliError, match="broke off after 500 records: the line went dead") as broken:
        list(sources.records())
    assert broken.value.exit_code == 1


def test_a_resumed_run_reads_the_commit_that_it_began_with(
    hub: Hub, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    where = ["--tokenizer", str(tmp_path / "tokenizer"), "--runs-dir", str(tmp_path / "runs")]
    hub.breaks_after = 500
    assert (
        mmcli(["pretrain", "--data", "hf:o/n@v1:0.5", "--data", "hf:o/m:0.5", "--val", "hf:o/n", *SMALL, *where]) == 1
    )
    [run] = list_runs(tmp_path / "runs")
    assert run.info()["state"] == "failed"
    kept = {key: value for key, value in run.read_config("resolved.toml").items() if key.startswith("hf:")}
    assert kept == {"hf:o/n@v1": COMMIT, "hf:o/m": COMMIT, "hf:o/n": COMMIT}
    assert run.read_config()["data"]["sources"] == ["hf:o/n@v1:0.5", "hf:o/m:0.5"]  # as the person wrote it
    capsys.readouterr()

    hub.sha, hub.breaks_after = MOVED, None
    assert mmcli(["resume", "1", *where[2:]]) == 0
    assert {(each["path"], each["revision"]) for each in hub.asked} == {("o/n", COMMIT), ("o/m", COMMIT)}
    assert "hf:o/n@0123456 " in capsys.readouterr().err
    assert mmcli(["pretrain", "--data", "hf:o/n", *SMALL, *where]) == 0
    assert hub.asked[-1]["revision"] == MOVED  # of a new run


@pytest.mark.parametrize(
    ("name", "pinned"),
    [
        ("hf:o/n", f"hf:o/n@{COMMIT}"),
        ("hf:o/n:cfg:test", f"hf:o/n@{COMMIT}:cfg:test"),
        ("hf:o/n@refs/pr/1::dev:0.25", f"hf:o/n@{COMMIT}::dev:0.25"),
        (f"hf:o/n@{MOVED}:test", f"hf:o/n@{MOVED}:test"),
        ("hf:o", "hf:o"),
        ("demo", "demo"),
        ("books/", "books/"),
    ],
)
def test_a_run_keeps_commits(hub: Hub, tmp_path: Path, name: str, pinned: str) -> None:
    run = Run.create(tmp_path, "pretrain", "x")
    assert pin_data(DataConfig(sources=(name,)), run) == DataConfig(sources=(pinned,))
    assert pin_data(DataConfig(val=(name,)), run) == DataConfig(val=(pinned,))
    assert len(run.read_config("resolved.toml")) == (COMMIT in pinned)


def test_a_run_whose_data_is_not_on_the_hub_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(self: Any, repo: str, **more: Any) -> Any:
        raise OfflineModeIsEnabled("offline mode is on")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    assert mmcli(["pretrain", "--data", "hf:o/n", *SMALL, "--runs-dir", str(tmp_path)]) == 2
    assert "hf:o/n: the Hugging Face hub cannot be reached" in capsys.readouterr().err
    assert list_runs(tmp_path) == []
