"""A server on a free port, in this process, over a tiny model with random weights and over one whose reply is set."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import openai
import pytest

from mmcli.generate.engine import Engine
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.serve.app import create_app
from mmcli.serve.models import ServedModel, serve_engine
from mmcli.serve.server import Server, listen
from mmcli.text.chat import encode_chat
from mmcli.text.tokenizer import Tokenizer

from ..conftest import ListEngine

MAX_LEN = 600


class Written(ListEngine):
    """An engine that writes `reply` after every prompt of a chat, `seconds` a token."""

    def __init__(self, tokenizer: Tokenizer, *, slots: int = 2) -> None:
        super().__init__(vocab_size=tokenizer.vocab_size, max_len=MAX_LEN, slots=slots)
        self.reply: list[int] = []
        self.seconds = 0.0
        self.broken: int | None = None  # logits are not finite after three tokens where the prompt has this id
        turns = [{"role": "user", "content": "x"}]
        prompt = encode_chat(tokenizer, turns, add_generation_prompt=True).ids
        self._header = prompt[len(encode_chat(tokenizer, turns).ids) :]

    def _logits(self, slot: int) -> np.ndarray:
        time.sleep(self.seconds)
        ids, header = self.held[slot], self._header
        starts = (at for at in range(len(ids), len(header) - 1, -1) if ids[at - len(header) : at] == header)
        written = len(ids) - next(starts, len(ids))
        logits_V = np.zeros(self.vocab_size, dtype=np.float32)
        logits_V[self.reply[written % len(self.reply)]] = 100
        if self.broken in ids and written == 3:
            logits_V[:] = np.nan
        return logits_V


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    port: int
    models: dict[str, ServedModel]

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """(status, document); `body` is JSON unless it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, data, {"Content-Type": "application/json", **(headers or {})})

    def ask(self, method: str, path: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, data, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(content) if is_json else content.decode()


@contextmanager
def running(models: dict[str, ServedModel], **options: Any) -> Iterator[Running]:
    bound = listen("127.0.0.1", 0)
    port = bound.getsockname()[1]
    server = Server(create_app(models, **options), list(models.values()))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield Running(port, models)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def random_engine(tokenizer: Tokenizer) -> Engine:
    shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 2000}
    config = ModelConfig(**shape, vocab_size=tokenizer.vocab_size, init_std=0.2)
    return TorchEngine(Transformer(config, seed=3), slots=4)


@pytest.fixture(scope="session")
def written(tokenizer: Tokenizer) -> Written:
    return Written(tokenizer)


@pytest.fixture(scope="session")
def server(tokenizer: Tokenizer, random_engine: Engine, written: Written) -> Iterator[Running]:
    """`random` (4 slots), `base` that only continues texts, `written` (2 slots, 1 place in the queue)."""
    models = {
        "random": serve_engine("random", random_engine, tokenizer, chat=True, queue=16),
        "base": serve_engine("base", TorchEngine(random_engine.model, slots=1), tokenizer, chat=False, queue=4),
        "written": serve_engine("written", written, tokenizer, chat=True, queue=1),
    }
    with running(models) as found:
        yield found


@pytest.fixture
def writes(tokenizer: Tokenizer, written: Written) -> Iterator[Callable[..., Written]]:
    """writes(*parts, seconds=0): the model `written` replies with these texts and control tokens, then it stops."""

    def write(*parts: str | int, seconds: float = 0.0, end: bool = True) -> Written:
        ids: list[int] = []
        for part in parts:
            control = tokenizer.control_id(part) if isinstance(part, str) else None
            texts = tokenizer.encode_text(part) if isinstance(part, str) else [part]
            ids += texts if control is None else [control]
        written.reply, written.seconds = [*ids, *([tokenizer.eos_id] if end else [])], seconds
        return written

    yield write
    written.seconds, written.broken = 0.0, None
