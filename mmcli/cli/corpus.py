"""Every text of some data, of plain files or of conversations: what a tokenizer learns from and is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from mmcli.errors import UserError

if TYPE_CHECKING:
    from mmcli.data.records import Kind
    from mmcli.data.sources import Sources

NOT_TEXT = ("role", "from", "id", "type", "weight")  # fields of conversations that hold no language
SAMPLE = 200_000  # characters of the data that are kept to measure a tokenizer on


def open_text_data(name: str) -> Sources:
    """The data that `name` names, of whatever kind.

    Raises:
        UserError: see `open_sources`; a weight was given.
    """
    from mmcli.data.sources import open_sources

    sources: Sources | None = None
    refusals: list[UserError] = []
    kinds: tuple[Kind, ...] = ("text", "chat", "preference")
    for kind in kinds:
        try:
            sources = sources or open_sources([name], kind=kind)
        except UserError as refusal:
            refusals.append(refusal)
    if sources is None:
        raise refusals[0]
    sources.refuse_weights("a tokenizer")
    return sources


class Corpus:
    """The texts of all records, read once; counts what it meets and keeps a sample."""

    def __init__(self, sources: Iterable[Sources]) -> None:
        self._sources = sources
        self.records = self.rejected = 0
        self.first_rejected = ""
        self.sample = ""

    def __iter__(self) -> Iterator[str]:
        from mmcli.data.records import Rejected

        for sources in self._sources:
            for record in sources.records():
                if isinstance(record, Rejected):
                    self.first_rejected = self.first_rejected or f"{record.file}:{record.line}: {record.reason}"
                    self.rejected += 1
                    continue
                self.records += 1
                for text in texts_of(record.value):
                    self.sample += text[: SAMPLE - len(self.sample)]
                    yield text


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a record of any kind: the strings in it, without roles and ids."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in NOT_TEXT:
                yield from texts_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)
