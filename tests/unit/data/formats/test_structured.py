from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from mmcli.data.formats.elements import ElementScanner
from mmcli.data.formats.lines import choose_layout
from mmcli.data.record import MAX_RAW

Read = Callable[..., tuple[list[Any], list[Any]]]
ROWS = [{"text": f'row {i} with "quotes", {{braces}} [and] \\ more\nlines é {"x" * i}'} for i in range(12)]


def both(result: tuple[list[Any], list[Any]]) -> tuple[list[Any], list[tuple[int, str]]]:
    records, rejected = result
    return [(record.line, record.value) for record in records], [(item.line, item.reason) for item in rejected]


def test_bad_lines_of_jsonl_cost_only_themselves(read: Read) -> None:
    content = '{"text": "a"}\n{"text": oops}\n\n[1, 2]\n"x"\n7\nnull\n{"text": "b"}\n{"text": "c"'
    records, rejected = both(read(content, "a.jsonl"))
    assert records == [(1, {"text": "a"}), (8, {"text": "b"})]
    assert rejected == [
        (2, "not JSON: Expecting value at character 10"),
        (4, "not an object: a JSON array"),
        (5, "not an object: a JSON string"),
        (6, "not an object: a JSON number"),
        (7, "not an object: a JSON null"),
        (9, "not JSON: Expecting ',' delimiter at character 13"),
    ]


def test_json_that_the_parser_refuses_in_other_ways(read: Read) -> None:
    content = '{"text": "a"}\n{"n": ' + "1" * 5000 + "}\n" + '{"n":' + "[" * 100_000 + "\n"
    records, rejected = read(content, "a.jsonl")
    assert len(records) == 1
    assert [item.line for item in rejected] == [2, 3]
    assert all(item.reason.startswith("not JSON: ") for item in rejected)
    assert len(rejected[1].raw) == MAX_RAW


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (json.dumps(ROWS), [1] * 12),
        (json.dumps(ROWS, indent=2), list(range(2, 38, 3))),
        (json.dumps(ROWS, indent=0), list(range(2, 38, 3))),
        (json.dumps(ROWS, indent="\t").replace("\n", "\r\n"), list(range(2, 38, 3))),
        ("\n\n[" + ",\n".join(json.dumps(row) for row in ROWS) + "]\n", list(range(3, 15))),
        ("[\n" + "\n,\n".join(json.dumps(row) for row in ROWS) + "\n]", list(range(2, 26, 2))),
        ("".join(json.dumps(row) + "\n" for row in ROWS), list(range(1, 13))),
        ("\n" + "\n\n".join(json.dumps(row) for row in ROWS), list(range(2, 26, 2))),
        (json.dumps({"version": "1", "data": ROWS}), [1] * 12),
        (json.dumps({"version": "1", "data": ROWS, "n": 3}, indent=2), list(range(4, 40, 3))),
    ],
)
def test_every_layout_gives_the_same_records_and_their_lines(
    read: Read, name: str, content: str, lines: list[int]
) -> None:
    records, rejected = both(read(content, name))
    assert records == list(zip(lines, ROWS, strict=True))
    assert rejected == []


def test_one_object_may_be_one_record(read: Read) -> None:
    chat = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    for content in (json.dumps(chat), json.dumps(chat, indent=2)):
        records, rejected = both(read(content, "a.json", "chat"))
        assert records == [(1, chat)]
        assert rejected == []


def test_layout_of_broken_beginnings() -> None:
    assert choose_layout('[{"text": "broken}\n{"text": "good"}\n') == "lines"
    assert choose_layout('{"text": "broken}\n{"text": "good"}\n') == "lines"
    assert choose_layout('garbage\n{"text": "good"}\n') == "lines"
    assert choose_layout('[\n{"text": "only"}\n]') == "array"
    assert choose_layout('{ "data": [\n{"text": "x"},') == "object"
    assert choose_layout('{"a": 1,\n"b": 2\n}') == "object"
    assert choose_layout('{"a": 1,\noops\n', named_lines=True) == "lines"
    assert choose_layout('{\n"a": 1}', named_lines=True) == "object"


@pytest.mark.parametrize(
    "broken",
    ['{"text": "no end}', '{"text": "no brace"', '{"text": ["x"}', "{,}", '{"text" "x"}', "]", "["],
)
@pytest.mark.parametrize("indent", ["", "  "])
def test_broken_element_of_an_array_costs_only_itself(read: Read, broken: str, indent: str) -> None:
    rows = [json.dumps(row) for row in ROWS]
    rows[4] = broken
    records, rejected = both(read("[\n" + ",\n".join(indent + row for row in rows) + "\n]\n", "a.json"))
    assert [value for _, value in records] == ROWS[:4] + ROWS[5:]
    assert [line for line, _ in records] == [2, 3, 4, 5, *range(7, 14)]
    assert all(line == 6 for line, _ in rejected)
    assert rejected or broken in ("]", "[")  # a stray bracket alone holds no record


def test_bracket_too_many_costs_nothing_that_follows(read: Read) -> None:
    content = "[\n" + ",\n".join([json.dumps(ROWS[0]) + "}", *(json.dumps(row) for row in ROWS[1:])]) + "\n]\n"
    records, rejected = both(read(content, "a.json"))
    assert [value for _, value in records] == ROWS
    assert rejected == []


def test_broken_element_over_several_lines_costs_only_itself(read: Read) -> None:
    lines = json.dumps(ROWS, indent=2).split("\n")
    assert lines[12].strip() == "},"
    del lines[12]  # the end of the fourth element
    records, rejected = both(read("\n".join(lines), "a.json"))
    assert [value for _, value in records] == ROWS[:3] + ROWS[4:]
    assert [line for line, _ in rejected] == [11]


def test_array_cut_off_in_the_middle(read: Read) -> None:
    records, rejected = both(read(json.dumps(ROWS, indent=1)[:-40], "a.json"))
    assert [value for _, value in records] == ROWS[:-1]
    assert [line for line, _ in rejected] == [35]


def test_elements_do_not_depend_on_the_chunks() -> None:
    text = json.dumps([*ROWS, {"a": [[{"b": "\\"}, '\\"']], "c": "]"}, 5, "x,y"], indent=1)
    whole = list(ElementScanner(10**6).elements([text]))
    assert [json.loads(part or "") for _, part in whole] == json.loads(text)
    pick = random.Random(1)
    for _ in range(200):
        cuts = sorted(pick.randrange(len(text)) for _ in range(pick.randrange(40)))
        chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert list(ElementScanner(10**6).elements(chunks)) == whole


def test_too_long_lines_and_elements_are_not_held(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcli.data.formats.structured.MAX_LINE", 100)
    monkeypatch.setattr("mmcli.data.formats.lines.MAX_LINE", 100)
    monkeypatch.setattr("mmcli.data.formats.files.MAX_LINE", 100)
    long, short = {"text": "x" * 1000}, {"text": "y"}
    content = "".join(json.dumps(row) + "\n" for row in (short, long, short))
    records, rejected = both(read(content, "a.jsonl"))
    assert records == [(1, short), (3, short)]
    assert rejected == [(2, "a line is too long: more than 100 characters")]
    records, rejected = both(read(json.dumps([short, long, short]), "a.json"))
    assert records == [(1, short), (1, short)]
    assert rejected == [(1, "an element is too long: more than 100 characters")]
    records, rejected = both(read(json.dumps(long, indent=1), "a.json"))
    assert records == []
    assert rejected == [(1, "an object is too long: more than 100 characters")]


def test_csv_with_quotes_and_line_ends_in_cells(read: Read) -> None:
    content = 'id,text\r\n1,plain\r\n2,"a ""quoted"", cell\r\nwith lines"\r\n\r\n3,last\r\n'
    records, rejected = both(read(content, "a.csv"))
    assert records == [
        (2, {"id": "1", "text": "plain"}),
        (3, {"id": "2", "text": 'a "quoted", cell\nwith lines'}),
        (6, {"id": "3", "text": "last"}),
    ]
    assert rejected == []


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_delimiters(read: Read, delimiter: str) -> None:
    content = "instruction,output\nwhat,that\n".replace(",", delimiter)
    assert both(read(content, "a.csv", "chat")) == ([(2, {"instruction": "what", "output": "that"})], [])


def test_bad_rows_of_csv_cost_only_themselves(read: Read) -> None:
    content = 'text,n\na,1\nb\nc,3,4\n"never closed,4\nd,5\n"x"y,6\ne,7\n'
    records, rejected = both(read(content, "a.csv"))
    assert [value["text"] for _, value in records] == ["a", "d", "e"]
    assert rejected == [
        (3, "a row has another number of cells than the first: 1 of 2"),
        (4, "a row has another number of cells than the first: 3 of 2"),
        (5, "a quote is never closed"),
        (7, "not a CSV row"),
    ]


def test_csv_cell_larger_than_the_library_allows_by_default(read: Read) -> None:
    records, rejected = both(read("text\n" + "x" * 200_000 + "\n", "a.csv"))
    assert [len(value["text"]) for _, value in records] == [200_000]
    assert rejected == []
