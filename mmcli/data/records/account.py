"""The account of some data: every record is kept or rejected, and every rejected one has a place and a reason."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from mmcli.data.record import Rejected
from mmcli.errors import UserError

LISTED = 100  # rejected records that an account keeps; the quarantine file has all
SHOWN = 5  # rejections shown to the person; the quarantine file has all


@dataclass
class Tally:
    """Numbers of records kept and rejected, the reasons with their counts, and the first rejections."""

    kept: int = 0
    rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)  # "file:line reason"

    @property
    def total(self) -> int:
        return self.kept + self.rejected

    def lines(self) -> list[str]:
        """Lines to show the person: none where nothing was rejected."""
        if not self.rejected:
            return []
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.items())
        return [f"{self.rejected:,} of {self.total:,} records rejected ({reasons})", *self.first]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class RecordAccount:
    """Counts what is kept and rejected, and writes the rejected ones to a quarantine file (JSONL).

    Attributes:
        tally: the counts, with the reasons.
        rejections: the first `LISTED` rejected records, as they came.

    A quarantine line has `file`, `line`, `reason` and `raw`, or `raw_base64` where the bytes are not UTF-8.
    With `strict` the first rejection raises UserError.
    """

    def __init__(self, quarantine: Path | None = None, *, strict: bool = False) -> None:
        self.tally = Tally()
        self.rejections: list[Rejected] = []
        self.kept_by_file: dict[str, int] = {}
        self.first_by_file: dict[str, Rejected] = {}
        self.rejected_by_file: dict[str, int] = {}
        self._strict = strict
        self._path = quarantine
        self._file: IO[str] | None = None
        if quarantine is not None:
            quarantine.unlink(missing_ok=True)  # an older run's rejections are not this run's

    def __enter__(self) -> RecordAccount:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def keep(self, file: str) -> None:
        """Count one record of `file` as kept."""
        self.tally.kept += 1
        self.kept_by_file[file] = self.kept_by_file.get(file, 0) + 1

    def reject(self, item: Rejected) -> None:
        """Count, group and quarantine one rejected record.

        Raises:
            UserError: with `strict`.
        """
        tally, group = self.tally, item.reason.partition(": ")[0]
        tally.rejected += 1
        tally.reasons[group] = tally.reasons.get(group, 0) + 1
        if len(tally.first) < SHOWN:
            tally.first.append(f"{item.file}:{item.line} {item.reason}")
        if len(self.rejections) < LISTED:
            self.rejections.append(item)
        self.first_by_file.setdefault(item.file, item)
        self.rejected_by_file[item.file] = self.rejected_by_file.get(item.file, 0) + 1
        self._quarantine(item)
        if self._strict:
            raise refused_by_strict(f"{item.file}:{item.line} {item.reason}")

    def to_json(self) -> dict[str, Any]:
        """The counts, in all and of each file, for `add`."""
        first = {file: [item.line, item.reason] for file, item in self.first_by_file.items()}
        return {
            "tally": self.tally.to_json(),
            "kept": self.kept_by_file,
            "rejected": self.rejected_by_file,
            "first": first,
        }

    def add(self, other: Mapping[str, Any]) -> None:
        """Count what another account has counted (`to_json`) of the data after this one's; nothing is quarantined."""
        tally = Tally(**other["tally"])
        self.tally.kept += tally.kept
        self.tally.rejected += tally.rejected
        self.tally.first = [*self.tally.first, *tally.first][:SHOWN]
        for own, added in (
            (self.tally.reasons, tally.reasons),
            (self.kept_by_file, other["kept"]),
            (self.rejected_by_file, other["rejected"]),
        ):
            for name, count in added.items():
                own[name] = own.get(name, 0) + count
        for file, (line, reason) in other["first"].items():
            self.first_by_file.setdefault(file, Rejected(file, line, reason, b""))

    def _quarantine(self, item: Rejected) -> None:
        if self._path is None:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8", errors="backslashreplace")
        entry: dict[str, Any] = {"file": item.file, "line": item.line, "reason": item.reason}
        try:
            entry["raw"] = item.raw.decode("utf-8")
        except UnicodeDecodeError:
            entry["raw_base64"] = base64.b64encode(item.raw).decode("ascii")
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def check(self, named: frozenset[str]) -> None:
        """Refuse data without a usable record.

        Args:
            named: files that the person named one by one; each must have a record that is kept.

        Raises:
            UserError: such a file, or all files together, have no record left, with count and first reason.
        """
        empty = [file for file in self.first_by_file if not self.kept_by_file.get(file)]
        for file in empty:
            if file in named or not self.tally.kept:
                first, count = self.first_by_file[file], self.rejected_by_file[file]
                what = (
                    f"{file} has no usable record: {count:,} rejected, the first at line {first.line}: {first.reason}"
                )
                raise UserError(what, "fix the file, or leave it out")
        if not self.tally.kept:
            raise UserError("the data has no record at all", "give files that are not empty")


def refused_by_strict(place_and_reason: str) -> UserError:
    """The error for a rejected record when the person asked for none."""
    return UserError(place_and_reason, "fix that record, or run without strict to skip such records")
