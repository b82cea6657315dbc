"""Fields under other names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmcli.data.record import Record
from mmcli.data.sources.sources import open_sources
from mmcli.errors import UserError


def write(path: Path, *values: Any) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def values(name: str, *columns: str, kind: str = "text") -> list[dict[str, Any]]:
    return [
        item.value for item in open_sources([name], kind=kind, columns=columns).records() if isinstance(item, Record)
    ]


def test_a_field_is_read_under_another_name(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", {"body": "one", "title": "t"}, {"text": "two"})
    assert values(name, "text=body") == [{"text": "one"}, {"text": "two"}]
    (tmp_path / "a.csv").write_text("title,body\nt,one\n")
    assert values(str(tmp_path / "a.csv"), "text = body") == [{"text": "one"}]


def test_a_name_alone_picks_one_field_of_many(tmp_path: Path) -> None:
    value = {"instruction": "do", "output": "done", "text": "all of it"}
    name = write(tmp_path / "a.jsonl", value)
    with pytest.raises(UserError, match="holds conversations"):
        open_sources([name])
    assert values(name, "text") == [{"text": "all of it"}]


def test_several_fields_make_a_conversation(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", {"q": "who", "a": "me", "id": 5})
    assert values(name, "instruction=q", "output=a", kind="chat") == [{"instruction": "who", "output": "me"}]


def test_columns_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", {"text": "one", "body": "two"})
    assert open_sources([name]).fingerprint != open_sources([name], columns=["text=body"]).fingerprint


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (["text="], "is not FIELD=COLUMN"),
        (["=body"], "is not FIELD=COLUMN"),
        (["text=body", "text=title"], "gives text twice: body and title"),
        (["text=boddy"], "the data has no field boddy"),
    ],
)
def test_columns_that_cannot_be_read_are_refused(tmp_path: Path, columns: list[str], says: str) -> None:
    name = write(tmp_path / "a.jsonl", {"body": "one", "title": "t"})
    with pytest.raises(UserError, match=says) as caught:
        open_sources([name], columns=columns)
    assert says != "the data has no field boddy" or caught.value.fix == "give --columns one of: body, title"
