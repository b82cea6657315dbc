"""Tensors of model files by name, read one at a time: safetensors, and pickled state dicts."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmcli.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SAFETENSORS_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
FOREIGN = re.compile(r"GLOBAL ([\w.]+)")  # what a pickle asks for, in the words of torch
MOST_RATIO = 4
SHOWN = 5  # names in an error before "and N more"


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None: not a plain float
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Weights:
    """The tensors of a model's files."""

    where: str  # the file or folder, as errors name it
    entries: dict[str, Entry]

    def renamed(self, rename: Callable[[str], str]) -> Weights:
        return Weights(self.where, {rename(name): entry for name, entry in self.entries.items()})

    def without(self, names: Iterable[str]) -> Weights:
        dropped = set(names)
        return Weights(self.where, {name: entry for name, entry in self.entries.items() if name not in dropped})

    def changed(self, name: str, change: Callable[[Tensor], Tensor]) -> Weights:
        """With one tensor put through `change`, which keeps its shape and type."""
        entry = self.entries[name]
        return Weights(
            self.where, {**self.entries, name: dataclasses.replace(entry, read=lambda: change(entry.read()))}
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises UserError if there is no such tensor."""
        if name not in self.entries:
            held = ", ".join(list(self.entries)[:SHOWN]) or "no tensor"
            raise UserError(f"{self.where} has no {name} (it holds {held}, ...)", "give the weights of a whole model")
        return self.entries[name].shape

    def dtype(self) -> torch.dtype:
        """The type that all tensors have; fp32, which holds each of them exactly, where they differ.

        Raises:
            UserError: a tensor that is not fp32, bf16 or fp16, by name.
        """
        for name, entry in self.entries.items():
            if entry.dtype is None:
                what = f"{self.where}: {name} is not fp32, bf16 or fp16"
                raise UserError(what, "give the weights before they were quantized, or a GGUF file")
        found = {entry.dtype for entry in self.entries.values() if entry.dtype is not None}
        return found.pop() if len(found) == 1 else torch.float32


def read_safetensors(where: Path, paths: Iterable[Path]) -> Weights:
    """The tensors of one or more safetensors files.

    Raises:
        UserError: a file is missing or damaged.
    """
    entries: dict[str, Entry] = {}
    for path in paths:
        try:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118  # a handle, not a dict
                entries[name] = _lazy(file, name)
        except FileNotFoundError:
            raise UserError(
                f"{where} has no {path.name}", "download the folder again: a part of it is missing"
            ) from None
        except SafetensorError as error:
            what = f"{path} is damaged or not a safetensors file: {error}"
            raise UserError(what, "download it again from where the model came from") from None
    return Weights(str(where), entries)


def _lazy(file: Any, name: str) -> Entry:
    part = file.get_slice(name)
    return Entry(tuple(part.get_shape()), SAFETENSORS_TYPES.get(part.get_dtype()), lambda: file.get_tensor(name))


def read_pickled(where: Path, paths: Iterable[Path]) -> Weights:
    """The tensors of files of `torch.save(state_dict)`. Nothing but tensors is unpickled: no code of the file runs.

    Raises:
        UserError: a file is missing or damaged, or holds anything but tensors by name.
    """
    entries: dict[str, Entry] = {}
    for path in paths:
        for name, tensor in _unpickle(path).items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                what = f"{path}: its entry {name!r} is a {type(tensor).__name__}, not a tensor"
                raise UserError(what, "give the bare weights: torch.save(model.state_dict(), ...)")
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                what = f"{path}: {name} claims {list(tensor.shape)} numbers, and holds fewer"
                raise UserError(what, "download it again from where the model came from")
            entries[name] = _held(tensor)
    return Weights(str(where), entries)


def _held(tensor: Tensor) -> Entry:
    return Entry(tuple(tensor.shape), tensor.dtype if tensor.dtype in FLOATS else None, lambda: tensor)


def _unpickle(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist", "download the model again: a part of it is missing")
    _refuse_bomb(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = FOREIGN.search(str(error))  # nothing else of it: torch advises to run the file's code
        reason = f": it names {found[1]}" if found else ""
        what = f"{path} holds more than tensors, or is damaged{reason}"
        fix = "give the bare weights: torch.save(model.state_dict(), ...); mmcli runs no code in files"
        raise UserError(what, fix) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        what = f"{path} is damaged or not a file of torch.save: {str(error).splitlines()[0] if str(error) else error!r}"
        raise UserError(what, "download it again from where the model came from") from None
    if not isinstance(loaded, dict):
        what = f"{path} holds a {type(loaded).__name__}, not a state dict"
        raise UserError(what, "give the bare weights: torch.save(model.state_dict(), ...)")
    return loaded


def _refuse_bomb(path: Path) -> None:
    """Raise UserError for a file whose parts, which torch.save does not compress, unpack to far more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # of the older format, or damaged, which reading will tell
    if unpacked > MOST_RATIO * path.stat().st_size:
        what = f"{path} unpacks to {unpacked:,} bytes, more than {MOST_RATIO} times its size"
        raise UserError(what, "give the weights as torch.save writes them")


def open_weights(folder: Path, *, pickled: bool = False) -> Weights:
    """The tensors of a model folder, in one file or in shards: safetensors; with `pickled`, pytorch_model.bin too.

    Raises:
        UserError: there are none, or a file is missing or damaged.
    """
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder, [folder / WEIGHTS])
    if (folder / INDEX).is_file():
        return read_safetensors(folder, read_index(folder / INDEX))
    if not pickled:
        raise UserError(f"{folder} has no {WEIGHTS} or {INDEX}", "give a model folder; mmcli import reads other files")
    if (folder / PICKLED).is_file():
        return read_pickled(folder, [folder / PICKLED])
    if (folder / PICKLED_INDEX).is_file():
        return read_pickled(folder, read_index(folder / PICKLED_INDEX))
    raise UserError(f"{folder} has no {WEIGHTS}, {INDEX} or {PICKLED}", "give a folder with the model's weights")


def read_index(index: Path) -> list[Path]:
    """The shards that a `*.index.json` names.

    Raises:
        UserError: it is not such an index, or it names a file outside its folder.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if _leaves_folder(name)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{index} is not an index of weights", "download the folder again") from None
    if outside:
        what = f"{index} names {outside[0]!r}, which is outside its folder"
        raise UserError(what, "download the folder again, from a source that you trust")
    return [index.parent / name for name in names]


def _leaves_folder(name: str) -> bool:
    """By its spelling alone: a link inside the folder (the Hugging Face cache is made of them) may lead anywhere."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return ".." in parts or Path(name).is_absolute() or name.startswith(("/", "\\"))
