"""The data and the model of the checks: the first records of the built-in corpus, and random weights."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

RECORDS = {"text": 200, "chat": 120, "preference": 80}  # of each kind
VOCABULARY = 512
SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 1024}


def tiny_corpus(folder: Path) -> dict[str, Path]:
    """Files of a few records, by the kind of the records: text, chat and preference.

    Args:
        folder: where they are written; made if missing.
    """
    from mmcli.data import demo

    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for kind, count in RECORDS.items():
        files[kind] = folder / f"{kind}.jsonl"
        lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in itertools.islice(demo.records(kind), count))
        files[kind].write_text("".join(lines), encoding="utf-8")
    return files


def tiny_model(folder: Path) -> Path:
    """A folder with a model of random weights, always the same, and a tokenizer of the tiny corpus."""
    from mmcli.model.config import ModelConfig
    from mmcli.model.formats.hf_folder import save_model
    from mmcli.model.transformer import Transformer
    from mmcli.text.train import train_tokenizer

    texts = tiny_corpus(folder.parent / "tiny-corpus")["text"].read_text(encoding="utf-8").splitlines()
    tokenizer = train_tokenizer([json.loads(line)["text"] for line in texts], vocab_size=VOCABULARY)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **SHAPE)  # type: ignore[arg-type]  # whole numbers
    save_model(folder, Transformer(config, seed=0), config, tokenizer)
    return folder
