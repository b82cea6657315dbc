"""The model card: what the model was made of and what it reached, without the folders of the machine."""

from __future__ import annotations

import json
import xml.dom.minidom
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmcli.config import to_tables
from mmcli.model.config import ModelConfig
from mmcli.report.card import CARD, LOSS, model_card
from mmcli.report.evaluations import keep_evaluation
from mmcli.run import Run
from mmcli.stage import Metric


def a_run(root: Path, stage: str, sources: list[str], parent: Run | None = None) -> Run:
    run = Run.create(root, stage, "tiny")
    run.update(
        state="finished",
        steps_done=30,
        tokens=12_345,
        metrics=[asdict(Metric("loss")), asdict(Metric("val_loss", label="val"))],
    )
    run.metrics.write_text(
        "".join(json.dumps({"step": i, "loss": 3.0 - i / 100, "val_loss": 2.5}) + "\n" for i in range(30))
    )
    run.write_config({"data": {"sources": sources}})
    run.record_choice("model", to_tables(ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2)))
    if parent is not None:
        parent.model.mkdir()
        run.record_choice("start_from", str(parent.model.relative_to(root)))
    return run


def card(run: Run, **options: Any) -> str:
    return model_card(run, model_type="llama", **options)[CARD].decode()


def test_it_tells_size_data_lineage_and_scores(tmp_path: Path) -> None:
    first = a_run(tmp_path, "pretrain", ["/home/me/secret/books.txt", "hf:some/texts"])
    run = a_run(tmp_path, "sft", ["chats.jsonl:0.7"], first)
    keep_evaluation(
        run, {"suite": "demo", "score": 0.5, "interval": [0.4, 0.6], "family_scores": {"facts": {"score": 0.7}}}
    )
    files = model_card(run, model_type="llama", license="apache-2.0")
    text = files[CARD].decode()
    assert text.startswith("---\nlicense: apache-2.0\n") and "library_name: transformers" in text
    assert "books.txt, hf:some/texts" in text and "chats.jsonl:0.7" in text and "secret" not in text
    assert "12,345" in text and "loss 2.710" in text and "50.0% (40-60)" in text and "facts 70%" in text
    assert "2 layers, 64 wide" in text and f"({LOSS})" in text and "Licence" not in text
    xml.dom.minidom.parseString(files[LOSS].decode())


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "pretrain", "x")
    files = model_card(run, model_type="minimind")
    text = files[CARD].decode()
    assert LOSS not in files and "from transformers" not in text and "What it answers" not in text
    assert "None is stated" in text and "license:" not in text
    assert "mmcli chat" in text
