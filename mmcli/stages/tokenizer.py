"""Tokenizer training: texts of any data -> a tokenizer with its measurements -> a run. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli.files import atomic_folder
from mmcli.run import Run
from mmcli.stage import Reporter
from mmcli.text.tokenizer import Tokenizer

STAGE = "tokenizer"  # of its runs


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer, the facts that its run keeps, and its measurements (see `measure`) on a sample of the data."""

    tokenizer: Tokenizer
    facts: dict[str, Any]
    measured: dict[str, Any]


def train_on(
    data: Sequence[str],
    report: Reporter,
    *,
    columns: Sequence[str] = (),
    vocab_size: int = 6400,
    pretokenizer: str = "qwen2",
    max_token_bytes: int | None = None,
    most: float = math.inf,
) -> TrainedTokenizer:
    """Train a byte-level BPE tokenizer on the texts of some data.

    Args:
        data: files, folders, globs, `hf:OWNER/NAME` or `demo`.
        columns: FIELD=COLUMN pairs.
        pretokenizer: `qwen2` or `gpt2`.
        max_token_bytes: of the longest token; see `train_tokenizer`.
        most: bytes of text, sampled evenly.

    Raises:
        UserError: data that cannot be used, or a vocabulary size that it cannot fill.
    """
    from mmcli.data.encode.texts import open_corpus
    from mmcli.text.train import train_tokenizer

    corpus = open_corpus(data, columns, most, template=True)
    described = ", ".join(sources.describe for sources in corpus.sources)
    report.note(f"data: {described}; vocabulary {vocab_size:,}; pre-tokenizer {pretokenizer}")
    tokenizer = train_tokenizer(
        corpus, vocab_size=vocab_size, pretokenizer=pretokenizer, max_token_bytes=max_token_bytes, report=report
    )
    if corpus.skipped:
        report.note(f"trained on {corpus.taken / 1e6:.0f} MB of the text; more: --max-mb")
    tally = corpus.account.tally
    for line in tally.lines():
        report.warn(line)
    measured = measure(tokenizer.encode_text(corpus.sample), corpus.sample)
    facts = {
        "data": described,
        "vocab_size": tokenizer.vocab_size,
        "pretokenizer": pretokenizer,
        "max_token_bytes": max_token_bytes,
        "records": tally.kept,
        "bytes": corpus.taken,
        "rejected": tally.rejected,
        "fingerprint": tokenizer.fingerprint,
        **{name: measured[name] for name in ("characters_per_token", "bytes_per_token")},
        "data_fingerprints": [each.fingerprint for each in corpus.sources],
    }
    return TrainedTokenizer(tokenizer, facts, measured)


def save_run(trained: TrainedTokenizer, runs_dir: Path, label: str) -> Run:
    """A new finished run of the tokenizer, its files in `model/`."""
    run = Run.create(runs_dir, STAGE, label)
    with run.lock():
        run.begin()
        with atomic_folder(run.model) as folder:
            trained.tokenizer.save(folder)
        run.update(state="finished", **trained.facts)
    return run


def measure(ids: Sequence[int], text: str) -> dict[str, Any]:
    """Characters and bytes (UTF-8) of `text`, in all and per token of `ids`."""
    size = len(text.encode("utf-8", errors="replace"))
    count = len(ids) or 1  # a tokenizer that normalises may leave nothing of a text
    per_token = {"characters_per_token": len(text) / count, "bytes_per_token": size / count}
    return {"characters": len(text), "bytes": size, "count": len(ids), **per_token}
