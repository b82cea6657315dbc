"""`mmcli eval`: questions, preferences and the loss of a text, of one model and of several."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from mmcli.cli import chat as chat_command
from mmcli.cli import eval as eval_command
from mmcli.cli import runs as runs_command
from mmcli.data import demo
from mmcli.errors import MmcliError, UserError
from mmcli.evaluation import demo_suite
from mmcli.evaluation import questions as evaluate
from mmcli.files import atomic_folder
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import load_model, save_model
from mmcli.model.transformer import Transformer
from mmcli.report import evaluations
from mmcli.report.evaluations import read_evaluations
from mmcli.report.page import write_report
from mmcli.run import EVALUATIONS, Run
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer
from mmcli.verify import verify_run

LINES = [
    "Hello, how are you today?",
    "The rain falls on the hills.",
    "你好，世界。今天天气很好。",
    "A cloud is water 🙂",
]
QUICK = ("--limit", "2", "--max-new-tokens", "6")


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a pretrained and a chat-trained run, with random weights."""
    root = tmp_path_factory.mktemp("eval") / "runs"
    tokenizer = train_tokenizer(LINES * 3, vocab_size=400)
    tokenizer.save(Run.create(root, "tokenizer", "tiny").model)
    model = Transformer(ModelConfig(dim=32, n_layers=2, n_heads=4, vocab_size=400, max_seq_len=900, init_std=0.2))
    for stage in ("pretrain", "sft"):
        run = Run.create(root, stage, "tiny")
        save_model(run.model, model, model.config, tokenizer)
        run.write_config({"data": {"seq_len": 64}})
        run.update(state="finished")
    return root


def invoke(runs_dir: Path, *args: str) -> Result:
    return CliRunner().invoke(eval_command.app, [*args, "--runs-dir", str(runs_dir), "--device", "cpu"])


def document(runs_dir: Path, *args: str) -> dict[str, Any]:
    result = invoke(runs_dir, *args, "--json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def refused(result: Result) -> UserError:
    assert isinstance(result.exception, UserError), (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    return result.exception


# Questions


def test_the_score_is_by_family_and_language(runs_dir: Path) -> None:
    found = document(runs_dir, *QUICK)
    assert (found["model"], found["backend"], found["suite"]) == ("0003-sft-tiny", "torch", "demo")
    families = list(dict.fromkeys(question.family for question in demo.questions()))
    assert list(found["families"]) == families
    parts = [score for languages in found["families"].values() for score in languages.values()]
    assert {tuple(languages) for languages in found["families"].values()} == {("en", "zh")}
    assert found["questions"] == sum(part["total"] for part in parts) == 2 * len(families)
    assert 0 <= found["score"] <= 1 and found["score"] == found["correct"] / found["questions"]
    assert found["mode"] == "chat" and found["unfinished"] > 0
    assert found == document(runs_dir, *QUICK)


def test_replies_are_those_of_chat(runs_dir: Path) -> None:
    found = document(runs_dir, *QUICK, "--show", "6")
    alone = [each for each in found["examples"] if len(each["messages"]) == 1]
    assert len(found["examples"]) == 6 and len(alone) >= 2
    for example in alone[:3]:
        greedy = ["--temperature", "0", "--repetition-penalty", "1", "--max-new-tokens", "6"]
        where = ["--runs-dir", str(runs_dir), "--device", "cpu", "--json"]
        prompt = example["messages"][0]["content"]
        result = CliRunner().invoke(chat_command.app, ["--prompt", prompt, *greedy, *where])
        reply = json.loads(result.stdout)
        assert reply["reply"].strip() == example["reply"]
        assert (reply["finish_reason"] == "stop") == example["ended"]


def test_right_replies_count(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(question: demo.Question, reply: str) -> bool:
        return question.language == "zh" and question.family != "facts"

    monkeypatch.setattr(demo_suite, "is_correct", judged)
    monkeypatch.setattr(evaluate, "stop_ids", lambda tokenizer: frozenset(range(400)))  # every reply ends at once
    found = document(runs_dir, *QUICK, "--show", "1")
    things = found["families"]["things"]
    assert {name: (each["correct"], each["total"], each["score"]) for name, each in things.items()} == {
        "en": (0, 1, 0.0),
        "zh": (1, 1, 1.0),
    }
    assert found["family_scores"]["things"]["interval"] == pytest.approx([0.0945, 0.9055], abs=1e-4)
    assert found["language_scores"]["zh"]["correct"] == found["correct"]
    assert found["families"]["facts"]["zh"]["correct"] == 0
    assert (found["correct"], found["unfinished"]) == (len(found["families"]) - 1, 0)
    assert [each["correct"] for each in found["examples"]] == [False, True]
    table = invoke(runs_dir, *QUICK, "--show", "1").stdout
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.strip()}
    assert rows["things"] == ["0/1", "0.0%", "1/1", "100.0%", "1/2", "50.0%", "9-91"]
    assert rows["together"] == ["0/16", "0.0%", "15/16", "93.8%", "15/32", "46.9%", "31-64"]
    assert {"wrong", "right", "expected"} <= set(rows)


def test_a_pretrained_model_continues_and_it_is_said(runs_dir: Path) -> None:
    result = invoke(runs_dir, "latest:pretrain", *QUICK, "--json")
    assert json.loads(result.stdout)["mode"] == "continue"
    assert "base model" in result.stderr and "Question:" in result.stderr


def test_the_table_fits_into_80_columns(runs_dir: Path) -> None:
    result = invoke(runs_dir, *QUICK, "--show", "4")
    assert max(cell_len(line) for line in result.stdout.splitlines()) <= 80
    assert "English" in result.stdout and "Chinese" in result.stdout
    assert "did not end within 6 tokens" in result.stderr
    assert "\x1b" not in result.stdout


def test_questions_past_the_context_are_wrong_and_told(runs_dir: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(runs_dir / "0003-sft-tiny" / "model")
    model = Transformer(ModelConfig(dim=32, n_layers=1, n_heads=4, vocab_size=400, max_seq_len=60))
    save_model(tmp_path / "short", model, model.config, tokenizer)
    result = invoke(runs_dir, str(tmp_path / "short"), *QUICK, "--json")
    assert "do not fit into the context of 60 tokens" in result.stderr
    found = json.loads(result.stdout)
    assert found["questions"] == 2 * len(found["families"]) and found["unfinished"] < found["questions"]


def test_onnx_answers_the_same_without_torch(runs_dir: Path) -> None:
    expected = document(runs_dir, *QUICK, "--show", "40")
    made = document(runs_dir, *QUICK, "--show", "40", "--backend", "onnx")  # makes the export
    assert made == {**expected, "backend": "onnx"} and len(made["examples"]) == 32
    [folder] = (runs_dir / "0003-sft-tiny" / "export").iterdir()
    args = [str(folder), *QUICK, "--backend", "onnx", "--runs-dir", str(runs_dir), "--json"]
    code = f"import sys\nsys.modules['torch'] = None\nfrom mmcli.cli import eval\neval.app({args!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["families"] == expected["families"]


# The loss of a text


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    path = tmp_path / "held-out.jsonl"
    lines = [json.dumps({"text": text}) for text in [*LINES, "The rain " * 60]]
    path.write_text("\n".join([*lines, "{broken"]), encoding="utf-8")
    return str(path)


def test_the_loss_of_a_text(runs_dir: Path, text_file: str) -> None:
    found = document(runs_dir, "2", "--data", text_file)
    tokenizer = Tokenizer.load(runs_dir / "0002-pretrain-tiny" / "model")
    documents = [tokenizer.encode_document(text) for text in [*LINES, "The rain " * 60]]
    assert found["tokens"] == sum(len(ids) - 1 for ids in documents)
    assert found["bytes"] == sum(len(text.encode()) for text in [*LINES, "The rain " * 60])
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    # A random model with loss about log(400) spends about loss / log(2) bits on each token.
    bits = found["loss"] * found["tokens"] / math.log(2)
    assert 0.8 * bits < found["bits_per_byte"] * found["bytes"] < bits
    assert (found["kind"], found["seq_len"], found["kept"], found["rejected"]) == ("text", 64, 5, 1)
    assert found == document(runs_dir, "2", "--data", text_file)


def test_the_window_matters_only_to_longer_texts(runs_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    backwards = [line[::-1] for line in LINES]  # unlearned, so tokens are single letters
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in backwards), encoding="utf-8")
    losses = [document(runs_dir, "2", "--data", str(path), "--seq-len", n)["loss"] for n in ("64", "150", "300")]
    assert losses[0] == losses[1] == losses[2]
    narrow = document(runs_dir, "2", "--data", str(path), "--seq-len", "8")
    assert narrow["seq_len"] == 8 and narrow["loss"] != pytest.approx(losses[0], rel=1e-4)


def test_of_conversations_the_assistant_alone_counts(runs_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"instruction": "Hello there", "output": "The rain"}), encoding="utf-8")
    found = document(runs_dir, "--data", str(path))
    tokenizer = Tokenizer.load(runs_dir / "0003-sft-tiny" / "model")
    assert (found["kind"], found["tokens"]) == ("chat", len(tokenizer.encode_text("The rain")) + 1)
    assert found["bytes"] == len("The rain")


def test_columns_name_the_text(runs_dir: Path, tmp_path: Path) -> None:
    for name, field in (("plain", "text"), ("other", "body")):
        lines = [json.dumps({field: text, "title": "left out"}) + "\n" for text in LINES]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    expected = document(runs_dir, "2", "--data", f"{tmp_path}/plain.jsonl")
    renamed = document(runs_dir, "2", "--data", f"{tmp_path}/other.jsonl", "--columns", "text=body")
    assert {**renamed, "data": expected["data"]} == expected
    wrong = refused(invoke(runs_dir, "2", "--data", f"{tmp_path}/other.jsonl", "--columns", "text=boddy"))
    assert wrong.what == "the data has no field boddy" and "body, title" in wrong.fix


def test_the_figures_in_words(runs_dir: Path, text_file: str) -> None:
    result = invoke(runs_dir, "2", "--data", text_file)
    found = document(runs_dir, "2", "--data", text_file)
    words = " ".join(result.stdout.split())
    assert words == (
        f"loss {found['loss']:.4f} nats a token perplexity {found['perplexity']:,.4f} "
        f"bits per byte {found['bits_per_byte']:.4f} tokens {found['tokens']} bytes {found['bytes']}"
    )
    assert "1 of 6 records rejected" in result.stderr and "held-out.jsonl:6" in result.stderr
    assert "windows of 64 tokens" in result.stderr


def test_the_loss_is_the_model_s(runs_dir: Path, tmp_path: Path) -> None:
    """Against the plain formula, on one text alone."""
    import torch
    import torch.nn.functional as F

    from mmcli.model.attention import AttnContext

    path = tmp_path / "one.txt"
    path.write_text(LINES[0], encoding="utf-8")
    folder = runs_dir / "0002-pretrain-tiny" / "model"
    ids = torch.tensor([Tokenizer.load(folder).encode_document(LINES[0])])
    model = load_model(folder)
    positions, segments = torch.arange(ids.shape[1] - 1)[None].numpy(), torch.zeros_like(ids[:, 1:]).numpy()
    with torch.no_grad():
        hidden, _ = model(ids[:, :-1], AttnContext.from_batch(positions, segments, torch.device("cpu")))
        loss = F.cross_entropy(model.head(hidden)[0], ids[0, 1:])
    assert document(runs_dir, "2", "--data", str(path))["loss"] == pytest.approx(float(loss), rel=1e-5)


# What is refused


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--limit", "0"], "--limit 0"),
        (["--show", "0"], "--show 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--seq-len", "64"], "--seq-len"),
        (["--columns", "text=body"], "--columns"),
        (["--data", "demo", "--limit", "3"], "--limit"),
        (["--suite", "preferences", "--limit", "3"], "--limit"),
        (["--suite", "preferences", "--shuffle-answers"], "--shuffle-answers"),
        (["--suite", "preferences", "--backend", "onnx"], "--backend onnx"),
        (["--suite", "preferences", "--data", "demo", "--seq-len", "9"], "--seq-len"),
        (["--suite", "dmeo"], 'no suite "dmeo"'),
        (["--show", "some"], "--show some"),
        (["--show", "wrong:0"], "--show wrong:0"),
        (["2", "9"], 'no run "9"'),
        (["--data", "demo", "--backend", "onnx"], "--backend onnx"),
        (["--data", "demo", "--seq-len", "901"], "max_seq_len = 900"),
        (["--data", "demo", "--seq-len", "1"], "--seq-len 1"),
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
        (["1"], "0001-tokenizer-tiny is a tokenizer"),
        (["9"], 'no run "9"'),
    ],
)
def test_what_makes_no_sense_is_refused(runs_dir: Path, args: list[str], what: str) -> None:
    assert what in refused(invoke(runs_dir, *args)).what


# Several models and measures


@pytest.fixture
def pairs_file(tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    pairs = [
        {"prompt": "Hello", "chosen": LINES[1], "rejected": "a"},
        {"prompt": "Who?", "chosen": "b", "rejected": "c"},
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return str(path)


def test_models_are_compared_in_one_document(runs_dir: Path, pairs_file: str) -> None:
    args = ("--suite", "demo", "--suite", "preferences", "--data", pairs_file)
    found = document(runs_dir, "latest:pretrain", "latest:sft", *QUICK, *args)
    assert [each["model"] for each in found["models"]] == ["0002-pretrain-tiny", "0003-sft-tiny"]
    for each, mode in zip(found["models"], ("continue", "chat"), strict=True):
        asked, preferred = each["results"]
        assert asked == {**document(runs_dir, each["model"], *QUICK), "model": each["model"]} and asked["mode"] == mode
        assert preferred["pairs"] == 2 and preferred["by_token"]["total"] == 2
        assert all(len(score["interval"]) == 2 for score in asked["family_scores"].values())


def test_models_are_compared_in_a_table(runs_dir: Path, text_file: str, tmp_path: Path) -> None:
    wide = tmp_path / "一个名字很长的模型文件夹"
    shutil.copytree(runs_dir / "0003-sft-tiny" / "model", wide)
    models = ("latest:pretrain", "latest:sft", str(wide))
    result = invoke(runs_dir, *models, *QUICK, "--suite", "demo", "--data", text_file)
    assert result.exit_code == 0, (result.stderr, result.exception)
    lines = result.stdout.splitlines()
    assert max(map(cell_len, lines)) <= 80 and "\x1b" not in result.stdout
    rows = {line.split("  ")[0] or line.split("  ")[1].strip(): line for line in lines if line.strip()}
    assert {"demo", "asked", "facts", "tools", "English", "Chinese", "bits per byte", "loss"} <= set(rows)
    assert rows["asked"].split()[1:] == ["as", "text", "as", "chat", "as", "chat"]
    assert rows["demo"].count("(0-11)") == 3
    loss = document(runs_dir, "2", "--data", text_file)
    assert f"{loss['bits_per_byte']:.4f}" in rows["bits per byte"]
    assert re.search(r"0003-sft-tiny: \d\d replies did not end", result.stderr)


def test_many_models_take_several_tables(runs_dir: Path, pairs_file: str, tmp_path: Path) -> None:
    for number in range(6):
        shutil.copytree(runs_dir / "0003-sft-tiny" / "model", tmp_path / f"m{number}")
    models = [str(tmp_path / f"m{number}") for number in range(6)]
    shown = invoke(runs_dir, *models, "--data", pairs_file).stdout
    assert max(map(cell_len, shown.splitlines())) <= 80
    assert shown.count("preferences") == 2 and all(f"m{number}\n" in shown.replace(" ", "\n") for number in range(6))


def test_pairs_are_measured_by_preference(runs_dir: Path, pairs_file: str) -> None:
    found = document(runs_dir, "--data", pairs_file)
    assert found == document(runs_dir, "--suite", "preferences", "--data", pairs_file)
    assert (found["suite"], found["pairs"], found["by_sum"]["total"]) == ("preferences", 2, 2)
    shown = " ".join(invoke(runs_dir, "--data", pairs_file).stdout.split())
    assert f"preferred {found['score']:.1%} (" in shown and "pairs 2" in shown
    assert "pairs are read whole" in refused(invoke(runs_dir, "--data", pairs_file, "--seq-len", "8")).fix


def test_texts_and_pairs_go_into_one_table(runs_dir: Path, text_file: str, pairs_file: str) -> None:
    shown = invoke(runs_dir, "2", "3", "--data", text_file, "--data", pairs_file).stdout
    assert [line.split("  ")[0] for line in shown.splitlines() if line[:1].isalpha()] == [
        "preferences",
        "bits per byte",
    ]
    found = document(runs_dir, "2", "--data", text_file, "--suite", "preferences", "--data", pairs_file)
    [each] = found["models"]
    assert [result.get("suite") for result in each["results"]] == ["preferences", None]
    assert [result["data"] for result in each["results"]] == [[pairs_file], [text_file]]


@pytest.mark.parametrize(("show", "verdicts"), [("wrong", [False] * 31), ("right:2", [True]), ("all:1", [False, True])])
def test_wrong_and_right_replies_can_be_shown(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, show: str, verdicts: list[bool]
) -> None:
    first = demo.questions()[0].id
    monkeypatch.setattr(demo_suite, "is_correct", lambda question, reply: question.id == first)
    monkeypatch.setattr(evaluate, "stop_ids", lambda tokenizer: frozenset(range(400)))  # every reply ends at once
    found = document(runs_dir, *QUICK, "--show", show)
    assert [each["correct"] for each in found["examples"]] == verdicts
    shown = invoke(runs_dir, *QUICK, "--show", show).stdout
    words = [line.split()[0] for line in shown.splitlines() if line.strip()]
    assert (words.count("wrong"), words.count("right")) == (verdicts.count(False), verdicts.count(True))
    assert words.count("expected") == len(verdicts)


def test_shuffled_answers_are_a_control(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reply is judged by another question, every question judges once, and the score is not kept."""
    said: list[tuple[str, str]] = []

    def judged(question: demo.Question, reply: str) -> bool:
        said.append((question.id, reply))
        return False

    monkeypatch.setattr(demo_suite, "is_correct", judged)
    monkeypatch.setattr(evaluate, "stop_ids", lambda tokenizer: frozenset(range(400)))
    own, others = (document(runs_dir, "--limit", "4", *args) for args in ((), ("--shuffle-answers",)))
    count = own["questions"]
    assert "shuffled" not in own and others["shuffled"] is True
    plain, shuffled = said[:count], said[count:]
    assert {name for name, _ in plain} == {name for name, _ in shuffled} and plain != shuffled
    kept = read_evaluations(Run(runs_dir / "0003-sft-tiny"))
    assert not any(each.get("shuffled") for each in kept)


# Kept in the run


def test_results_are_kept_in_the_run(runs_dir: Path, pairs_file: str, text_file: str) -> None:
    run = Run(runs_dir / "0002-pretrain-tiny")
    (run.path / EVALUATIONS).unlink(missing_ok=True)
    write_report(run)
    for args in (QUICK, QUICK, ("--data", pairs_file), ("--data", text_file), ("--limit", "1", *QUICK[2:])):
        assert invoke(runs_dir, "2", *args).exit_code == 0
    kept = read_evaluations(run)
    assert [(each.get("suite"), each.get("limit")) for each in kept] == [
        (None, None),
        ("demo", 1),
        ("demo", 2),
        ("preferences", None),
    ]
    assert all(each["date"] for each in kept)
    assert kept[2]["version"] == demo.CORPUS_VERSION and len(kept[2]["family_scores"]) == 16
    shown = CliRunner().invoke(runs_command.app, ["show", "2", "--runs-dir", str(runs_dir)]).stdout
    assert f"demo v{demo.CORPUS_VERSION}  0.0% (0-11)" in shown and "facts 0%" in shown and "asked as text" in shown
    assert "preferences" in shown and "bits per byte" in shown
    listed = CliRunner().invoke(runs_command.app, ["show", "2", "--json", "--runs-dir", str(runs_dir)]).stdout
    assert json.loads(listed)["evaluations"] == kept
    html = (run.path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Evaluations</h2>" in html and f"demo v{demo.CORPUS_VERSION}" in html and "0.0% (0-11)" in html
    (run.path / EVALUATIONS).write_text('{"results": [', encoding="utf-8")
    assert any(EVALUATIONS in fault.what and "mmcli eval 2" in fault.fix for fault in verify_run(run).faults)
    assert read_evaluations(run) == []
    assert invoke(runs_dir, "2", *QUICK).exit_code == 0 and len(read_evaluations(run)) == 1


def test_a_run_that_cannot_be_written_still_gives_its_score(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: Any) -> None:
        raise MmcliError(f"cannot write {path}: No space left on device", "free space")

    monkeypatch.setattr(evaluations, "write_json", full)
    result = invoke(runs_dir, *QUICK, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["questions"] == 32
    assert "the result is not kept: cannot write" in result.stderr


def test_a_result_of_earlier_weights_says_so(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "sft", "tiny")
    with atomic_folder(run.model) as folder:
        (folder / "model.safetensors").write_bytes(b"1")
    evaluations.keep_evaluation(run, {"suite": "demo", "score": 0.5, "interval": [0.4, 0.6]})
    [result] = read_evaluations(run)
    assert evaluations.describe_evaluation(run, result)["score"] == "50.0% (40-60)"
    assert "weights" not in evaluations.describe_evaluation(run, result)["notes"]
    with atomic_folder(run.model) as folder:
        (folder / "model.safetensors").write_bytes(b"2")
    assert "of earlier weights" in evaluations.describe_evaluation(run, result)["notes"]


@pytest.mark.parametrize(
    "stored", ["[]", '{"results": 3}', '{"results": [3, {"suite": {}, "score": "x", "data": 1}]}', "\xff"]
)
def test_a_strange_file_of_results_breaks_no_display(tmp_path: Path, stored: str) -> None:
    run = Run.create(tmp_path, "sft", "tiny")
    (run.path / EVALUATIONS).write_bytes(stored.encode("latin-1"))
    shown = CliRunner().invoke(runs_command.app, ["show", "1", "--runs-dir", str(tmp_path)])
    assert shown.exit_code == 0, shown.exception
    write_report(run)
