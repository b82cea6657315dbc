"""The memory that an opened cache and its packed rows take for each document."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmcli.data.encode.cache import CacheWriter, TokenCache
from mmcli.data.pack.packing import pack_rows

DOCUMENTS = 20_000


def bytes_each(work: Callable[[], Any]) -> tuple[float, float]:
    """(bytes a document that stay with the result of `work`, bytes at the peak); one run before does not count."""
    work()
    tracemalloc.start()
    try:
        result = work()
        kept, peak = tracemalloc.get_traced_memory()
        del result
    finally:
        tracemalloc.stop()
    return kept / DOCUMENTS, peak / DOCUMENTS


def test_an_opened_cache_keeps_nothing_for_each_document(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, np.dtype(np.uint16), masked=False)
    for document in range(DOCUMENTS):
        writer.append([document % 100] * (document % 7 + 1), None)
    counts = {"sequences": writer.sequences, "tokens": writer.tokens, "text_bytes": 0, "parts": [DOCUMENTS]}
    tally = {"kept": DOCUMENTS, "rejected": 0, "reasons": {}, "first": []}
    rest = {"dtype": "uint16", "masked": False, "sequences_per_record": 1, "pad_id": 0, "tally": tally}
    writer.finish({"key": "", "kind": "text", **counts, **rest})
    kept, peak = bytes_each(lambda: TokenCache(tmp_path))
    assert kept < 1 and peak < 60  # a block of a MiB is read for the checksums
    cache = TokenCache(tmp_path)
    which = np.array([13, 0, DOCUMENTS - 1])
    assert cache.lengths_of(which).tolist() == cache.lengths[which].tolist() == [7, 1, (DOCUMENTS - 1) % 7 + 1]
    assert len(cache) == DOCUMENTS and len(cache.ids(13)) == 7


def test_packing_needs_less_than_80_bytes_for_a_short_document() -> None:
    lengths = np.random.default_rng(0).integers(2, 60, DOCUMENTS)
    kept, peak = bytes_each(lambda: pack_rows(lengths, 512, split=True, seed=0, window=1024))
    assert kept < 30 and peak < 80
