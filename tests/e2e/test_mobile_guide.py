"""The Kotlin files of docs/guides/mobile/android, compiled, over an exported model: the greedy replies are torch's.

ONNX Runtime's package for the JVM is stood in for by ONNX Runtime in Python. Main.kt, which needs Android, is left out,
and so is Swift, for which there is no compiler here.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from mmcli.export.onnx_export import export_onnx
from mmcli.generate.sampler import SamplingConfig, sample, uniform
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.text.chat import encode_chat, stop_ids
from mmcli.text.train import train_tokenizer

pytestmark = pytest.mark.slow

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent / "mobile"
ANDROID = ROOT / "docs" / "guides" / "mobile" / "android"
KOTLIN = Path(os.environ.get("MMCLI_KOTLIN", ROOT / "build" / "browser" / "node_modules" / "kotlin-compiler"))
LINES = ["Hello, how are you today?", "The rain falls on the hills.", "user assistant 你好，世界。"]
CONFIG = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, max_seq_len=128, init_std=0.15)
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the harness."""
    if not KOTLIN.is_dir() or shutil.which("java") is None:
        pytest.skip(f"there is no Java, or no Kotlin compiler in {KOTLIN}: make test-browser installs that")
    out = tmp_path_factory.mktemp("kotlin") / "chat.jar"
    files = [*(ANDROID / f"{name}.kt" for name in ("Sampler", "Chat", "Decoder")), *sorted(HERE.glob("*.kt"))]
    compiler = [
        "java",
        "-cp",
        str(KOTLIN / "lib" / "kotlin-compiler.jar"),
        "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
    ]
    options = ["-kotlin-home", str(KOTLIN), "-include-runtime", "-d", str(out)]
    done = subprocess.run([*compiler, *map(str, files), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ["java", "-cp", str(out), "HarnessKt"]


def run(command: list[str], given: bytes) -> list[str]:
    environment = os.environ | {"PYTHON": sys.executable, "SESSION": str(HERE / "session.py")}
    done = subprocess.run(command, input=given, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize("graph", ["model.onnx", "model.ort"])
def test_greedy_replies_are_those_of_torch(program: list[str], tmp_path: Path, graph: str) -> None:
    """Three turns over one cache; the fourth does not fit, and begins anew."""
    tokenizer, model = train_tokenizer(LINES * 3, vocab_size=400), Transformer(CONFIG, seed=2)
    save_model(tmp_path / "model", model, CONFIG, tokenizer)
    folder = export_onnx(tmp_path / "model", tmp_path / "out", target="mobile").folder
    messages, stop = ["Hello", "The rain", "the hills", "how are you"], stop_ids(tokenizer)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [*(TURN.format(each) for each in messages), END]
    ids_of = {text: library.encode(text, add_special_tokens=False).ids for text in texts}
    asked = [{"role": "user", "content": messages[0]}]
    assert ids_of[TURN.format(messages[0])] == encode_chat(tokenizer, asked, add_generation_prompt=True).ids
    lines = [" ".join(map(str, ids)) + "\t" + text.replace("\n", "\\n") for text, ids in ids_of.items()]
    (tmp_path / "texts").write_text("\n".join(lines))

    engine, cached, expected = TorchEngine(model, max_len=128), 0, []
    for message in messages:
        prompt = (ids_of[END] if cached else []) + ids_of[TURN.format(message)]
        if cached + len(prompt) + 24 > 128:
            engine.truncate(0, 0)
            cached, prompt = 0, ids_of[TURN.format(message)]
        logits_V, reply = engine.prefill(0, prompt), []
        while len(reply) < 24 and (token := int(logits_V.argmax())) not in stop:
            reply.append(token)
            logits_V = engine.decode([0], [token])[0]
        cached = engine.length(0)
        expected.append(" ".join(map(str, reply)))
    assert cached < 64, "the last turn should have begun anew"

    command = [*program, str(folder / graph), "128", str(tmp_path / "texts"), ",".join(map(str, stop))]
    typed = "\n".join([messages[0], "<|im_start|>" + messages[1], *messages[2:]])  # what is typed is no control token
    assert run(command, typed.encode()) == expected


def test_samples_are_those_of_python(program: list[str]) -> None:
    rng, given, expected = np.random.default_rng(1), b"", []
    settings: list[dict[str, Any]] = [{}, {"temperature": 0.0}, {"top_k": 0}, {"top_k": 0, "top_p": 1.0}, {"top_k": 3}]
    for seed in range(100):
        config = SamplingConfig(seed=seed, **settings[seed % len(settings)])
        logits = (rng.standard_normal(300) * 3).astype(np.float32)
        seen = [int(id) for id in rng.integers(0, 300, 20)]
        expected.append(str(int(sample(logits[None], [config], [seen], [seed])[0])))
        given += struct.pack(">i300fi20i", 300, *logits, len(seen), *seen)
        numbers = (config.temperature, config.top_k, config.top_p, config.repetition_penalty, uniform(seed, seed))
        given += struct.pack(">didd", *numbers[:4]) + struct.pack(">d", numbers[4])
    assert run(program, struct.pack(">i", 100) + given) == expected
