"""The tokenizer that a person names."""

from __future__ import annotations

from pathlib import Path

from mmcli.errors import UserError
from mmcli.find import find_model
from mmcli.run import list_runs
from mmcli.text.tokenizer import Tokenizer


def has_tokenizer(runs_dir: Path) -> bool:
    """True if a run has a tokenizer, damaged or not."""
    return any((run.model / "tokenizer.json").is_file() for run in list_runs(runs_dir))


def find_tokenizer(ref: str | None, runs_dir: Path) -> Tokenizer:
    """The tokenizer of a run, a folder or a tokenizer.json; None: of the newest run that has one.

    Raises:
        UserError: there is none.
    """
    if ref is not None:
        return Tokenizer.load(Path(ref) if Path(ref).is_file() else find_model(ref, runs_dir).path)
    for run in reversed(list_runs(runs_dir)):
        if (run.model / "tokenizer.json").is_file():
            return Tokenizer.load(run.model)
    raise UserError(f"there is no tokenizer in {runs_dir}", "train one: mmcli tokenizer train; or give --tokenizer")
