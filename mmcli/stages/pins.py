"""What a training stage reads, as inputs of its run: data, model folders, the adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmcli.config import to_tables
from mmcli.data.encode.cache import FORMAT, HASHES_OF_FILES
from mmcli.data.formats.files import FileHashes
from mmcli.data.records.kinds import find_kind
from mmcli.data.sources.pinning import data_input
from mmcli.data.sources.sources import OpenedData, Sources
from mmcli.inputs import Input
from mmcli.model.formats.weights import INDEX, PICKLED_INDEX
from mmcli.stage import StageContext
from mmcli.train.adapters import adapter_config, installed_adapter, load_adapter
from mmcli.train.config import TrainConfig

CACHE = ".cache/tokens"  # in the runs folder; safe to delete
WEIGHT_FILES = (".safetensors", ".bin")


def file_hashes(context: StageContext) -> Callable[[Path], str]:
    """SHA-256 (hex) of files; those of large files are kept beside the token caches until the files change."""
    return FileHashes(context.run.path.parent / CACHE / HASHES_OF_FILES)


def data_inputs(data: OpenedData, context: StageContext) -> dict[str, Input]:
    """The data that a stage opened."""
    hashes = file_hashes(context)
    found = {"data": data_input(data.train, hashes)}
    return found if data.val is None else {**found, "data/val": data_input(data.val, hashes)}


def part_inputs(sources: Sources, part: str, options: Mapping[str, Any], context: StageContext) -> dict[str, Input]:
    """A part of the data (the empty one: what is trained on) and how its records become ids.

    With the tokenizer this is all that the key of the token cache is made of.
    """
    name = f"data/{part}" if part else "data"
    encoder = find_kind(sources.kind).encoder
    parts = {
        "kind": sources.kind,
        "encoder": f"{encoder.__module__}.{encoder.__qualname__}",
        "cache format": FORMAT,
        **{f"option {option}": value for option, value in options.items()},
    }
    return {name: data_input(sources, file_hashes(context)), f"{name}/encoding": Input.of(parts)}


def model_input(folder: Path, context: StageContext) -> Input:
    """A model folder: its shape and its weights."""
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.name in ("config.json", INDEX, PICKLED_INDEX) or path.suffix in WEIGHT_FILES
    )
    hashes = file_hashes(context)
    return Input.of({name: hashes(folder / name) for name in names})


def adapter_inputs(train: TrainConfig, context: StageContext) -> dict[str, Input]:
    """The adapter: name, package, its version, every setting, and the files that settings name; nothing without one.

    Raises:
        UserError: there is no such adapter, or a wrong setting.
    """
    if train.adapter is None:
        return {}
    plugin = installed_adapter(train.adapter)
    config = adapter_config(train.adapter, train.adapter_set)
    parts = {"name": train.adapter, "package": plugin.package, "version": plugin.version}
    parts |= {f"setting {name}": value for name, value in to_tables(config).items()}
    hashes = file_hashes(context)
    for name in load_adapter(train.adapter).reads:
        if getattr(config, name) is not None:
            given = Path(getattr(config, name))
            files = sorted(given.iterdir()) if given.is_dir() else [given]
            parts |= {f"{name}: {path.name}": hashes(path) for path in files if path.is_file()}
    return {"adapter": Input.of(parts)}
