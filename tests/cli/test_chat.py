"""`mmcli chat`: one prompt, a pipe, and the keyboard."""

from __future__ import annotations

import inspect
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from mmcli.cli import chat, chat_terminal, chat_tools, chat_view
from mmcli.cli.chat_terminal import Terminal
from mmcli.errors import UserError
from mmcli.generate.conversation import Conversation, ReplyStats
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.tool_calls import with_calls
from mmcli.generate.tools import load_tools
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import load_model, save_model
from mmcli.model.transformer import Transformer
from mmcli.run import Run
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

LINES = [
    "Hello, how are you today?",
    "The rain falls on the hills.",
    "你好，世界。今天天气很好。",
    "A cloud is water 🙂",
]
NEVER_ENDS = 100_000  # tokens; at temperature 0 the random model repeats itself that long


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a pretrained and a chat-trained run, with random weights."""
    root = tmp_path_factory.mktemp("chat") / "runs"
    tokenizer = train_tokenizer(LINES * 3, vocab_size=400)
    tokenizer.save(Run.create(root, "tokenizer", "tiny").model)
    torch.manual_seed(1)
    shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 400, "max_seq_len": NEVER_ENDS}
    model = Transformer(ModelConfig(**shape, init_std=0.1))
    for stage in ("pretrain", "sft"):
        run = Run.create(root, stage, "tiny")
        save_model(run.model, model, model.config, tokenizer)
        run.update(state="finished")
    return root


def invoke(runs_dir: Path, *args: str, stdin: str | bytes = "") -> Result:
    options = ["--runs-dir", str(runs_dir), "--device", "cpu", "--max-new-tokens", "12"]
    return CliRunner().invoke(chat.app, [*args, *options], input=stdin)


def replied(result: Result) -> str:
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def refused(result: Result) -> UserError:
    assert isinstance(result.exception, UserError), (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    return result.exception


# One prompt


def test_a_prompt_prints_the_reply_alone_on_stdout(runs_dir: Path) -> None:
    seeded = ["--prompt", "Hello", "--seed", "3"]
    document = json.loads(replied(invoke(runs_dir, *seeded, "--json")))
    result = invoke(runs_dir, *seeded)
    assert replied(result).removesuffix("\n") == document["reply"].removesuffix("\n")
    assert "0003-sft-tiny (finished): " in result.stderr
    parameters = sum(each.numel() for each in load_model(runs_dir / "0003-sft-tiny" / "model").parameters())
    assert f"{parameters:,} parameters, vocabulary 400" in result.stderr
    assert "tokens" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("way", ["pipe", "file"])
def test_text_on_stdin_goes_before_the_prompt(runs_dir: Path, tmp_path: Path, way: str) -> None:
    (tmp_path / "text").write_text("The rain falls.\n")
    command = [sys.executable, "-m", "mmcli", "chat", "--json", "--temperature", "0", "--max-new-tokens", "5"]
    command += ["--device", "cpu", "--runs-dir", str(runs_dir), "--prompt", "What falls?"]

    def reply(command: list[str], stdin: Any) -> dict[str, Any]:
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=True)
        return {key: json.loads(done.stdout)[key] for key in ("reply", "prompt_tokens")}

    with (tmp_path / "text").open() as text:
        if way == "pipe":
            with subprocess.Popen(["cat"], stdin=text, stdout=subprocess.PIPE) as cat:
                joined = reply(command, cat.stdout)
        else:
            joined = reply(command, text)
    assert joined == reply([*command[:-1], "The rain falls.\nWhat falls?"], subprocess.DEVNULL)
    assert joined["prompt_tokens"] > reply(command, subprocess.DEVNULL)["prompt_tokens"]


def test_json_is_one_document(runs_dir: Path) -> None:
    document = json.loads(replied(invoke(runs_dir, "--prompt", "你好", "--seed", "5", "--json")))
    assert {"reply", "tokens", "tokens_per_second", "backend", "model", "finish_reason", "mode", "seed"} <= set(
        document
    )
    assert (document["mode"], document["model"], document["backend"]) == ("chat", "0003-sft-tiny", "torch")
    assert (document["tokens"], document["finish_reason"], document["seed"]) == (12, "length", 5)
    assert document["tokens_per_second"] > 0


def test_a_seed_repeats_a_reply_and_without_one_each_differs(runs_dir: Path) -> None:
    def reply(*args: str) -> dict[str, Any]:
        return json.loads(replied(invoke(runs_dir, "--prompt", "Hello", "--temperature", "1.5", "--json", *args)))

    first, second = reply(), reply()
    assert first["seed"] != second["seed"] and first["reply"] != second["reply"]
    assert reply("--seed", str(first["seed"]))["reply"] == first["reply"]


def test_drafts_do_not_change_a_reply(runs_dir: Path) -> None:
    def reply(*args: str) -> str:
        arguments = ["--prompt", "Hello", "--seed", "3", "--temperature", "0.3", *args, "--max-new-tokens", "60"]
        result = CliRunner().invoke(chat.app, [*arguments, "--runs-dir", str(runs_dir), "--device", "cpu"])
        return replied(result)

    assert reply() == reply("--draft", "off") == reply("--draft", "latest:pretrain")
    assert refused(invoke(runs_dir, "--prompt", "Hello", "--draft", "nobody")).what


def test_a_draft_model_has_the_same_tokenizer(runs_dir: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["Other words entirely."] * 9, vocab_size=300)
    config = ModelConfig(dim=32, n_layers=1, n_heads=4, vocab_size=400, max_seq_len=64)
    save_model(tmp_path / "other", Transformer(config), config, tokenizer)
    error = refused(invoke(runs_dir, "--prompt", "Hello", "--draft", str(tmp_path / "other")))
    assert "cannot draft: token" in error.what and "same tokenizer" in error.fix


def test_a_pipe_is_one_prompt(runs_dir: Path) -> None:
    as_option = replied(invoke(runs_dir, "--prompt", "/help\nHello", "--seed", "3"))
    assert replied(invoke(runs_dir, "--seed", "3", stdin="/help\nHello\n")) == as_option
    assert replied(invoke(runs_dir, "--seed", "3", stdin=b"\xef\xbb\xbf/help\nHello\r\n")) == as_option


def test_a_pretrained_model_continues_and_says_so(runs_dir: Path) -> None:
    result = invoke(runs_dir, "latest:pretrain", "--prompt", "The rain", "--seed", "3", "--json")
    document = json.loads(replied(result))
    assert document["mode"] == "continue"
    tokenizer = Tokenizer.load(runs_dir / "0002-pretrain-tiny" / "model")
    assert document["prompt_tokens"] == 1 + len(tokenizer.encode_text("The rain"))
    assert "is a base model: it completes your text" in result.stderr
    assert "base model" not in invoke(runs_dir, "--prompt", "The rain").stderr


def test_each_sampling_option_reaches_the_sampler(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[SamplingConfig, int, str | None]] = []

    def reply(self: Conversation, text: str) -> Iterator[str]:
        seen.append((self.sampling, self.max_new_tokens, self.system))
        return original(self, text)

    original = Conversation.reply
    monkeypatch.setattr(Conversation, "reply", reply)
    values = {"temperature": 0.4, "top_k": 7, "top_p": 0.6, "min_p": 0.1, "repetition_penalty": 1.3, "seed": 11}
    options = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    replied(invoke(runs_dir, "--prompt", "Hi", "--system", "Be kind.", *options))
    assert seen == [(SamplingConfig(**values), 12, "Be kind.")]


def test_the_defaults_are_those_of_the_sampler() -> None:
    parameters = inspect.signature(chat.chat).parameters
    defaults = SamplingConfig()
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        assert parameters[name].default == getattr(defaults, name)


@pytest.mark.parametrize(
    ("args", "stdin", "what"),
    [
        (["9", "--prompt", "Hi"], "", 'there is no run "9"'),
        (["1", "--prompt", "Hi"], "", "0001-tokenizer-tiny is a tokenizer without a model"),
        (["--prompt", " "], "", "--prompt is empty"),
        (["--prompt", "Hi", "--temperature", "-1"], "", "temperature = -1.0"),
        (["--prompt", "Hi", "--device", "warp"], "", 'there is no device "warp"'),
        (["2", "--prompt", "Hi", "--system", "Be kind."], "", "only continues text"),
        (["2", "--prompt", "Hi", "--think"], "", "only continues text"),
        (["--prompt", "Hi", "--no-think"], "", "the chat template has no switch for thinking"),
        (["--json"], "", "--json answers one prompt"),
        (["--prompt", "Hi", "--best-of", "4"], "", "--best-of 4 needs what chooses"),
        (["--prompt", "Hi", "--best-of", "0"], "", "--best-of 0 is below 1"),
        (["--prompt", "Hi", "--reward", "none"], "", "--reward none chooses among replies"),
        (["--prompt", "Hi", "--best-of", "2", "--reward", "none"], "", 'there is no reward "none"'),
        (["--prompt", "Hi", "--best-of", "2", "--reward", "x", "--temperature", "0"], "", "--temperature 0 writes one"),
        ([], b"\xff\xfeH", "stdin is not UTF-8 (byte 0)"),
        (["--prompt", "Hi \udce4"], "", "--prompt is not valid Unicode (character 3)"),
    ],
)
def test_mistakes_are_refused(runs_dir: Path, args: list[str], stdin: str | bytes, what: str) -> None:
    # the last --device wins
    result = CliRunner().invoke(chat.app, ["--runs-dir", str(runs_dir), "--device", "cpu", *args], input=stdin)
    assert what in refused(result).what


def test_no_new_tokens_are_refused(runs_dir: Path) -> None:
    result = CliRunner().invoke(chat.app, ["--runs-dir", str(runs_dir), "--prompt", "Hi", "--max-new-tokens", "0"])
    assert "--max-new-tokens 0" in refused(result).what


def test_no_model_yet_is_said(tmp_path: Path) -> None:
    assert "there is no trained model yet" in refused(invoke(tmp_path, "--prompt", "Hi")).what


def test_another_tokenizer_is_refused(runs_dir: Path, tmp_path: Path) -> None:
    model = load_model(runs_dir / "0003-sft-tiny" / "model")
    save_model(tmp_path, model, model.config, train_tokenizer(LINES, vocab_size=500))
    error = refused(invoke(runs_dir, str(tmp_path), "--prompt", "Hi"))
    assert "its tokenizer has 500 tokens, its model 400" in error.what


def test_an_empty_pipe_is_no_mistake(runs_dir: Path) -> None:
    result = invoke(runs_dir, stdin="\n")
    assert replied(result) == ""
    assert "stdin is empty" in result.stderr


# The keyboard, in this process


class ByHand:
    """A terminal fed with lines; an exception among them is raised where the person would type."""

    def __init__(self, runs_dir: Path, *, stage: str = "sft", max_new_tokens: int = 8) -> None:
        folder = next(path for path in runs_dir.iterdir() if stage in path.name) / "model"
        self.conversation = Conversation(
            TorchEngine.load(folder, device="cpu", max_len=200),
            Tokenizer.load(folder),
            max_new_tokens=max_new_tokens,
            chat=stage == "sft",
        )

    def type(self, *lines: str | type[BaseException]) -> list[str | type[BaseException]]:
        """Type the lines, then Ctrl-D; returns those that were not reached."""
        rest = [*lines, EOFError]

        def ask(prompt: str, text: str = "") -> str:
            line = rest.pop(0)
            if isinstance(line, str):
                return line
            raise line

        Terminal(self.conversation, ask).run()
        return rest


@pytest.fixture
def by_hand(runs_dir: Path) -> ByHand:
    return ByHand(runs_dir)


def test_messages_are_answered_until_ctrl_d(by_hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    assert by_hand.type("Hello", "", "   ", " /not a command") == []
    texts = [message["content"] for message in by_hand.conversation.messages]
    assert texts[0::2] == ["Hello", "/not a command"]
    assert capsys.readouterr().out == "".join(text if text.endswith("\n") else text + "\n" for text in texts[1::2])


def test_exit_leaves_at_once(by_hand: ByHand) -> None:
    assert by_hand.type("/exit", "Hello") == ["Hello", EOFError]
    assert by_hand.conversation.messages == []


def test_ctrl_c_at_the_prompt_clears_the_line_and_never_leaves(
    by_hand: ByHand, capsys: pytest.CaptureFixture[str]
) -> None:
    assert by_hand.type(KeyboardInterrupt, "Hello", KeyboardInterrupt, KeyboardInterrupt, "More") == []
    assert len(by_hand.conversation.messages) == 4
    assert "Ctrl-D or /exit exits" in capsys.readouterr().err


def test_ctrl_c_in_a_reply_keeps_its_part_and_returns(
    by_hand: ByHand, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = by_hand.conversation.engine
    decode, calls = engine.decode, [0]

    def interrupted(slots: list[int], ids: list[int]) -> np.ndarray:
        calls[0] += 1
        if calls[0] % 4 == 0:
            raise KeyboardInterrupt
        return decode(slots, ids)

    monkeypatch.setattr(engine, "decode", interrupted)
    # Neither one in each of two replies leaves, nor one while typing after that: Ctrl-D does.
    assert by_hand.type("Hello", "More", KeyboardInterrupt, EOFError, "never") == ["never", EOFError]
    assert by_hand.conversation.stats is not None
    assert by_hand.conversation.stats.finish_reason == "interrupted"
    messages = by_hand.conversation.messages
    shown = capsys.readouterr()
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert shown.out == "".join(messages[i]["content"].removesuffix("\n") + "\n" for i in (1, 3))
    assert shown.err.count("stopped; ") == 2


def test_the_commands(by_hand: ByHand, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conversation, path = by_hand.conversation, tmp_path / "chat.jsonl"
    by_hand.type("/system Be kind.", "Hello", f"/save {path}")
    saved = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert saved == [{"role": "system", "content": "Be kind."}, *conversation.messages]
    by_hand.type("/retry")
    assert conversation.messages[0] == saved[1] and conversation.messages[1] != saved[2]
    by_hand.type("/reset", "/system")
    assert conversation.messages == [] and conversation.system is None
    capsys.readouterr()
    by_hand.type("/help")
    shown = capsys.readouterr()
    assert shown.out == "" and all(command in shown.err for command in chat_terminal.COMMANDS)


def test_the_help_fits_a_narrow_terminal() -> None:
    assert chat_terminal.help_text(80) == chat_terminal.HELP
    narrow = chat_terminal.help_text(40).splitlines()
    assert all(len(line) <= 40 for line in narrow)
    assert narrow[2:4] == ["/edit [TEXT]    change your last", "                message, answer it again"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/retyr", ['there is no command "/retyr"', 'did you mean "/retry"?']),
        ("/", ['there is no command "/"', "/help"]),
        ("/save", ["/save needs a file name"]),
        ("/save x.jsonl", ["there is nothing to save yet"]),
        ("/retry", ["there is no reply to write anew"]),
        ("/reset all", ['/reset takes no argument, but got "all"']),
    ],
)
def test_a_mistake_is_said_and_the_conversation_goes_on(
    by_hand: ByHand, capsys: pytest.CaptureFixture[str], line: str, said: list[str]
) -> None:
    assert by_hand.type(line, "Hello") == []
    shown = capsys.readouterr()
    assert all(part in shown.err for part in said)
    assert [message["content"] for message in by_hand.conversation.messages][:1] == ["Hello"]


def test_a_message_that_is_too_long_is_said(by_hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    assert by_hand.type("long " * 300, "Hello") == []
    assert "the context holds 200" in capsys.readouterr().err
    assert len(by_hand.conversation.messages) == 2


def test_a_full_context_is_said(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_hand = ByHand(runs_dir, max_new_tokens=40)
    by_hand.type(*["Hello, how are you?"] * 5)
    assert by_hand.conversation.dropped > 0
    assert "the model no longer sees the oldest 2 messages" in capsys.readouterr().err


def test_a_continuing_model_has_no_system_message(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ByHand(runs_dir, stage="pretrain").type("/system Be kind.", "The rain") == []
    assert "only continues text" in capsys.readouterr().err


def test_a_reply_cannot_steer_the_terminal(
    by_hand: ByHand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "a\x1b[2J\x07\x9bb\tc\n"
    monkeypatch.setattr(by_hand.conversation, "reply", lambda text: (piece for piece in [evil]))
    monkeypatch.setattr(chat_view, "cost", lambda conversation: "")
    by_hand.type("Hello")
    assert capsys.readouterr().out == evil  # a file or pipe gets what the model wrote
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("CI", "1")  # no Markdown
    by_hand.type("Hello")
    assert capsys.readouterr().out == "a\ufffd[2J\ufffd\ufffdb\tc\n"


def test_several_lines_between_quotes_are_one_message(by_hand: ByHand) -> None:
    assert by_hand.type('"""/help', "", '你好"""', '"""one"""') == []
    assert [message["content"] for message in by_hand.conversation.messages[::2]] == ["/help\n\n你好", "one"]


def test_edit_offers_the_last_message(by_hand: ByHand) -> None:
    offered = []

    def ask(prompt: str, text: str = "") -> str:
        offered.append(text)
        line = lines.pop(0)
        if not line:
            raise EOFError
        return line

    lines = ["Hello", "/edit", "Hello, you", "/edit Bye", ""]
    Terminal(by_hand.conversation, ask).run()
    assert offered == ["", "", "Hello", "", ""]
    assert [message["content"] for message in by_hand.conversation.messages[::2]] == ["Bye"]


def test_ctrl_d_in_an_edit_leaves_the_edit_alone(by_hand: ByHand) -> None:
    assert by_hand.type("Hello", "/edit", EOFError, "More") == []
    assert len(by_hand.conversation.messages) == 4


def test_another_model_answers_and_takes_over(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, there = ByHand(runs_dir), ByHand(runs_dir, max_new_tokens=3)
    opened = chat_terminal.OpenModel("other", "other: 1 parameter", there.conversation)
    lines = iter(["Hello", "/compare other", "/model", "/model other", "/retry", "/compare other"])
    terminal = Terminal(here.conversation, lambda *_: next(lines), open_model=lambda name: opened, label="this")
    with pytest.raises(StopIteration):
        terminal.run()
    shown = capsys.readouterr()
    assert (
        "this is this" in shown.err and "other: 1 parameter" in shown.err and "is the model of this chat" in shown.err
    )
    assert terminal.conversation is there.conversation
    assert [len(each.conversation.messages) for each in (here, there)] == [2, 2]
    assert there.conversation.stats is not None and there.conversation.stats.tokens == 3


# Tools


TOOLS = '''
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b
'''


def called(monkeypatch: pytest.MonkeyPatch, *replies: str) -> None:
    """Make every conversation reply with these texts, one after another."""
    rest = list(replies)

    def answer(self: Conversation, new: list[Any], **_: Any) -> Iterator[str]:
        text = rest.pop(0)
        self.messages += [*new, with_calls({"role": "assistant", "content": text})]
        self.stats = STATS
        yield text

    monkeypatch.setattr(Conversation, "_answer", answer)


CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
STATS = ReplyStats(1, 1.0, None, None, "stop", 1, 0)


@pytest.fixture
def tools(tmp_path: Path) -> str:
    (tmp_path / "tools.py").write_text(TOOLS)
    return str(tmp_path / "tools.py")


def test_calls_are_run_and_answered_in_several_rounds(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, tools: str
) -> None:
    unknown = '<tool_call>{"name": "sub", "arguments": {}}</tool_call>'
    called(monkeypatch, CALL, unknown + "<tool_call>{</tool_call>", "It is 3.")
    result = invoke(runs_dir, "--prompt", "1 + 2?", "--tools", tools, "--yes", "--json")
    document = json.loads(replied(result))
    assert document["reply"] == "It is 3."
    assert document["tool_calls"][0] == {"name": "add", "arguments": {"a": 1, "b": 2}, "result": "3"}
    assert document["tool_calls"][1]["result"] == 'error: there is no tool "sub"; there are: add'
    assert document["tool_calls"][2]["result"].startswith("error: the call is not JSON")
    assert 'add({"a": 1, "b": 2}) -> 3' in result.stderr


def test_rounds_are_bounded(runs_dir: Path, monkeypatch: pytest.MonkeyPatch, tools: str) -> None:
    called(monkeypatch, *[CALL] * 20)
    result = invoke(runs_dir, "--prompt", "1 + 2?", "--tools", tools, "--yes")
    assert "stopped after 8 rounds" in result.stderr and replied(result).count("<tool_call>") == 9


def test_a_call_needs_consent(runs_dir: Path, monkeypatch: pytest.MonkeyPatch, tools: str) -> None:
    called(monkeypatch, CALL)
    result = invoke(runs_dir, "--prompt", "1 + 2?", "--tools", tools)
    assert isinstance(result.exception, UserError) and "needs consent" in result.exception.what


@pytest.mark.parametrize(
    ("answers", "results"),
    [
        (["y", "n"], ["3", chat_tools.DECLINED]),
        (["perhaps", "a"], ["3", "3"]),
        (["no", "Yes "], [chat_tools.DECLINED, "3"]),
    ],
)
def test_the_person_consents_once_or_always_or_not(
    by_hand: ByHand, monkeypatch: pytest.MonkeyPatch, tools: str, answers: list[str], results: list[str]
) -> None:
    called(monkeypatch, CALL, CALL, "Done.")
    runner = chat_tools.ToolRunner(load_tools(Path(tools)), ask=lambda prompt: answers.pop(0))
    lines = iter(["1 + 2?"])
    with pytest.raises(StopIteration):
        Terminal(by_hand.conversation, lambda *_: next(lines), tools=runner).run()
    assert answers == []
    assert [each["content"] for each in by_hand.conversation.messages if each["role"] == "tool"] == results


def test_a_schema_alone_is_answered_by_the_person(
    by_hand: ByHand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called(monkeypatch, CALL, "Done.")
    (tmp_path / "tools.json").write_text('[{"name": "add"}]')
    runner = chat_tools.ToolRunner(load_tools(tmp_path / "tools.json"), ask=lambda prompt: "三")
    lines = iter(["1 + 2?"])
    with pytest.raises(StopIteration):
        Terminal(by_hand.conversation, lambda *_: next(lines), tools=runner).run()
    assert [each["content"] for each in by_hand.conversation.messages] == ["1 + 2?", "", "三", "Done."]


# A schema


def test_replies_fit_a_schema(runs_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="needs the extra mmcli[schema]")
    (tmp_path / "schema.json").write_text('{"enum": ["a", "好"]}', encoding="utf-8")
    options = ["--prompt", "Hello", "--schema", str(tmp_path / "schema.json")]
    assert json.loads(replied(invoke(runs_dir, *options))) in ("a", "好")
    assert json.loads(replied(invoke(runs_dir, "latest:pretrain", *options))) in ("a", "好")
    (tmp_path / "schema.json").write_text('{"type": "string", "minLength": 100}')
    assert "incomplete: it does not fit the schema" in invoke(runs_dir, *options).stderr


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--schema", "missing.json"], "cannot read missing.json"),
        (["--schema", "broken.json"], "broken.json is not JSON"),
        (["--tools", "missing.py"], "there is no file missing.py"),
        (["--yes"], "there are no tools"),
        (["--resume", "missing.jsonl"], "cannot read missing.jsonl"),
    ],
)
def test_files_that_cannot_be_used_are_refused(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    assert what in refused(invoke(runs_dir, "--prompt", "Hi", *options)).what


def test_a_prompt_goes_on_with_a_saved_conversation(runs_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    saved = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "你好"}]
    path.write_text(json.dumps({"messages": saved}))
    alone = json.loads(replied(invoke(runs_dir, "--prompt", "More", "--json")))
    after = json.loads(replied(invoke(runs_dir, "--prompt", "More", "--json", "--resume", str(path))))
    assert after["prompt_tokens"] > alone["prompt_tokens"]


# The keyboard and the pipe, for real

PATIENCE = 2.0  # seconds until a lost Ctrl-C is pressed again
COMMAND = [sys.executable, "-m", "mmcli", "chat", "--device", "cpu", "--temperature", "0"]


def environment(runs_dir: Path) -> dict[str, str]:
    own = {"MMCLI_RUNS": str(runs_dir), "OMP_NUM_THREADS": "1", "TERM": "xterm", "LC_ALL": "C.UTF-8", "CI": "1"}
    return {**os.environ, **own}


class PseudoTerminal:
    """A process at a terminal of its own."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, env)
        self.screen = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, pattern: str, seconds: float = 60) -> None:
        """Read until the pattern shows in what came since the last wait."""
        new, end = b"", time.monotonic() + seconds
        while not re.search(pattern, new.decode(errors="replace")):
            ready, _, _ = select.select([self._fd], [], [], max(0, end - time.monotonic()))
            assert ready, (
                f"{pattern!r} did not come in {seconds} s; the screen:\n{self.screen}{new.decode(errors='replace')}"
            )
            new += os.read(self._fd, 4096)
        self.screen += new.decode(errors="replace")

    def interrupt(self, pattern: str) -> None:
        """Press Ctrl-C at the prompt, and once more if nothing happens.

        Python loses one that comes in the instant between readline's prompt and its wait for a key, where a person
        cannot be so quick.
        """
        self.type("\x03")
        try:
            self.wait_for(pattern, PATIENCE)
        except AssertionError:
            self.type("\x03")
            self.wait_for(pattern)

    def exit_code(self, seconds: float = 30) -> int:
        """Wait for the end of the process."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        raise AssertionError(f"the process did not end in {seconds} s; the screen:\n{self.screen}")


def test_the_keyboard_for_real(runs_dir: Path) -> None:
    terminal = PseudoTerminal([*COMMAND, "--max-new-tokens", str(NEVER_ENDS)], environment(runs_dir))
    try:
        terminal.wait_for(r"> $")
        assert "0003-sft-tiny (finished)" in terminal.screen
        terminal.type("Hi\n")
        terminal.wait_for(r"Hi\r\n[^\r]{20}")  # the reply streams
        terminal.type("\x03")
        terminal.wait_for(r"stopped; [^\n]*\n.*> $")
        terminal.type("/sytem x\n")
        terminal.wait_for(r'did you mean "/system"\?.*\n.*> $')
        terminal.type("\x1b[A\n")  # up: the line before, from the history
        terminal.wait_for(r'did you mean "/system"\?.*\n.*> $')
        terminal.type("世界\x7f\x7f/rset" + "\x1b[D" * 3 + "e\n")  # wide characters taken back, a letter put in
        terminal.wait_for(r"conversation cleared[^\n]*\n.*> $")
        terminal.interrupt(r"Ctrl-D or /exit exits[^\n]*\n.*> $")
        terminal.type("\x04")
        assert terminal.exit_code() == 0
    except BaseException:
        os.kill(terminal.pid, signal.SIGKILL)
        raise


@pytest.fixture
def shell(runs_dir: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", line], env=environment(runs_dir), capture_output=True, text=True, timeout=100
        )

    return run


def test_a_reader_that_has_enough_ends_the_reply_quietly(shell: Callable[[str], Any]) -> None:
    command = " ".join([*COMMAND, "--max-new-tokens", str(NEVER_ENDS)])
    done = shell(f"echo Hello | {command} | head -c 20 | wc -c; echo ${{PIPESTATUS[1]}}")
    assert done.stdout.split() == ["20", "0"]
    assert [line for line in done.stderr.splitlines() if "parameters" not in line] == []


def test_the_module_imports_nothing_heavy() -> None:
    code = "import sys, mmcli.cli.chat; print(*({'torch', 'numpy', 'tokenizers', 'rich.console'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_call_of_a_model_that_is_compared_is_told_and_not_run(
    by_hand: ByHand,
    runs_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    tools: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    called(monkeypatch, "Hi.", CALL + "<tool_call>{</tool_call>")
    other = ByHand(runs_dir).conversation
    other.tools = [tool.schema for tool in load_tools(Path(tools))]
    lines = iter(["1 + 2?", "/compare other"])
    opened = chat_terminal.OpenModel("other", "", other)
    with pytest.raises(StopIteration):
        Terminal(by_hand.conversation, lambda *_: next(lines), open_model=lambda name: opened).run()
    told = capsys.readouterr().err
    assert 'it calls add({"a": 1, "b": 2}), which is not run' in told and told.count("it calls") == 1
