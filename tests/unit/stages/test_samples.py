"""What is shown of a model in training: a prompt and its continuation, in whole characters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mmcli.cli.console import PlainReporter
from mmcli.evaluation.loss import document_batches
from mmcli.stages import samples
from mmcli.text.train import train_tokenizer


def test_a_sample_has_whole_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(["plain text alone"], vocab_size=320)
    ids = tokenizer.encode_text("ab 天气")
    assert len(ids) == 9  # of bytes
    asked: list[list[int]] = []

    def generate(engine: Any, slot: int, prompt: list[int], *arguments: Any, **options: Any) -> list[int]:
        asked.append(prompt)
        return ids[3:8]  # the second character lacks its last byte

    (batch,) = document_batches([ids])
    rows = SimpleNamespace(val=[0], val_cache=None)
    model: Any = SimpleNamespace(config=SimpleNamespace(max_seq_len=64))
    monkeypatch.setattr(samples, "make_batch", lambda *arguments: batch)
    monkeypatch.setattr(samples, "TorchEngine", lambda *arguments, **options: None)
    monkeypatch.setattr(samples, "generate", generate)
    for length in (3, 4, 5):
        start: Any = SimpleNamespace(tokenizer=tokenizer)
        sample = samples.continuations(start, rows, 0, prompt_tokens=length)  # type: ignore[arg-type]
        assert sample(model, 0) == [("ab ", "天")]
    assert asked == [ids[:3]] * 3


def test_a_sample_tells_what_was_given_from_what_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    PlainReporter().sample("Once upon", " a time\nthere was")
    assert capsys.readouterr().err == "sample: Once upon | a time there was\n"
