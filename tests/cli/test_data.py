"""`mmcli data`: records as the model will see them, and what a file amounts to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from mmcli.cli import data as data_command
from mmcli.cli import run
from mmcli.errors import UserError
from mmcli.run import Run
from mmcli.text.chat import encode_chat
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

LINES = [
    "Hello, how are you today?",
    "The rain falls on the hills.",
    "你好，世界。今天天气很好。",
    "A cloud is water 🙂",
]
MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "今天 <|im_end|>\nHello"},
    {"role": "assistant", "content": "The rain falls."},
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "世界。"},
]
PAIR = {"prompt": "Hello", "chosen": "The rain", "rejected": "The hills"}


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "runs"
    train_tokenizer(LINES * 3, vocab_size=400).save(Run.create(root, "tokenizer", "tiny").model)
    return root


@pytest.fixture
def tokenizer(runs_dir: Path) -> Tokenizer:
    return Tokenizer.load(runs_dir / "0001-tokenizer-tiny" / "model")


def write(folder: Path, name: str, *values: Any) -> str:
    path = folder / name
    lines = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    values = [{"text": text} for text in [*LINES, LINES[0]]]
    return write(tmp_path, "texts.jsonl", values[0], "{broken", {"text": " "}, *values[1:], {"other": 1})


@pytest.fixture
def chats(tmp_path: Path) -> str:
    values = [{"messages": MESSAGES}, {"instruction": "Hello", "output": "The rain"}, {"messages": MESSAGES[:2]}]
    return write(tmp_path, "chats.jsonl", *values)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    return write(tmp_path, "pairs.jsonl", PAIR)


def invoke(runs_dir: Path, *args: str, **environment: str) -> Result:
    return CliRunner().invoke(data_command.app, [*args, "--runs-dir", str(runs_dir)], env=environment)


def printed(runs_dir: Path, *args: str, **environment: str) -> str:
    result = invoke(runs_dir, *args, **environment)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def refused(result: Result) -> UserError:
    assert isinstance(result.exception, UserError), (result.stdout, result.stderr, result.exception)
    return result.exception


# preview


def test_conversations_with_what_is_trained(runs_dir: Path, chats: str, tokenizer: Tokenizer) -> None:
    first, second = json.loads(printed(runs_dir, "preview", chats, "--stage", "sft", "--json"))
    encoded = encode_chat(tokenizer, MESSAGES)
    assert first["ids"] == encoded.ids and first["trained"] == [int(flag) for flag in encoded.trained]
    assert set(first["trained"]) == {0, 1}
    assert first["text"] == tokenizer.decode(encoded.ids, keep_special=True)
    assert (first["line"], second["line"]) == (1, 2) and second["file"] == chats

    def learned(record: dict[str, Any]) -> str:
        ids = [id for id, flag in zip(record["ids"], record["trained"], strict=True) if flag]
        return tokenizer.decode(ids, keep_special=True)

    assert learned(first) == "The rain falls.<|im_end|>世界。<|im_end|>"
    [last] = json.loads(printed(runs_dir, "preview", chats, "--train-on", "last", "--limit", "1", "--json"))
    assert learned(last) == "世界。<|im_end|>" and last["ids"] == first["ids"]


def test_conversations_with_or_without_their_reasoning(runs_dir: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path, "thoughts.jsonl", {"instruction": "Hello", "output": "<think>rain</think>hills"})

    def learned(*args: str) -> str:
        [record] = json.loads(printed(runs_dir, "preview", path, "--json", *args))
        assert record["text"] == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n" + whole + "\n"
        ids = [id for id, flag in zip(record["ids"], record["trained"], strict=True) if flag]
        return tokenizer.decode(ids, keep_special=True)

    whole = "<think>\nrain\n</think>\n\nhills<|im_end|>"
    assert learned() == learned("--train-reasoning") == whole
    assert learned("--no-train-reasoning") == learned("--no-train-reasoning", "--train-on", "last")
    assert learned("--no-train-reasoning") == "\n\nhills<|im_end|>"
    packed = refused(invoke(runs_dir, "preview", path, "--packed", "--no-train-reasoning"))
    assert packed.what == "--train-reasoning is for conversations, record by record"


def test_texts_are_trained_whole(runs_dir: Path, texts: str, tokenizer: Tokenizer) -> None:
    result = invoke(runs_dir, "preview", texts, "--limit", "2", "--json")
    records = json.loads(result.stdout)
    assert [record["ids"] for record in records] == [tokenizer.encode_document(text) for text in LINES[:2]]
    assert [set(record["trained"]) for record in records] == [{1}, {1}]
    assert [record["line"] for record in records] == [1, 4]
    assert "texts.jsonl:2 not JSON" in result.stderr and "texts.jsonl:3" in result.stderr


def test_pairs_have_two_sides(runs_dir: Path, pairs: str, tokenizer: Tokenizer) -> None:
    [record] = json.loads(printed(runs_dir, "preview", pairs, "--stage", "dpo", "--json"))
    for side in ("chosen", "rejected"):
        sequence = record[side]
        assert set(sequence) == {"ids", "trained", "text"} and len(sequence["ids"]) == len(sequence["trained"])
        learned = [id for id, flag in zip(sequence["ids"], sequence["trained"], strict=True) if flag]
        assert tokenizer.decode(learned, keep_special=True) == PAIR[side] + "<|im_end|>"
    shown = printed(runs_dir, "preview", pairs)
    assert "chosen: " in shown and "rejected: " in shown and "⟦" in shown


def test_without_colour_trained_tokens_stand_in_brackets(
    runs_dir: Path, chats: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(chats).parent)
    shown = printed(runs_dir, "preview", "chats.jsonl", "--limit", "1")
    assert "\x1b" not in shown
    heading, detail, *lines = shown.splitlines()
    assert heading == "record 1  chats.jsonl:1"
    whole = "".join(lines)
    marked = [part.split("⟧")[0] for part in whole.split("⟦")[1:]]
    assert [part.replace("¦", "") for part in marked] == ["The rain falls.<|im_end|>", "世界。<|im_end|>"]
    assert "<|im_start|>¦" in whole and "⏎" in whole
    user = whole.split("⏎")[3]  # after two lines of the system message and the word "user"
    assert user.startswith("今¦天¦ ¦<¦") and "<|im_end|>" not in user  # spelled in a text, it is text tokens
    tokens, trained = (int(word) for word in detail.replace(",", "").split() if word.isdigit())
    assert sum(part.count("¦") + 1 for part in marked) <= trained < tokens  # a character may be several tokens


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_with_colour_there_are_no_brackets(runs_dir: Path, chats: str, environment: dict[str, str]) -> None:
    shown = printed(runs_dir, "preview", chats, FORCE_COLOR="1", TERM="xterm-256color", **environment)
    assert ("\x1b[30;42m" in shown) == (environment == {})
    assert ("⟦" in shown) == (environment != {})


def test_long_and_wide_texts_fit_into_80_columns(runs_dir: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "wide.txt", "天气" * 200 + "🙂" * 50 + " word" * 100 + "x" * 200)
    for args in (["preview", path], ["preview", path, "--packed", "--seq-len", "2048"], ["check", path]):
        assert max(cell_len(line) for line in printed(runs_dir, *args).splitlines()) <= 80, args


def test_very_long_texts_are_cut_and_that_is_said(runs_dir: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "long.txt", "7" * 1500)
    shown = printed(runs_dir, "preview", path)
    assert shown.count("7") < 1100 and "... and 502 more tokens" in shown
    assert len(json.loads(printed(runs_dir, "preview", path, "--json"))[0]["ids"]) == 1502


def test_packed_rows_show_their_segments(runs_dir: Path, texts: str, tokenizer: Tokenizer) -> None:
    lengths = [len(tokenizer.encode_document(text)) - 1 for text in [*LINES, LINES[0]]]
    seq_len = sum(lengths) + 4
    result = invoke(runs_dir, "preview", texts, "--packed", "--seq-len", str(seq_len))
    assert "row 1: 5 segments" in result.stdout and "4 places of padding" in result.stdout
    assert [f"segment {number}: record " in result.stdout for number in range(6)] == [True] * 5 + [False]
    assert "3 of 8 records rejected" in result.stderr
    [row] = json.loads(printed(runs_dir, "preview", texts, "--packed", "--seq-len", str(seq_len), "--json"))
    assert {len(row[name]) for name in ("ids", "labels", "positions", "segments")} == {seq_len}
    assert row["segments"].count(-1) == 4 and sorted(set(row["segments"])) == [-1, 0, 1, 2, 3, 4]
    starts = [place for place, position in enumerate(row["positions"]) if position == 0 and row["segments"][place] >= 0]
    assert len(starts) == 5 and all(row["ids"][place] == tokenizer.bos_id for place in starts)


def test_in_packed_conversations_the_assistant_is_marked(runs_dir: Path, chats: str) -> None:
    shown = "".join(printed(runs_dir, "preview", chats, "--packed", "--seq-len", "256").splitlines())
    marked = {part.split("⟧")[0].replace("¦", "") for part in shown.split("⟦")[1:]}
    assert marked == {"The rain falls.<|im_end|>", "世界。<|im_end|>", "The rain<|im_end|>"}


# check


def test_a_check_accounts_for_every_record(runs_dir: Path, texts: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    quarantine = tmp_path / "q.jsonl"
    found = json.loads(
        printed(runs_dir, "check", texts, "--stage", "pretrain", "--quarantine", str(quarantine), "--json")
    )
    assert (found["kept"], found["rejected"], found["total"]) == (5, 3, 8)
    assert found["reasons"] == {"not JSON": 1, '"text" is empty': 1, "a record of no known kind": 1}
    assert sum(found["reasons"].values()) == found["rejected"]
    assert found["kinds"] == {"text": 6, "unknown": 1} and found["duplicates"] == 1
    ids = [tokenizer.encode_document(text) for text in [*LINES, LINES[0]]]
    assert found["tokens"] == found["trained_tokens"] == sum(map(len, ids))
    lengths = sorted(map(len, ids))
    assert found["lengths"] == {"shortest": lengths[0], "median": lengths[2], "p95": lengths[4], "longest": lengths[4]}
    assert sum(bucket["sequences"] for bucket in found["histogram"]) == 5
    assert [(each["file"], each["line"]) for each in found["rejections"]] == [(texts, 2), (texts, 3), (texts, 8)]
    kept = [json.loads(line) for line in quarantine.read_text(encoding="utf-8").splitlines()]
    assert sorted(each["line"] for each in kept) == [2, 3, 8] and found["quarantine"] == str(quarantine)


def test_a_check_in_words(runs_dir: Path, texts: str) -> None:
    shown = printed(runs_dir, "check", texts)
    assert "8 records for pretrain: 5 kept, 3 rejected" in shown and "duplicates: 1" in shown and "█" in shown
    assert "texts.jsonl:2 not JSON" in "".join(shown.splitlines())


def test_a_good_file_leaves_no_quarantine(runs_dir: Path, pairs: str, tmp_path: Path) -> None:
    found = json.loads(printed(runs_dir, "check", pairs, "--quarantine", str(tmp_path / "q.jsonl"), "--json"))
    assert (found["stage"], found["rejected"], found["sequences"], found["quarantine"]) == ("dpo", 0, 2, None)
    assert not (tmp_path / "q.jsonl").exists()


def test_a_file_without_a_usable_record_is_counted_and_refused(runs_dir: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "bad.jsonl", "{broken", {"text": ""})
    result = invoke(runs_dir, "check", path, "--json")
    found = json.loads(result.stdout)
    assert (found["kept"], found["rejected"], found["lengths"]) == (0, 2, {})
    assert "no usable record" in refused(result).what
    assert "0 kept, 2 rejected" in invoke(runs_dir, "check", path).stdout
    assert "2 rejected, the first: " in refused(invoke(runs_dir, "preview", path)).what


# What is refused


@pytest.mark.parametrize("command", ["preview", "check"])
def test_another_kind_is_refused_with_what_was_found(runs_dir: Path, chats: str, command: str) -> None:
    result = invoke(runs_dir, command, chats, "--stage", "pretrain")
    error = refused(result)
    assert "chats.jsonl holds conversations" in error.what and "plain text" in error.what
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["preview", "--limit", "0"], "--limit 0"),
        (["preview", "--seq-len", "64"], "--seq-len"),
        (["preview", "--packed", "--seq-len", "1"], "--seq-len 1"),
        (["preview", "--train-on", "last"], "--train-on"),
        (["preview", "--train-reasoning"], "--train-reasoning"),
        (["preview", "--no-train-reasoning"], "--train-reasoning"),
        (["preview", "--tokenizer", "nowhere"], 'no run "nowhere"'),
    ],
)
def test_what_makes_no_sense_is_refused(runs_dir: Path, texts: str, args: list[str], what: str) -> None:
    assert what in refused(invoke(runs_dir, args[0], texts, *args[1:])).what


def test_a_quarantine_never_replaces_a_file(runs_dir: Path, texts: str) -> None:
    before = Path(texts).read_bytes()
    assert "exists" in refused(invoke(runs_dir, "check", texts, "--quarantine", texts)).what
    assert Path(texts).read_bytes() == before


def test_without_a_tokenizer_it_says_how_to_get_one(tmp_path: Path, texts: str) -> None:
    assert "mmcli tokenizer train" in refused(invoke(tmp_path / "none", "preview", texts)).fix


def test_looking_at_data_loads_no_torch(runs_dir: Path, texts: str, chats: str) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom mmcli.cli import data\n"
        f"for args in (['preview', {chats!r}], ['preview', {texts!r}, '--packed'], ['check', {texts!r}]):\n"
        f"    assert CliRunner().invoke(data.app, [*args, '--runs-dir', {str(runs_dir)!r}]).exit_code == 0\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_columns_parquet_and_weights(tmp_path: Path, runs_dir: Path) -> None:
    texts = write(tmp_path, "texts.jsonl", *[{"body": line * 3} for line in LINES])
    rows = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"body": line} for line in LINES]), rows)
    found = invoke(runs_dir, "preview", str(rows), "--columns", "text=body", "--json")
    assert [record["line"] for record in json.loads(found.stdout)] == [1, 2, 3]
    checked = invoke(runs_dir, "check", f"{texts}:0.5", f"{rows}:0.5", "--columns", "text=body", "--json")
    mixture = json.loads(checked.stdout)["mixture"]
    assert [each["name"] for each in mixture] == [texts, str(rows)]
    assert mixture[0]["epoch_tokens"] == mixture[1]["epoch_tokens"] == mixture[1]["tokens"] < mixture[0]["tokens"]
    shown = invoke(runs_dir, "check", f"{texts}:0.5", f"{rows}:0.5", "--columns", "text=body")
    assert "tokens per epoch: " in shown.stdout and "(50.0%)" in shown.stdout
    assert "no field bodi" in refused(invoke(runs_dir, "check", texts, "--columns", "text=bodi")).what


def test_check_works_before_there_is_a_tokenizer(tmp_path: Path) -> None:
    name = write(tmp_path, "a.jsonl", {"text": "one"}, {"text": "two"}, {"text": "one"}, {"text": ""}, "no json")
    done = CliRunner().invoke(data_command.app, ["check", name, "--runs-dir", str(tmp_path / "runs"), "--json"])
    assert done.exit_code == 0, (done.stderr, done.exception)
    found = json.loads(done.stdout)
    assert (found["kept"], found["rejected"], found["duplicates"], found["kinds"]) == (3, 2, 1, {"text": 4})
    assert (found["tokens"], found["text_bytes"]) == (None, 9)
    assert "tokens are not counted" in done.stderr
    shown = CliRunner().invoke(data_command.app, ["check", name, "--runs-dir", str(tmp_path / "runs")])
    assert "1 kept records with exactly the texts of an earlier one" in " ".join(shown.stdout.split())
    asked = ["check", name, "--runs-dir", str(tmp_path / "runs"), "--tokenizer", "none"]
    assert isinstance(CliRunner().invoke(data_command.app, asked).exception, UserError)


def test_check_without_a_tokenizer_rejects_what_training_would(tmp_path: Path) -> None:
    name = write(tmp_path, "a.jsonl", PAIR, {**PAIR, "rejected": PAIR["chosen"]}, {"text": "x"}, PAIR)
    done = CliRunner().invoke(data_command.app, ["check", name, "--runs-dir", str(tmp_path / "runs"), "--json"])
    found = json.loads(done.stdout)
    assert (found["stage"], found["kept"], found["rejected"], found["duplicates"]) == ("dpo", 2, 2, 1)


@pytest.mark.parametrize("content", [None, "", "no json"])
@pytest.mark.parametrize("command", [["data", "check"], ["data", "preview"], ["tokenizer", "eval"]], ids=" ".join)
def test_advice_names_no_option_that_the_command_lacks(
    command: list[str], content: str | None, tmp_path: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ["--runs-dir", str(tmp_path / "runs")]
    assert run(["tokenizer", "train", "--data", texts, "--vocab-size", "320", *runs]) == 0
    capsys.readouterr()
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    assert run([*command, str(tmp_path / "a.jsonl"), *runs]) == 2
    _, fix = capsys.readouterr().err.strip().splitlines()[-2:]
    assert fix.startswith("  fix: ") and "--data" not in fix


def test_names_reach_the_terminal_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write(tmp_path, "a\x1b]0;title\x07\x1b[31m.jsonl", "no json", {"text": "fine"})
    for argv in (["check", name], ["check", name + "x"]):
        run(["data", *argv, "--runs-dir", str(tmp_path / "runs")])
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err and "\x07" not in said.out + said.err
        assert "\\x1b]0;title" in (said.out + said.err).replace("\n", "")
