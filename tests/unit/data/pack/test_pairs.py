"""Preference pairs once they are cut, and what is held out of records that can be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmcli.config import Resolved
from mmcli.data.config import DataConfig
from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.pairs import fit_pairs, pair_rows
from mmcli.data.pack.selection import Selection, split_documents
from mmcli.data.sources.sources import open_data, open_sources
from mmcli.errors import UserError
from mmcli.run import Run
from mmcli.stage import Silent, StageContext
from mmcli.stages.tokens import open_rows
from mmcli.text.tokenizer import Tokenizer
from mmcli.train.config import TrainConfig

SEQ_LEN = 64
LONG = "the quick brown fox jumps over a lazy dog " * 20
Build = Callable[[list[dict[str, str]]], TokenCache]


@pytest.fixture
def pair_cache(tmp_path: Path, tokenizer: Tokenizer) -> Build:
    def build(pairs: list[dict[str, str]]) -> TokenCache:
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        return TokenCache.build_or_open(tmp_path / "cache", open_sources([str(path)], kind="preference"), tokenizer)

    return build


def short(number: int) -> dict[str, str]:
    return {"prompt": f"fox {number}?", "chosen": f"dog {number}", "rejected": "over"}


def test_pairs_that_are_equal_after_the_cut_are_dropped_and_counted(pair_cache: Build) -> None:
    equal = {"prompt": "fox", "chosen": LONG + "judge", "rejected": LONG + "wizards"}
    differ = {"prompt": "fox", "chosen": "judge " + LONG, "rejected": "seven " + LONG}
    cache = pair_cache([short(0), equal, short(1), differ])
    fit = fit_pairs(cache, SEQ_LEN)
    assert fit.usable_N.tolist() == [True, False, True, True] and fit.equal_N.tolist() == [False, True, False, False]
    rows = pair_rows(cache, Selection.whole(cache), SEQ_LEN)
    assert (len(rows), rows.dropped, rows.truncated) == (3, 1, 1)
    assert fit_pairs(cache, 4096).equal_N.sum() == 0


def test_whole_pairs_are_those_that_fit_with_their_last_token(pair_cache: Build) -> None:
    cache = pair_cache([short(0), {"prompt": "fox", "chosen": LONG, "rejected": "dog"}, short(1)])
    longest = int(np.asarray(cache.lengths)[:2].max())
    assert fit_pairs(cache, longest, whole=True).usable_N.tolist() == [True, False, True]
    assert fit_pairs(cache, longest - 1, whole=True).usable_N.tolist() == [False, False, False]
    assert fit_pairs(cache, longest - 1).usable_N.tolist() == [True, True, True]


@pytest.mark.parametrize("seed", range(12))
def test_the_held_out_pairs_are_drawn_from_those_that_fit(pair_cache: Build, seed: int) -> None:
    too_long = [{"prompt": f"{number} {LONG}", "chosen": "a", "rejected": "b"} for number in range(8)]
    cache = pair_cache([each for number in range(8) for each in (short(number), too_long[number])])
    usable_N = fit_pairs(cache, SEQ_LEN).usable_N
    assert usable_N.sum() == 8
    kept, held = split_documents(cache, 0.4, seed, usable_R=usable_N)
    assert len(pair_rows(cache, held, SEQ_LEN)) == len(held) // 2 >= 1
    assert len(pair_rows(cache, kept, SEQ_LEN)) == 8 - len(held) // 2
    assert sorted([*kept.documents, *held.documents]) == list(range(32))


def test_with_one_pair_that_fits_nothing_is_held_out(pair_cache: Build) -> None:
    cache = pair_cache([short(0), *({"prompt": f"{n} {LONG}", "chosen": "a", "rejected": "b"} for n in range(4))])
    kept, held = split_documents(cache, 0.5, 0, usable_R=fit_pairs(cache, SEQ_LEN).usable_N)
    assert len(held) == 0 and len(pair_rows(cache, kept, SEQ_LEN)) == 1


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fitting", [1, 2, 4])
def test_conversations_too_long_never_abort_a_training(
    tmp_path: Path, tokenizer: Tokenizer, seed: int, fitting: int
) -> None:
    path = tmp_path / "chats.jsonl"
    chats = [{"instruction": f"{number} {LONG}", "output": "a"} for number in range(6)]
    chats += [{"instruction": f"fox {number}", "output": "dog"} for number in range(fitting)]
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    report = Notes()
    context = StageContext(Run.create(tmp_path / "runs", "sft", "x"), report, Resolved(None, {}))
    data = open_data("chat", DataConfig(sources=(str(path),), seq_len=SEQ_LEN, val_fraction=0.3))
    rows = open_rows(data, TrainConfig(seed=seed), tokenizer, context)
    assert len(np.unique(rows.train.piece_doc)) >= 1
    assert (rows.val is None) == (fitting == 1)
    assert any(text.startswith("nothing is held out") for text in report.texts) == (fitting == 1)


def test_a_source_whose_only_record_would_be_held_out_keeps_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name, count in (("a", 1), ("b", 9)):
        lines = [json.dumps({"instruction": f"{name} {n}", "output": "dog"}) + "\n" for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    names = [f"{tmp_path}/a.jsonl:0.5", f"{tmp_path}/b.jsonl:0.5"]
    cache = TokenCache.build_or_open(tmp_path / "cache", open_sources(names, kind="chat"), tokenizer)
    for seed in range(30):
        kept, _ = split_documents(cache, 0.3, seed)
        assert len(kept) and all(kept.source_tokens(cache)), seed


def test_pairs_of_which_none_fits_are_still_refused(pair_cache: Build) -> None:
    cache = pair_cache([{"prompt": f"{n} {LONG}", "chosen": "a", "rejected": "b"} for n in range(4)])
    with pytest.raises(UserError, match="no preference pair fits"):
        pair_rows(cache, Selection.whole(cache), SEQ_LEN)
