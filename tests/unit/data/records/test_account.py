from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from mmcli.data.record import Rejected
from mmcli.data.records.account import RecordAccount
from mmcli.errors import UserError


def test_counts_groups_and_quarantines(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rejected.jsonl"
    with RecordAccount(path) as intake:
        for _ in range(5):
            intake.keep("a")
        for line in range(1, 8):
            intake.reject(Rejected("a", line, f"not JSON: at character {line}", "é".encode()))
        intake.reject(Rejected("b", 3, "not UTF-8: byte 0xff", b"\xff"))
    tally = intake.tally
    assert (tally.kept, tally.rejected, tally.total) == (5, 8, 13)
    assert tally.reasons == {"not JSON": 7, "not UTF-8": 1}
    assert tally.first[0] == "a:1 not JSON: at character 1"
    assert len(tally.first) == 5
    assert tally.lines()[0] == "8 of 13 records rejected (7 not JSON, 1 not UTF-8)"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(entries) == 8
    assert entries[0] == {"file": "a", "line": 1, "reason": "not JSON: at character 1", "raw": "é"}
    assert base64.b64decode(entries[7]["raw_base64"]) == b"\xff"


def test_nothing_rejected_leaves_no_file_of_an_older_run(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    path.write_text("old")
    with RecordAccount(path) as intake:
        intake.keep("a")
    assert not path.exists()
    assert intake.tally.lines() == []


def test_strict_stops_at_the_first() -> None:
    with pytest.raises(UserError) as caught:
        RecordAccount(strict=True).reject(Rejected("a.jsonl", 7, "not JSON: x", b""))
    assert caught.value.what == "a.jsonl:7 not JSON: x"


def test_files_without_a_usable_record() -> None:
    intake = RecordAccount()
    intake.keep("good")
    for line in (4, 5):
        intake.reject(Rejected("bad", line, f"reason {line}", b""))
    intake.check(frozenset())  # found in a folder: counted, no error
    with pytest.raises(UserError) as caught:
        intake.check(frozenset(["good", "bad"]))
    assert caught.value.what == "bad has no usable record: 2 rejected, the first at line 4: reason 4"
    with pytest.raises(UserError, match="no record at all"):
        RecordAccount().check(frozenset())
    alone = RecordAccount()
    alone.reject(Rejected("bad", 1, "reason", b""))
    with pytest.raises(UserError, match="bad has no usable record: 1 rejected"):
        alone.check(frozenset())
