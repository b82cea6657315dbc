"""The chat page from the real `mmcli serve`: two models, torch and ONNX, in a headless Chromium."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.run import Run
from mmcli.text.train import train_tokenizer

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["torch", "onnx"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a chat model and one that only continues text are served."""
    root = tmp_path_factory.mktemp("served") / "runs"
    tokenizer = train_tokenizer(["The rain falls on the hills.", "一朵云"] * 3, vocab_size=400)
    shape = {"dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 400, "max_seq_len": 4000, "init_std": 0.2}
    for stage in ("pretrain", "sft"):
        run = Run.create(root, stage, "tiny")
        save_model(run.model, Transformer(ModelConfig(**shape)), ModelConfig(**shape), tokenizer)
        run.update(state="finished")
    command = [sys.executable, "-m", "mmcli", "serve", "1", "2", "--port", "0", "--max-len", "3000", "--device", "cpu"]
    command += ["--backend", request.param, "--runs-dir", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def test_a_reply_comes_is_stopped_and_written_anew(address: str, new_page: Callable[..., Page]) -> None:
    from playwright import sync_api as playwright

    page = new_page("phone")
    page.goto(address)
    page.wait_for_selector("#ideas button")
    names = page.locator("#model option").evaluate_all("all => all.map(each => each.value)")
    assert names == ["0001-pretrain-tiny", "0002-sft-tiny"]
    page.select_option("#model", names[1])
    for _ in range(20):  # a reply may end before it is stopped
        page.fill("#text", "什么是云？")
        page.click("#go")
        with suppress(playwright.TimeoutError):
            page.click("#go[aria-label=Stop]", timeout=500)
        page.wait_for_selector("article.reply:last-of-type > .tools")
        if "stopped" in page.locator(".reply > .tools").last.inner_text():
            break
    else:
        pytest.fail("no reply could be stopped")
    page.click("#open")
    page.fill("#s-max", "5")
    page.click("#close")
    page.fill("#text", "And rain?")
    page.click("#go")
    page.wait_for_selector("article.reply:last-of-type > .tools")
    found = re.search(r"(\d+) tokens?", page.inner_text("article.reply:last-of-type > .tools"))
    assert found is not None and int(found[1]) <= 5
    assert page.locator(".error").count() == 0


def test_a_model_that_does_not_chat_continues_the_text(address: str, new_page: Callable[..., Page]) -> None:
    page = new_page("desktop")
    page.goto(address)
    page.wait_for_selector("#ideas button")
    as_base = page.inner_text("#about")
    page.select_option("#model", "0002-sft-tiny")
    assert page.inner_text("#about") != as_base
    page.select_option("#model", "0001-pretrain-tiny")
    assert page.inner_text("#about") == as_base
    page.fill("#text", "The rain")
    page.click("#go")
    page.wait_for_selector(".reply .tools:has-text('tokens')", timeout=30_000)
    assert page.locator(".error").count() == 0
