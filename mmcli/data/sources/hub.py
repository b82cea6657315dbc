"""Data sets of the Hugging Face hub: `hf:OWNER/NAME[@REVISION][:CONFIG][:SPLIT]`, read as a stream.

A data set is pinned to the commit that its revision (by default `main`) names now, so the token cache knows its
content; a run keeps that commit (see `pinning.py`). Nothing is downloaded beforehand. `datasets` is imported only when
such a name is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmcli.data.formats.tables import row_record
from mmcli.data.record import Record, Rejected
from mmcli.errors import MmcliError, UserError

PREFIX = "hf:"
SPLITS = ("train", "validation", "test")  # what a single part after the name may be; else it is a config
NAME = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<first>[^:]*))?(?::(?P<second>[^:]+))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 20  # seconds to wait for the hub's answer


@dataclass(frozen=True)
class HubData:
    """One split of a data set on the hub; `revision` is a commit."""

    repo: str
    config: str | None
    split: str
    revision: str

    @property
    def name(self) -> str:
        """The name with config and split, as in the places of its records."""
        return ":".join([PREFIX + self.repo, *([self.config] if self.config else []), self.split])

    def records(self) -> Iterator[Record | Rejected]:
        """Every record, rows numbered from 1.

        Raises:
            UserError: there is no such config or split, or its files cannot be read as a stream.
            MmcliError: the hub stopped answering.
        """
        row = 0
        rows = iter(self._stream)
        while True:
            try:
                value = next(rows, None)
            except Exception as error:  # connections, decompression, casts: whatever the reader meets
                what = f"{self.name} broke off after {row:,} records: {_short(error)}"
                raise MmcliError(what, "start again; or download its files and give --data those") from error
            if value is None:
                return
            row += 1
            yield row_record(self.name, row, value)

    @cached_property
    def _stream(self) -> Any:
        """The data set of the library, opened once and read from its beginning each time."""
        import datasets

        try:
            return datasets.load_dataset(
                self.repo, self.config, split=self.split, revision=self.revision, streaming=True
            )
        except Exception as error:  # the library has no common class for them
            what = f"{self.name} cannot be opened: {_short(error)}"
            raise UserError(what, "check config and split on its page: hf:OWNER/NAME:CONFIG:SPLIT") from error


def open_hub(name: str) -> HubData:
    """The data set that `name` means, pinned to a commit.

    Raises:
        UserError: the name is not of that form, there is no such data set, or the hub cannot be reached.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name} names no data set", "write it like hf:OWNER/NAME, or hf:OWNER/NAME:CONFIG:SPLIT")
    repo, revision, first, second = match.group("repo", "revision", "first", "second")
    config, split = (None, first) if second is None and first in SPLITS else (first or None, second or SPLITS[0])
    if revision is None or not COMMIT.fullmatch(revision):
        revision = find_commit(repo, revision)
    return HubData(repo, config, split or SPLITS[0], revision)


def find_commit(repo: str, revision: str | None) -> str:
    """The commit that a branch or tag (None: the main one) of a data set points to now.

    Raises:
        UserError: there is no such data set or revision, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return str(HfApi().dataset_info(repo, revision=revision, timeout=TIMEOUT).sha)
    except RepositoryNotFoundError:
        what = f"hf:{repo}: there is no such data set on the hub, or it is private"
        raise UserError(what, "check the name; for a private one: hf auth login") from None
    except RevisionNotFoundError:
        raise UserError(f"hf:{repo} has no revision {revision}", "give a branch, a tag or a commit of it") from None
    except Exception as error:  # the library lets through whatever its transport raises
        what = f"hf:{repo}: the Hugging Face hub cannot be reached ({_short(error)})"
        raise UserError(
            what, "connect to the internet; or download its files elsewhere and give --data those"
        ) from None


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
