"""What a model was pretrained on, as its runs tell it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmcli.api import ModelRef, Run, UserError, as_read

TEXT_STAGES = ("pretrain", "continue")
BY_NAME = "--replay books/"


@dataclass(frozen=True)
class OldText:
    """Old text, and which part of it the model has not seen."""

    data: Mapping[str, Any]  # values of DataConfig: sources and what is held out
    seed: int  # of the split


def old_text(parent: ModelRef) -> OldText:
    """The text of every pretraining that led to a model; what the newest of them held out is still unseen.

    Raises:
        UserError: no run tells it.
    """
    found = [(run, run.read_config()) for run in _ancestors(parent.run) if run.stage in TEXT_STAGES]
    found = [(run, config) for run, config in found if config.get("data", {}).get("sources")]
    if not found:
        raise UserError(f"no run tells what {parent.label} was pretrained on", f"name the old text: {BY_NAME}")
    sources = dict.fromkeys(source for run, config in found for source in _sources(run, config))
    newest = found[0][1]
    for run, config in found:
        if _columns(config) != _columns(newest):
            what = f"{run.name} read its text with --columns {_columns(config)}, {found[0][0].name} otherwise"
            raise UserError(what, f"name old text with the same fields: {BY_NAME}")
    held_out = {name: newest["data"][name] for name in ("val", "val_fraction", "val_tokens")}
    if held_out["val"] != "none":
        held_out["val"] = ["".join(as_read(each, found[0][0])) for each in held_out["val"]]
    values = {"sources": list(sources), "columns": _columns(newest), **held_out}
    return OldText(values, int(newest["train"]["seed"]))


def _columns(config: dict[str, Any]) -> list[str] | str:
    columns: list[str] | str = config["data"].get("columns", "none")
    return columns


def _sources(run: Run, config: dict[str, Any]) -> Iterator[str]:
    """What a run was trained on, a data set of the hub at the commit that the run kept."""
    replay = config.get("replay", "none")
    names = [*config["data"]["sources"], *([] if replay == "none" else replay)]
    yield from (as_read(each, run)[0] for each in names)


def _ancestors(run: Run | None) -> Iterator[Run]:
    """A run and those it goes back to, the newest first; a run that is gone ends it."""
    while run is not None:
        yield run
        run = run.parent
