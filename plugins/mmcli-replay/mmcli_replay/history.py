"""What a model was pretrained on, as its runs tell it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmcli.data.parts import split_weight
from mmcli.errors import UserError
from mmcli.run import ModelRef, Run, find_run

TEXT_STAGES = ("pretrain", "continue")


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
    configs = [run.read_config() for run in _ancestors(parent.run) if run.stage in TEXT_STAGES]
    configs = [config for config in configs if config.get("data", {}).get("sources")]
    if not configs:
        raise UserError(f"no run tells what {parent.label} was pretrained on", "name the old text: --replay books/")
    sources = dict.fromkeys(source for config in configs for source in _sources(config))
    newest = configs[0]
    held_out = {name: newest["data"][name] for name in ("val", "val_fraction", "val_tokens")}
    return OldText({"sources": list(sources), **held_out}, int(newest["train"]["seed"]))


def _sources(config: dict[str, Any]) -> Iterator[str]:
    yield from (split_weight(each)[0] for each in config["data"]["sources"])
    replay = config.get("replay", "none")
    yield from [] if replay == "none" else replay


def _ancestors(run: Run | None) -> Iterator[Run]:
    """A run and those it goes back to, the newest first; a run that is gone ends it."""
    while run is not None:
        yield run
        run = _parent(run)


def _parent(run: Run) -> Run | None:
    name = run.info().get("parent")
    if name is None:
        return None
    try:
        return find_run(name, run.path.parent)
    except UserError:  # a model folder without a run, or a run that was removed
        return None
