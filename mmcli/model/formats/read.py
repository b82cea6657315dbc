"""Import: a model that was trained elsewhere, whatever file it is in, and the model folder that is made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli.config import Layer
from mmcli.errors import UserError
from mmcli.model.formats.hf_folder import GENERATION, load_model, save_model
from mmcli.model.formats.minimind import read_minimind
from mmcli.model.transformer import Transformer
from mmcli.text.tokenizer import Tokenizer

PICKLED = (".pth", ".pt", ".bin")
GGUF_MAGIC = b"GGUF"
KINDS = "give a transformers folder, a MiniMind .pth file, or a .gguf file"


@dataclass(frozen=True)
class Imported:
    """A model that was read from `source`."""

    source: Path
    kind: str  # "transformers folder", "MiniMind checkpoint", "GGUF file"
    model: Transformer
    tokenizer: Tokenizer
    notes: tuple[str, ...]  # settings that were assumed, a line each
    generation: Mapping[str, Any]  # the source's generation settings
    stage: str | None  # what made it, where mmcli did


def read_model(source: Path, *, tokenizer: Tokenizer | None = None, settings: Layer | None = None) -> Imported:
    """The model in a transformers folder, a MiniMind `.pth` or a GGUF file, with its tokenizer and chat template.

    Args:
        tokenizer: instead of the source's own; a `.pth` has none.
        settings: `--set model.KEY=VALUE`, for what the tensors of a `.pth` do not show.

    Raises:
        UserError: no such file, a kind, field or tensor that mmcli does not know, or a tokenizer that is missing or
            has more tokens than the model.
    """
    found = _read(source, tokenizer, settings)
    size, limit = found.tokenizer.vocab_size, found.model.config.vocab_size
    if size > limit:
        what = f"the tokenizer has {size:,} tokens, the model of {source} {limit:,}"
        raise UserError(what, "give the tokenizer that it was trained with: --tokenizer DIR")
    return found


def _read(source: Path, tokenizer: Tokenizer | None, settings: Layer | None) -> Imported:
    if not source.exists():
        raise UserError(f"{source} does not exist", KINDS)
    if not source.is_file() and not source.is_dir():
        raise UserError(f"{source} is a pipe or a device, not a file", KINDS)
    if source.is_file() and source.suffix in PICKLED:
        if tokenizer is None:
            what = f"{source} holds weights alone, without a tokenizer"
            raise UserError(what, "give the folder of the tokenizer that it was trained with: --tokenizer DIR")
        model, assumed = read_minimind(source, settings)
        note = f"settings that a .pth does not store, as released or by --set: {assumed}"
        return Imported(source, "MiniMind checkpoint", model, tokenizer, (note,), {}, None)
    if settings is not None:
        key = next(iter(settings.values))
        what = f"--set {key} with {source}, which holds its own configuration"
        raise UserError(what, "omit --set; it is for .pth files, which hold tensors alone")
    if source.is_dir():
        own = tokenizer or Tokenizer.load(source)
        stage = _read_json(source / "config.json").get("mmcli_stage")
        generation = _read_json(source / GENERATION)
        return Imported(
            source, "transformers folder", load_model(source, dtype=None, pickled=True), own, (), generation, stage
        )
    if source.suffix == ".safetensors":
        raise UserError(f"{source} holds weights alone", "give its folder, with config.json")
    with open(source, "rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise UserError(f"{source} is not a model file that mmcli knows", KINDS)
    return _read_gguf(source, tokenizer)


def _read_gguf(source: Path, tokenizer: Tokenizer | None) -> Imported:
    from mmcli.model.formats.gguf_model import build_gguf_model, open_gguf
    from mmcli.model.formats.gguf_tokenizer import gguf_tokenizer

    file = open_gguf(source)
    own = tokenizer or gguf_tokenizer(source, file.fields)
    return Imported(source, "GGUF file", build_gguf_model(file), own, (), {}, None)


def save_imported(folder: Path, found: Imported) -> None:
    """Write a model folder as mmcli's own are, with every id that ends a reply and the source's generation settings."""
    facts = {"Imported from": f"{found.source.name} ({found.kind})"}
    save_model(folder, found.model, found.model.config, found.tokenizer, extra=facts)
    keep_generation(folder, found.generation)
    if found.stage is not None:
        path = folder / "config.json"
        _write_json(path, {**_read_json(path), "mmcli_stage": found.stage})


def keep_generation(folder: Path, settings: Mapping[str, Any]) -> None:
    """Bring what generation_config.json of the source said into that of `folder`; its own ids stand."""
    path = folder / GENERATION
    _write_json(path, {**settings, **_read_json(path)})


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON table, empty if there is none (the readers of the model refuse a broken one)."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
