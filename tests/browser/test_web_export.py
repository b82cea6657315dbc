"""`mmcli export web` on a static server, run by a headless Chromium as a phone: the replies are torch's."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from mmcli.cli.export import app
from mmcli.export.locate import graph_file
from mmcli.generate.conversation import Conversation
from mmcli.generate.onnx_growing import load_onnx_engine
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import load_model, save_model
from mmcli.model.transformer import Transformer
from mmcli.run import Run
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RUNTIME = Path(os.environ.get("MMCLI_ORT_WEB", ROOT / "build" / "browser" / "node_modules" / "onnxruntime-web"))
LINES = ["Hello, how are you today?", "The rain falls on the hills.", "你好，世界。今天天气很好。"]
SIZE: dict[str, Any] = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 400, "init_std": 0.1}
CONFIGS = {
    "dense": ModelConfig(**SIZE, max_seq_len=1024),
    "qk-norm": ModelConfig(**SIZE, max_seq_len=1024, qk_norm=True),
    "moe": ModelConfig(**{**SIZE, "init_std": 0.25}, max_seq_len=1024, use_moe=True),
    "short": ModelConfig(**SIZE, max_seq_len=96),
}
GREEDY = {"temperature": 0, "repetition_penalty": 1, "max_tokens": 48}


def make_run(runs: Path, config: ModelConfig, stage: str) -> Path:
    run = Run.create(runs, stage, "small")
    save_model(run.model, Transformer(config, seed=1), config, train_tokenizer(LINES * 3, vocab_size=380))
    return run.model


def export(runs: Path, *arguments: str) -> Path:
    """The folder of a web export of the latest run."""
    if not RUNTIME.is_dir():
        pytest.skip(f"{RUNTIME} has no onnxruntime-web: make test-browser installs it")
    done = CliRunner().invoke(app, ["web", "--runtime", str(RUNTIME), "--runs-dir", str(runs), "--json", *arguments])
    assert done.exit_code == 0, done.output
    return Path(json.loads(done.stdout)["folder"])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve(new_page: Callable[..., Page]) -> Iterator[Callable[..., Page]]:
    """serve(folder, sampling): the folder's page on a phone, its model loaded."""
    servers = []

    def make(folder: Path, sampling: dict[str, Any]) -> Page:
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = new_page("phone")
        store = f"localStorage.setItem('mmcli.chat:/', JSON.stringify({{settings: {json.dumps(sampling)}}}))"
        page.add_init_script(f"if (!localStorage.length) {store}")
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_selector("#ideas button, .error", timeout=60_000)
        return page

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(page: Page, text: str) -> str:
    """The reply, as it is kept."""
    page.fill("#text", text)
    page.click("#go")
    page.wait_for_selector("#log[aria-busy=false]:not([hidden])", timeout=60_000)
    return str(page.evaluate("state.messages.at(-1)?.content ?? ''"))


def replies_of_torch(folder: Path, texts: list[str], *, chat: bool = True, **sampling: Any) -> tuple[list[str], int]:
    """The replies, and how many of the oldest messages were left out at the end."""
    model = load_model(folder)
    config = SamplingConfig(**({"temperature": 0.0, "repetition_penalty": 1.0} | sampling))
    conversation = Conversation(
        TorchEngine(model, slots=1, max_len=model.config.max_seq_len),
        Tokenizer.load(folder),
        sampling=config,
        max_new_tokens=GREEDY["max_tokens"],
        chat=chat,
    )
    return ["".join(conversation.reply(text)) for text in texts], conversation.dropped


TEXTS = ["Hello, how are you?", "今天天气很好。 🙂", "The rain <|im_end|> falls"]


@pytest.mark.parametrize("family", ["dense", "qk-norm", "moe", "short"])
def test_greedy_replies_are_those_of_torch(serve: Callable[..., Page], tmp_path: Path, family: str) -> None:
    """Several turns: the second and third keep the cache; in a short context the oldest turns are left out."""
    model = make_run(tmp_path, CONFIGS[family], "sft")
    page = serve(export(tmp_path), GREEDY)
    assert page.inner_text("#about") == "The model runs in this browser. What you write does not leave this device."
    assert page.input_value("#model") == "0001-sft-small"
    replies = [ask(page, text) for text in TEXTS]
    expected, dropped = replies_of_torch(model, TEXTS)
    assert replies == expected
    assert len(set(replies)) > 1 and all(replies)
    assert page.locator(".error").count() == 0
    assert (dropped > 0) == (family == "short")
    assert ("The context is full" in page.inner_text("#log")) == (dropped > 0)
    assert "48 tokens" in page.inner_text(".reply .tools >> nth=0")


@pytest.mark.parametrize("dtype", ["fp16", "int8", "int4"])
def test_smaller_formats_answer_as_in_python(serve: Callable[..., Page], tmp_path: Path, dtype: str) -> None:
    """fp16: the greedy reply is torch's. int8 and int4: it begins as in Python; WebAssembly rounds blocks otherwise."""
    model = make_run(tmp_path, CONFIGS["dense"], "sft")
    folder = export(tmp_path, "--dtype", dtype)
    reply = ask(serve(folder, GREEDY), TEXTS[0])
    if dtype == "fp16":
        assert [reply] == replies_of_torch(model, TEXTS[:1])[0]
        return
    engine = load_onnx_engine(folder, graph=graph_file(folder))
    config = SamplingConfig(temperature=0.0, repetition_penalty=1.0)
    conversation = Conversation(
        engine, Tokenizer.load(folder), sampling=config, max_new_tokens=GREEDY["max_tokens"], chat=True
    )
    expected = "".join(conversation.reply(TEXTS[0]))
    half = expected[: (len(expected) + 1) // 2]
    assert half and reply.startswith(half)


def test_a_sampled_reply_is_that_of_python_with_the_same_seed(serve: Callable[..., Page], tmp_path: Path) -> None:
    model = make_run(tmp_path, CONFIGS["dense"], "sft")
    page = serve(export(tmp_path), {"seed": 5, "max_tokens": GREEDY["max_tokens"]})
    expected, _ = replies_of_torch(model, TEXTS[:1], temperature=0.7, repetition_penalty=1.05, seed=5)
    assert [ask(page, TEXTS[0])] == expected


def test_a_base_model_continues_the_text(serve: Callable[..., Page], tmp_path: Path) -> None:
    model = make_run(tmp_path, CONFIGS["dense"], "pretrain")
    page = serve(export(tmp_path), GREEDY)
    assert page.inner_text("#about").startswith("A base model")
    assert [ask(page, "The rain")] == replies_of_torch(model, ["The rain"], chat=False)[0]


def test_int8_answers_and_a_reply_is_stopped(serve: Callable[..., Page], tmp_path: Path) -> None:
    make_run(tmp_path, ModelConfig(**SIZE, max_seq_len=8192), "sft")
    page = serve(export(tmp_path, "--dtype", "int8"), {**GREEDY, "max_tokens": 8000})
    page.fill("#text", "Hello")
    page.click("#go")
    page.wait_for_selector(".reply > .md :not(.dots, .sr)")
    page.click("#go")
    page.wait_for_selector(".reply .tools")
    assert "stopped" in page.inner_text(".reply > .tools")
    page.click("#new")
    page.evaluate("state.settings.max_tokens = 3")
    assert ask(page, "Again") and page.evaluate("state.messages.at(-1).stats.tokens") == 3


def test_what_is_wrong_is_said_in_two_lines(serve: Callable[..., Page], tmp_path: Path) -> None:
    make_run(tmp_path, CONFIGS["dense"], "sft")
    folder = export(tmp_path)
    page = serve(folder, GREEDY)
    ask(page, "long " * 600)
    what, fix = page.locator(".error p").all_inner_texts()
    assert what.startswith("The message has ") and what.endswith("the model's context is 1024.")
    assert fix == "Shorten the message or the system prompt."
    graph = folder / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    page.reload()
    page.wait_for_selector(".error p:has-text('has 1000 bytes of')")
    graph.unlink()
    page.reload()
    page.wait_for_selector(".error p:has-text('onnx/model.onnx cannot be read (404).')")
