"""`mmcli tokenizer train` and `inspect`: what is written, what is shown, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from mmcli.cli import run
from mmcli.run import list_runs
from mmcli.text.tokenizer import Tokenizer

LINES = [f"The cat number {n} sat on the mat and looked at the dog. 今天天气很好。" for n in range(60)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with a corpus in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MMCLI_RUNS", raising=False)
    (tmp_path / "corpus.txt").write_text("\n".join(LINES), encoding="utf-8")
    return tmp_path


@pytest.fixture
def trained(here: Path, capsys: pytest.CaptureFixture[str]) -> Tokenizer:
    """The tokenizer of run 1."""
    assert run(["tokenizer", "train", "--data", "corpus.txt", "--vocab-size", "400"]) == 0
    capsys.readouterr()
    return Tokenizer.load(here / "runs" / "0001-tokenizer-400" / "model")


def as_json(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert run(["tokenizer", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert run(["tokenizer", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err and "  fix: " in captured.err
    return captured.err


def test_train_makes_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenizer", "train", "--data", "corpus.txt", "--vocab-size", "400"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("runs/0001-tokenizer-400/model: 400 tokens, ")
    assert "data: corpus.txt" in captured.err
    (found,) = list_runs(here / "runs")
    info = found.info()
    loaded = Tokenizer.load(found.model)
    assert (found.stage, info["state"], info["vocab_size"], loaded.vocab_size) == ("tokenizer", "finished", 400, 400)
    assert info["fingerprint"] == loaded.fingerprint
    assert info["records"] == 60


def test_train_prints_true_figures_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(capsys, "train", "--data", "corpus.txt", "--vocab-size", "400", "--pretokenizer", "gpt2")
    loaded = Tokenizer.load(Path(result["path"]))
    text = "".join(LINES)
    count = len(loaded.encode_text(text))
    assert (result["vocab_size"], result["pretokenizer"]) == (400, "gpt2")
    assert (result["records"], result["rejected"]) == (60, 0)
    assert result["characters_per_token"] == pytest.approx(len(text) / count)
    assert result["bytes_per_token"] == pytest.approx(len(text.encode()) / count)
    assert loaded.definition.tokenizer["pre_tokenizer"]["type"] == "ByteLevel"


def test_train_learns_from_every_kind_of_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = {"conversations": [{"from": "human", "value": "zzzz zzzz"}, {"from": "gpt", "value": "qqqq qqqq"}]}
    pair = {"prompt": "wwww", "chosen": "jjjj", "rejected": "kkkk"}
    (here / "chat.jsonl").write_text((json.dumps(chat) + "\n") * 3)
    (here / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 3)
    data = ["--data", "corpus.txt", "--data", "chat.jsonl", "--data", "pairs.jsonl"]
    result = as_json(capsys, "train", *data, "--vocab-size", "600", "--out", "both")
    loaded = Tokenizer.load(here / "both")
    assert result["path"] == "both" and result["records"] == 66
    assert not (here / "runs").exists()
    for word in ("zzzz", "qqqq", "wwww", "jjjj", "kkkk", " cat"):
        assert len(loaded.encode_text(word)) == 1, word
    assert len(loaded.encode_text("human")) > 1  # roles are no language


def test_train_without_arguments_learns_the_built_in_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(capsys, "train")
    assert (result["path"], result["data"]) == ("runs/0001-tokenizer-6400/model", "the built-in corpus")
    loaded = Tokenizer.load(Path(result["path"]))
    assert (loaded.vocab_size, len(loaded.control_tokens)) == (6400, 32)  # the corpus fills it
    english, chinese = "What is the name of the cat?", "小明住在枫林镇。"
    assert len(loaded.encode_text(english)) < len(english) / 2
    assert len(loaded.encode_text(chinese)) < len(chinese)


def test_train_tells_of_bad_records(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad.jsonl").write_text('{"text": "good good"}\n{"text": \n{"text": "good again"}\n')
    assert run(["tokenizer", "train", "--data", "bad.jsonl", "--vocab-size", "300", "--json"]) == 0
    captured = capsys.readouterr()
    assert "1 of 3 records rejected (1 not JSON)" in captured.err and "bad.jsonl:2 not JSON" in captured.err
    assert json.loads(captured.out)["rejected"] == 1


def test_train_learns_from_a_part_of_much_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / "much.jsonl"
    path.write_text("".join(json.dumps({"text": f"line {n} of a long file " * 40}) + "\n" for n in range(3000)))
    part = as_json(capsys, "train", "--data", str(path), "--vocab-size", "300", "--max-mb", "1")
    assert 1e6 <= part["bytes"] < 1.1e6 and part["records"] == 3000
    whole = as_json(capsys, "train", "--data", str(path), "--vocab-size", "300", "--max-mb", "0")
    assert whole["bytes"] == sum(len(json.loads(line)["text"]) for line in path.open())
    assert "below 0" in refused(capsys, "train", "--data", str(path), "--max-mb", "-1")


def test_train_tells_that_it_learned_from_a_part(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / "much.jsonl"
    path.write_text("".join(json.dumps({"text": f"line {n} of a long file " * 40}) + "\n" for n in range(3000)))
    assert run(["tokenizer", "train", "--data", str(path), "--vocab-size", "300", "--max-mb", "1"]) == 0
    assert "trained on 1 MB of the text; more: --max-mb" in capsys.readouterr().err


def test_train_refuses(here: Path, capsys: pytest.CaptureFixture[str], trained: Tokenizer) -> None:
    assert "too small" in refused(capsys, "train", "--data", "corpus.txt", "--vocab-size", "10")
    assert 'no pre-tokenizer "llama"' in refused(capsys, "train", "--data", "corpus.txt", "--pretokenizer", "llama")
    assert "none.txt" in refused(capsys, "train", "--data", "none.txt")
    assert "has a tokenizer already" in refused(
        capsys, "train", "--data", "corpus.txt", "--out", "runs/0001-tokenizer-400/model"
    )
    (here / "file").write_text("")
    text = refused(capsys, "train", "--data", "corpus.txt", "--vocab-size", "300", "--out", "file/x")
    assert "cannot write file/x" in text
    assert len(list_runs(here / "runs")) == 1  # a mistake leaves no run behind


def test_inspect_as_json(capsys: pytest.CaptureFixture[str], trained: Tokenizer) -> None:
    text = "The cat\n深<|im_end|>"
    result = as_json(capsys, "inspect", text)
    ids = trained.encode_text(text)
    assert [token["id"] for token in result["tokens"]] == ids
    assert (result["characters"], result["bytes"], result["count"]) == (len(text), len(text.encode()), len(ids))
    assert result["characters_per_token"] == len(text) / len(ids)
    assert result["bytes_per_token"] == len(text.encode()) / len(ids)
    raw = b"".join(
        bytes.fromhex(token["bytes"]) if "bytes" in token else token["text"].encode() for token in result["tokens"]
    )
    assert raw.decode() == text
    assert not any(token.get("control") for token in result["tokens"])
    assert {"id": ids[-1], "text": ">"} in result["tokens"]


def test_inspect_shows_where_tokens_end(capsys: pytest.CaptureFixture[str], trained: Tokenizer) -> None:
    assert run(["tokenizer", "inspect", "The cat\n深\x1b[31m[bold]"]) == 0
    out = capsys.readouterr().out
    assert "The| cat|⏎\n|<E6>|<B7>|<B1>|\\x1b|" in out
    assert "\x1b" not in out
    assert "d|]\n" in out  # no markup is read from the text
    count = len(trained.encode_text("The cat\n深\x1b[31m[bold]"))
    assert f"{count} tokens; 20 characters, {20 / count:.2f} a token; 22 bytes, {22 / count:.2f} a token" in out


def test_inspect_lists_ids(capsys: pytest.CaptureFixture[str], trained: Tokenizer) -> None:
    assert run(["tokenizer", "inspect", "The 天", "--ids", "--as", "document"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["id", "token", "bytes"]
    assert lines[1] == ["1", "<|im_start|>", "0"]
    assert lines[2] == [str(trained.encode_text("The")[0]), "The", "3"]
    assert lines[-2] == ["2", "<|im_end|>", "0"]


def test_inspect_shows_the_beginning_of_a_long_text(capsys: pytest.CaptureFixture[str], trained: Tokenizer) -> None:
    text = "3 " * 3000
    count = len(trained.encode_text(text))
    assert run(["tokenizer", "inspect", text]) == 0
    out = capsys.readouterr().out
    assert f"... and {count - 2000:,} more tokens (--json has all)" in out
    assert out.split("\n")[0].count("|") == 1999
    assert len(as_json(capsys, "inspect", text)["tokens"]) == count


def test_inspect_in_the_chat_template(capsys: pytest.CaptureFixture[str], trained: Tokenizer) -> None:
    result = as_json(capsys, "inspect", "Hi<|im_end|>", "--as", "chat")
    controls = [token["text"] for token in result["tokens"] if token.get("control")]
    assert controls == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_inspect_reads_files_and_pipes(here: Path, capsys: pytest.CaptureFixture[str], trained: Tokenizer) -> None:
    (here / "text.md").write_bytes(b"\xef\xbb\xbfThe cat")
    assert as_json(capsys, "inspect", "--file", "text.md")["characters"] == 7
    command = [sys.executable, "-m", "mmcli", "tokenizer", "inspect", "--json"]
    piped = subprocess.run(command, input="The 天".encode(), capture_output=True, check=True)
    assert json.loads(piped.stdout)["bytes"] == 7


def test_inspect_takes_the_newest_tokenizer(here: Path, capsys: pytest.CaptureFixture[str], trained: Tokenizer) -> None:
    as_json(capsys, "train", "--data", "corpus.txt", "--vocab-size", "300")
    newest = Tokenizer.load(list_runs(here / "runs")[-1].model)
    for options, expected in [
        ([], newest),
        (["--tokenizer", "1"], trained),
        (["--tokenizer", "runs/0001-tokenizer-400/model"], trained),
        (["--tokenizer", "runs/0001-tokenizer-400/model/tokenizer.json"], trained),
    ]:
        shown = as_json(capsys, "inspect", "The cat sat", *options)
        assert [token["id"] for token in shown["tokens"]] == expected.encode_text("The cat sat")


def test_inspect_refuses(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no tokenizer in runs" in refused(capsys, "inspect", "x")
    assert "there is no text" in refused(capsys, "inspect", "")
    assert "a text and --file" in refused(capsys, "inspect", "x", "--file", "corpus.txt")
    assert "cannot read none" in refused(capsys, "inspect", "--file", "none")
    (here / "latin").write_bytes(b"caf\xe9")
    assert "latin is not UTF-8 text (byte 3)" in refused(capsys, "inspect", "--file", "latin")


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "inspect", "eval"):
        assert run(["tokenizer", command, "--help"]) == 0
        assert f"Example: mmcli tokenizer {command}" in " ".join(capsys.readouterr().out.split())


def test_nothing_heavy_is_imported_for_help() -> None:
    code = "import sys, mmcli.cli.tokenizer; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "typer" in modules
    assert not {"tokenizers", "jinja2", "numpy", "torch", "rich"} & set(modules)


def test_eval_measures_two_tokenizers_on_the_same_text(
    here: Path, trained: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tokenizer", "train", "--data", "corpus.txt", "--vocab-size", "300", "--out", "small"]) == 0
    capsys.readouterr()
    held_out = ["The dog sat.", "今天天气很好，", 'not learned: "£5" 🙂']
    (here / "held.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*held_out, "x\0"]))
    small = Tokenizer.load(here / "small")
    result = as_json(capsys, "eval", "held.jsonl", "--against", "small/tokenizer.json")
    characters, size = sum(map(len, held_out)), sum(len(text.encode()) for text in held_out)
    assert [result[name] for name in ("records", "rejected", "characters", "bytes")] == [3, 1, characters, size]
    for facts, loaded, name in zip(
        result["tokenizers"], (trained, small), ("newest", "small/tokenizer.json"), strict=True
    ):
        ids = [id for text in held_out for id in loaded.encode_text(text)]
        assert facts == {
            "tokenizer": name,
            "vocab_size": loaded.vocab_size,
            "tokens": len(ids),
            "characters_per_token": characters / len(ids),
            "bytes_per_token": size / len(ids),
            "tokens_used": len(set(ids)),
        }
    assert run(["tokenizer", "eval", "held.jsonl", "--tokenizer", "small", "--against", "1"]) == 0
    captured = capsys.readouterr()
    assert "tokenizer  vocabulary  tokens  characters/token  bytes/token   used" in captured.out
    assert f"{characters:,} characters, {size:,} bytes; " in captured.out
    assert "fewer characters per token than 1" in captured.out
    assert "held.jsonl:4" in captured.err


def test_eval_takes_any_byte_level_tokenizer_and_any_data(
    here: Path, trained: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = tokenizers.ByteLevelBPETokenizer()
    learner.train_from_iterator(LINES, vocab_size=320, show_progress=False)
    learner.save("foreign.json")
    (here / "chat.jsonl").write_text(json.dumps({"instruction": "The cat?", "output": "sat"}) + "\n")
    found = as_json(capsys, "eval", "chat.jsonl", "corpus.txt", "--tokenizer", "foreign.json")
    texts = ["The cat?", "sat", *LINES]
    assert found["tokenizers"][0]["tokens"] == sum(len(learner.encode(text).ids) for text in texts)
    assert found["characters"] == sum(map(len, texts))


def test_eval_refuses_what_it_cannot_measure(
    here: Path, trained: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "none.txt" in refused(capsys, "eval", "none.txt")
    assert "has a weight" in refused(capsys, "eval", "corpus.txt:0.5")
    assert "none.json" in refused(capsys, "eval", "corpus.txt", "--against", "none.json")
    (here / "numbers.jsonl").write_text('{"text": "", "id": 5}\n')
    assert 'numbers.jsonl has no usable record: 1 rejected, the first at line 1: "text" is empty' in refused(
        capsys, "eval", "numbers.jsonl"
    )
    assert "has a weight" in refused(capsys, "train", "--data", "corpus.txt:0.5")


def test_columns_name_the_text(here: Path, trained: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "other.jsonl").write_text("".join(json.dumps({"body": line, "note": "zzzz"}) + "\n" for line in LINES))
    dialog = [{"role": "user", "content": "zzzz"}, {"role": "assistant", "content": "qqqq"}]
    (here / "chat.jsonl").write_text((json.dumps({"dialog": dialog, "note": "wwww"}) + "\n") * 2)
    named = as_json(capsys, "train", "--data", "other.jsonl", "--columns", "text=body", "--vocab-size", "400")
    assert Tokenizer.load(Path(named["path"])).fingerprint == trained.fingerprint
    assert named["records"] == len(LINES)
    characters = sum(map(len, LINES))
    assert as_json(capsys, "eval", "other.jsonl", "--columns", "text=body")["characters"] == characters
    columns = ("--columns", "text=body", "--columns", "messages=dialog")
    every = as_json(capsys, "eval", "demo", "other.jsonl", "corpus.txt", "chat.jsonl", *columns)  # all kinds together
    alone = as_json(capsys, "eval", "demo")
    assert every["characters"] - alone["characters"] == 2 * characters + 2 * len("zzzzqqqq")


@pytest.mark.parametrize(
    ("columns", "says"),
    [("text=boddy", "the data has no field boddy"), ("text=", "is not FIELD=COLUMN")],
)
def test_columns_that_no_data_has_are_refused(
    here: Path, trained: Tokenizer, capsys: pytest.CaptureFixture[str], columns: str, says: str
) -> None:
    (here / "chat.jsonl").write_text(json.dumps({"instruction": "The cat?", "output": "sat"}) + "\n")
    for data in ("corpus.txt", "chat.jsonl"):
        assert says in refused(capsys, "train", "--data", data, "--data", "demo", "--columns", columns)
        assert says in refused(capsys, "eval", data, "--columns", columns)
    assert len(list_runs(here / "runs")) == 1
