"""The kinds of records: how each is recognised, what it becomes, and which stage trains on it.

| kind | shapes |
|---|---|
| text | `{"text"}`, `{"content"}`, `{"paragraphs": [...]}`; a document of a text file is `{"text"}` too |
| chat | messages, or a question with its answer: see `conversations.py` |
| preference | a prompt with a chosen and a rejected reply: see `preferences.py` |
| mixed | each record text or chat, where a stage takes both: see `mixed.py` |

A plugin adds a kind with an entry point of the group `mmcli.records` that names a `RecordKind`, or a program with
`register_kind`. The built-in kinds but the last exclude each other, and no plugin changes what they are.
"""

from __future__ import annotations

import functools
import importlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmcli.data.record import EncodedRecord, Record, RecordError
from mmcli.errors import MmcliError, UserError, did_you_mean
from mmcli.plugins import installed, load, load_function

if TYPE_CHECKING:
    from mmcli.text.tokenizer import Tokenizer

TEXT_KEYS = ("text", "content", "paragraphs")
TURN_KEYS = ("messages", "conversations", "conversation")
PAIR_KEYS = (
    ("instruction", "output"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("query", "response"),
)
UNKNOWN = "unknown"  # what `kind_of` calls a record that no kind recognises

Encode = Callable[["Tokenizer", Sequence[Record], Mapping[str, Any]], list[EncodedRecord | RecordError]]
"""(tokenizer, records, options) -> one result a record, in order; a record that cannot be used gives its error."""


@dataclass(frozen=True, kw_only=True)
class RecordKind:
    """A kind of record. Its functions are module-level ones: processes that encode receive them by name."""

    name: str  # "text"
    label: str  # for people: 'plain text ({"text"})'
    stage: str  # the training command that needs it: "pretrain"
    matches: Callable[[Mapping[str, Any]], bool]  # whether a record's value has the fields of this kind
    read: Callable[[Record], Any]  # the record as an object; raises RecordError
    texts: Callable[[Any], list[str]]  # the texts of that object, from which a tokenizer is trained
    encode: str  # "package.module:function", an `Encode`; imported when data is encoded
    api: int = 1  # the API_VERSION that it was written for

    @property
    def encoder(self) -> Encode:
        """The function that `encode` names.

        Raises:
            MmcliError: it cannot be imported.
        """
        found: Encode = load_function(self.encode, f'the record kind "{self.name}"')
        return found

    def check(self, record: Record) -> None:
        """Refuse a record of another kind.

        Raises:
            RecordError: it has not the fields of this kind.
        """
        if self.matches(record.value):
            return
        found = kind_of(record.value)
        if found == UNKNOWN:
            names = ", ".join(list(record.value)[:6]) or "none"
            raise RecordError(f"a record of no known kind: its fields are {names}")
        raise RecordError(f"a {found} record where a {self.name} record is needed")


# Recognising


def has_turns(value: Mapping[str, Any]) -> bool:
    """True if `value` holds a list of messages, or its JSON text, under one of the usual names."""
    return any(is_turns(value.get(key)) for key in TURN_KEYS)


def is_turns(value: Any) -> bool:
    """True for a list, and for a text that begins as the JSON of one does."""
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


def has_pair(value: Mapping[str, Any]) -> bool:
    """True if `value` holds a question and its answer under one of the usual names."""
    return any(question in value and answer in value for question, answer in PAIR_KEYS)


def is_preference(value: Mapping[str, Any]) -> bool:
    return "chosen" in value and "rejected" in value


def is_chat(value: Mapping[str, Any]) -> bool:
    return (has_turns(value) or has_pair(value)) and not is_preference(value)


def is_text(value: Mapping[str, Any]) -> bool:
    return any(key in value for key in TEXT_KEYS) and not (is_preference(value) or is_chat(value))


def kind_of(value: Mapping[str, Any], needed: str | None = None) -> str:
    """The name of the first kind that recognises a record's value, `needed` before all others; else `unknown`."""
    kinds = all_kinds()
    if needed is not None and kinds[needed].matches(value):
        return needed
    return next((kind.name for kind in kinds.values() if kind.matches(value)), UNKNOWN)


def is_known(value: Mapping[str, Any]) -> bool:
    """True if some kind recognises a record's value."""
    return kind_of(value) != UNKNOWN


# The registry

_BUILT_IN = (
    ("mmcli.data.records.kinds", "TEXT"),
    ("mmcli.data.records.conversations", "CHAT"),
    ("mmcli.data.records.preferences", "PREFERENCE"),
    ("mmcli.data.records.mixed", "MIXED"),
)
_kinds: dict[str, RecordKind] = {}
_broken: dict[str, MmcliError] = {}  # installed kinds that cannot be loaded


def all_kinds() -> dict[str, RecordKind]:
    """Every kind by name: the built-in ones, those that were registered, and those of installed plugins."""
    _load_built_in()
    _load_plugins()
    return _kinds


def find_kind(name: str) -> RecordKind:
    """The kind of that name.

    Raises:
        UserError: there is none.
        MmcliError: it is an installed plugin's and cannot be loaded.
    """
    kinds = all_kinds()
    if name in kinds:
        return kinds[name]
    if name in _broken:
        raise _broken[name]
    raise UserError(f'there is no record kind "{name}"', did_you_mean(name, list(kinds)))


def register_kind(kind: RecordKind) -> RecordKind:
    """Add a kind of record; registering the same one again changes nothing.

    Raises:
        UserError: another kind has this name.
    """
    _load_built_in()
    if _kinds.setdefault(kind.name, kind) != kind:
        raise UserError(f'there is a record kind "{kind.name}" already', "give yours another name")
    return kind


@functools.cache
def _load_built_in() -> None:
    for module, attribute in _BUILT_IN:
        kind: RecordKind = getattr(importlib.import_module(module), attribute)
        _kinds[kind.name] = kind


@functools.cache
def _load_plugins() -> None:
    for plugin in installed():
        if plugin.kind == "record kind":
            try:
                register_kind(load(plugin, RecordKind))
            except MmcliError as error:  # `mmcli plugins list` tells; other kinds do not need it
                _broken[plugin.name] = error


def dump_kinds() -> bytes | None:
    """Every kind as a pickle for another process; None if one has functions that only this process knows."""
    kinds = list(all_kinds().values())
    if any(each.__module__ == "__main__" for kind in kinds for each in (kind.matches, kind.read, kind.texts)):
        return None
    try:
        return pickle.dumps(kinds)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None


# Plain text


def as_text(record: Record) -> str:
    """The text of a text record.

    Raises:
        RecordError: it is of another kind, or its text is empty or not text.
    """
    TEXT.check(record)
    key = next(key for key in TEXT_KEYS if key in record.value)
    text = record.value[key]
    if key == "paragraphs" and isinstance(text, list) and all(isinstance(part, str) for part in text):
        text = "\n".join(text)
    if not isinstance(text, str):
        raise RecordError(f'"{key}" is not text')
    if not text.strip():
        raise RecordError(f'"{key}" is empty')
    return text


def _texts(text: str) -> list[str]:
    return [text]


TEXT = RecordKind(
    name="text",
    label='plain text ({"text"})',
    stage="pretrain",
    matches=is_text,
    read=as_text,
    texts=_texts,
    encode="mmcli.data.encode.encoders:encode_documents",
)
