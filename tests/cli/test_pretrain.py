"""`mmcli pretrain` as a person uses it, on a model small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmcli.cli import run
from mmcli.generate.conversation import is_chat_model
from mmcli.run import ModelRef, Run
from mmcli.text.tokenizer import Tokenizer

SMALL = ["--set", "model.dim=32", "--set", "model.n_layers=1", "--set", "model.n_heads=4", "--seq-len", "64"]
SHORT = [*SMALL, "--batch-size", "4", "--steps", "3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a tokenizer and one finished pretraining."""
    root = tmp_path_factory.mktemp("pretrain")
    write_text(root / "text.txt")
    folder = root / "runs"
    common = ["--runs-dir", str(folder)]
    assert run(["tokenizer", "train", "--data", str(root / "text.txt"), "--vocab-size", "400", *common]) == 0
    assert run(["pretrain", "--data", str(root / "text.txt"), *SHORT, *common]) == 0
    return folder


def write_text(path: Path) -> None:
    path.write_text(
        "\n".join(f"The cat {i} sat on mat {i * 7 % 31}. 猫坐在垫子上。" for i in range(300)), encoding="utf-8"
    )


def error_of(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-2].startswith("error: ") and lines[-1].startswith("  fix: "), lines
    return lines[-2], lines[-1]


def info(runs: Path, name: str) -> dict[str, Any]:
    return Run(runs / name).info()


def test_a_run_holds_what_it_should(runs: Path) -> None:
    made = Run(runs / "0002-pretrain-tiny")
    assert made.info()["state"] == "finished"
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
            "README.md"} <= {path.name for path in made.model.iterdir()}  # fmt: skip
    config = made.read_config()
    assert config["model"]["dim"] == 32 and config["train"]["steps"] == 3 and config["train"]["budget"] == "none"
    assert {"steps", "compile", "micro_batch", "threads"} <= set(made.read_config("resolved.toml"))
    lines = [json.loads(line) for line in made.metrics.read_text().splitlines()]
    wanted = {"step", "tokens", "loss", "lr", "tokens_per_second", "mfu"}
    assert all(wanted <= set(line) for line in lines[:3])
    assert {"val_loss", "val_bits_per_byte"} <= set(lines[0])
    files = [path for path in made.path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".toml", ".safetensors", ".md", ".jinja", ".html"}


def test_a_broken_line_is_named_counted_and_set_aside(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": f"Line {i} about a dog and a bone."}) for i in range(60)]
    lines[41] = '{"text": "broken'
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(lines))
    assert run(["pretrain", "--data", str(data), *SHORT, "--name", "broken", "--runs-dir", str(runs), "--json"]) == 0
    captured = capsys.readouterr()
    assert "1 of 60 records rejected" in captured.err
    assert f"{data}:42" in captured.err
    result = json.loads(captured.out)
    assert (result["data"]["kept"], result["data"]["rejected"]) == (59, 1)
    (quarantined,) = (Path(result["path"]) / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(quarantined)["line"] == 42
    assert run(["pretrain", "--data", str(data), *SHORT, "--strict", "--runs-dir", str(runs)]) == 2
    assert f"{data}:42" in error_of(capsys)[0]


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "text.txt")
    other = tmp_path / "other"
    assert (
        run(["tokenizer", "train", "--data", str(tmp_path / "text.txt"), "--vocab-size", "350", "--out", str(other)])
        == 0
    )
    argv = ["pretrain", "--data", str(tmp_path / "text.txt"), "--from", "2", "--tokenizer", str(other), "--steps", "2"]
    assert run([*argv, "--runs-dir", str(runs)]) == 2
    assert "is not the tokenizer that 0002-pretrain-tiny was trained with" in error_of(capsys)[0]


def test_a_preset_that_disagrees_with_from_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "text.txt")
    argv = ["pretrain", "--data", str(tmp_path / "text.txt"), "--from", "2", "--preset", "small", "--steps", "2"]
    assert run([*argv, "--runs-dir", str(runs)]) == 2
    what, _ = error_of(capsys)
    assert "model.dim = 512 (from preset small), but 0002-pretrain-tiny has 32" in what


def test_continued_pretraining_keeps_the_shape(runs: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt")
    argv = ["pretrain", "--data", str(tmp_path / "text.txt"), "--from", "2", "--steps", "2", "--seq-len", "64"]
    assert run([*argv, "--batch-size", "2", "--name", "more", "--runs-dir", str(runs)]) == 0
    (made,) = runs.glob("*-pretrain-more")
    assert info(runs, made.name)["parent"] == "0002-pretrain-tiny"
    assert json.loads((made / "model" / "config.json").read_text())["hidden_size"] == 32


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "text.txt")
    argv = ["pretrain", "--data", str(tmp_path / "text.txt"), *SHORT, "--set", "model.vocab_size=300"]
    assert run([*argv, "--runs-dir", str(runs)]) == 2
    assert "model.vocab_size = 300 (from --set) < the tokenizer's 400" in error_of(capsys)[0]


def test_a_row_longer_than_the_context_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "text.txt")
    argv = ["pretrain", "--data", str(tmp_path / "text.txt"), *SHORT, "--set", "model.max_seq_len=32"]
    assert run([*argv, "--runs-dir", str(runs)]) == 2
    assert "longer than the model's max_seq_len = 32" in error_of(capsys)[0]


def test_a_mistake_leaves_no_run_behind(runs: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in runs.iterdir())
    assert run(["pretrain", "--data", str(tmp_path / "none.txt"), "--runs-dir", str(runs)]) == 2
    assert run(["sft", "--data", str(tmp_path / "none.jsonl"), "--runs-dir", str(runs)]) == 2
    assert sorted(path.name for path in runs.iterdir()) == before


def test_a_finished_run_is_not_resumed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["resume", "2", "--runs-dir", str(runs)]) == 2
    what, fix = error_of(capsys)
    assert "0002-pretrain-tiny is finished" in what
    assert "--from 2" in fix


def test_the_list_of_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", "list", "--runs-dir", str(runs), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in rows][:2] == ["0001-tokenizer-400", "0002-pretrain-tiny"]
    assert rows[1]["state"] == "finished" and rows[1]["steps"] == 3 and rows[1]["val_loss"] > 0
    assert run(["runs", "show", "2", "--runs-dir", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert "finished" in shown and "chosen for you" in shown


def test_data_of_another_kind_is_refused_with_the_right_stage(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    (tmp_path / "chat.jsonl").write_text("\n".join([json.dumps(chat)] * 20))
    (tmp_path / "text.jsonl").write_text("\n".join([json.dumps({"text": "a text"})] * 20))
    assert run(["pretrain", "--data", str(tmp_path / "chat.jsonl"), "--runs-dir", str(runs)]) == 2
    assert "mmcli sft" in " ".join(error_of(capsys))
    for stage in ("sft", "dpo"):
        assert run([stage, "--data", str(tmp_path / "text.jsonl"), "--from", "2", "--runs-dir", str(runs)]) == 2
        assert "text.jsonl" in error_of(capsys)[0]


@pytest.mark.parametrize("learns", [True, False])
def test_a_router_that_cannot_learn_is_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], learns: bool
) -> None:
    def begins(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    write_text(tmp_path / "text.txt")
    values = {"use_moe": "true", "num_experts_per_tok": "1", "norm_topk_prob": str(not learns).lower()}
    moe = [part for name, value in values.items() for part in ("--set", f"model.{name}={value}")]
    monkeypatch.setattr("mmcli.stages.pretrain.train", begins)
    runs = str(tmp_path / "runs")
    assert run(["pretrain", "--data", str(tmp_path / "text.txt"), *SHORT, *moe, "--runs-dir", runs]) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert ("warning: the router learns nothing from the loss" in said) is not learns
    assert ("--set model.norm_topk_prob=false" in said) is not learns


def test_ctrl_c_before_the_first_step_says_how_to_go_on(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    write_text(tmp_path / "text.txt")
    argv = ["pretrain", "--data", str(tmp_path / "text.txt"), *SHORT, "--runs-dir", str(tmp_path / "runs")]
    with monkeypatch.context() as patched:
        patched.setattr("mmcli.stages.tokens.TokenCache.build_or_open", interrupted)
        assert run(argv) == 130
    what, fix = error_of(capsys)
    assert "stopped by SIGINT" in what and "mmcli resume 1" in fix
    (made,) = [path.name for path in (tmp_path / "runs").iterdir() if path.name.startswith("0001")]
    assert info(tmp_path / "runs", made)["state"] == "stopped"
    assert run(["resume", "1", "--runs-dir", str(tmp_path / "runs")]) == 0
    assert info(tmp_path / "runs", made)["state"] == "finished"


def test_a_new_model_begins_with_the_bigrams_of_its_data(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, common = str(runs.parent / "text.txt"), ["--runs-dir", str(runs), "--json"]
    losses = {}
    for init in ("bigram", "random"):
        assert run(["pretrain", "--data", text, *SHORT, "--init", init, "--name", init, *common]) == 0
        captured = capsys.readouterr()
        assert ("begins with the bigrams of its data" in captured.err) == (init == "bigram")
        made = Run(Path(json.loads(captured.out)["path"]))
        assert made.read_config("resolved.toml")["init"] == init
        losses[init] = json.loads(made.metrics.read_text().splitlines()[0])["val_loss"]
    assert losses["bigram"] < losses["random"] - 1.0
    assert info(runs, "0002-pretrain-tiny")["state"] == "finished"
    assert Run(runs / "0002-pretrain-tiny").read_config("resolved.toml")["init"] == "random"  # 3 steps are too few


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--from", "2"], "it starts from another model"),
        (["--set", "model.position=learned"], "rotary positions are needed"),
    ],
)
def test_bigrams_for_a_model_that_cannot_begin_with_them_are_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], options: list[str], why: str
) -> None:
    text = str(runs.parent / "text.txt")
    shape = SHORT if options[0] == "--set" else ["--seq-len", "32", "--batch-size", "4", "--steps", "3"]
    assert run(["pretrain", "--data", text, *shape, "--init", "bigram", *options, "--runs-dir", str(runs)]) == 2
    assert why in error_of(capsys)[0]


def test_text_mixed_with_conversations_makes_a_model_that_chats(tmp_path: Path) -> None:
    runs = ["--runs-dir", str(tmp_path / "runs")]
    write_text(tmp_path / "text.txt")
    chats = [
        {"messages": [{"role": "user", "content": f"Where is {i}?"}, {"role": "assistant", "content": f"At {i * 7}."}]}
        for i in range(200)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(each) + "\n" for each in chats))
    text, chat = str(tmp_path / "text.txt"), str(tmp_path / "chat.jsonl")
    assert run(["tokenizer", "train", "--data", text, "--data", chat, "--vocab-size", "420", *runs]) == 0
    assert run(["pretrain", "--data", f"{text}:0.4", "--data", f"{chat}:0.6", *SHORT, *runs]) == 0
    assert run(["sft", "--data", f"{text}:0.2", "--data", f"{chat}:0.8", *SHORT[-4:], "--seq-len", "64", *runs]) == 0
    mixed, tuned = Run(tmp_path / "runs/0002-pretrain-tiny"), Run(tmp_path / "runs/0003-sft-tiny")
    assert ModelRef(mixed.path / "model", mixed).stage == "pretrain-chat"
    assert ModelRef(tuned.path / "model", tuned).stage == "sft"
    data = mixed.info()["data"]
    assert data["kind"] == "mixed" and data["cache"] == tuned.info()["data"]["cache"]  # encoded once
    assert is_chat_model(mixed.path / "model", Tokenizer.load(mixed.path / "model"), stage="pretrain-chat")
    assert not is_chat_model(mixed.path / "model", Tokenizer.load(mixed.path / "model"), stage="pretrain")
