"""The ONNX engine keeps the protocol: slots, truncation, copies, full contexts, interrupts, and no torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mmcli.errors import MmcliError, UserError
from mmcli.export.onnx_export import export_onnx
from mmcli.generate import onnx_engine
from mmcli.generate.conversation import Conversation
from mmcli.generate.engine import PromptTooLong
from mmcli.generate.generate import generate, generate_batch
from mmcli.generate.onnx_engine import OnnxEngine
from mmcli.generate.onnx_session import open_session
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.speculation import Speculation
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

LINES = [
    "Hello, how are you today?",
    "The rain falls on the hills.",
    "你好，世界。今天天气很好。",
    "A cloud is water 🙂",
]
CONFIG = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, max_seq_len=128, init_std=0.15)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "model"
    save_model(folder, Transformer(CONFIG, seed=4), CONFIG, train_tokenizer(LINES * 3, vocab_size=400))
    return folder


@pytest.fixture(scope="module")
def folder(source: Path) -> Path:
    return export_onnx(source, source.parent / "export", stage="sft").folder


def ids(count: int, seed: int = 0) -> list[int]:
    numbers: list[int] = np.random.default_rng(seed).integers(0, 400, count).tolist()
    return numbers


def alone(folder: Path, tokens: Sequence[int]) -> np.ndarray:
    return OnnxEngine.load(folder).prefill(0, tokens)


def near(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= 1e-4)


def test_a_long_prompt_is_read_in_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = alone(folder, ids(60))
    monkeypatch.setattr(onnx_engine, "PREFILL_CHUNK", 13)
    assert near(alone(folder, ids(60)), whole)


def test_truncate_goes_back(folder: Path) -> None:
    engine = OnnxEngine.load(folder)
    engine.prefill(0, ids(30))
    engine.truncate(0, 10)
    assert engine.length(0) == 10
    assert near(engine.prefill(0, ids(5, seed=1)), alone(folder, ids(30)[:10] + ids(5, seed=1)))
    engine.truncate(0, 0)
    assert near(engine.prefill(0, ids(3)), alone(folder, ids(3)))


def test_a_copy_goes_its_own_way(folder: Path) -> None:
    engine = OnnxEngine.load(folder, slots=3)
    engine.prefill(2, ids(40, seed=5))
    engine.prefill(0, ids(12))
    engine.copy(0, 2)
    assert engine.length(2) == 12
    rows = engine.decode([2, 0], [7, 8])
    assert near(rows[0], alone(folder, [*ids(12), 7])) and near(rows[1], alone(folder, [*ids(12), 8]))


def test_idle_slots_between_busy_ones_keep_what_they_hold(folder: Path) -> None:
    engine = OnnxEngine.load(folder, slots=6)
    for slot in range(6):
        engine.prefill(slot, ids(slot + 2, seed=slot))
    rows = engine.decode([5, 0, 3], [1, 2, 3])
    for row, slot, token in zip(rows, (5, 0, 3), (1, 2, 3), strict=True):
        assert near(row, alone(folder, [*ids(slot + 2, seed=slot), token]))
    assert [engine.length(slot) for slot in range(6)] == [3, 3, 4, 6, 6, 8]
    for slot in (1, 2, 4):
        assert near(engine.decode([slot], [9])[0], alone(folder, [*ids(slot + 2, seed=slot), 9]))


def test_a_full_idle_slot_is_not_written_to(folder: Path) -> None:
    engine = OnnxEngine.load(folder, slots=3, max_len=20)
    engine.prefill(1, ids(20, seed=1))
    for slot in (0, 2):
        engine.prefill(slot, ids(4))
    rows = engine.decode([0, 2], [5, 6])
    assert near(rows[1], alone(folder, [*ids(4), 6]))
    engine.truncate(1, 19)
    assert near(engine.decode([1], ids(20, seed=1)[19:])[0], alone(folder, ids(20, seed=1)))


def test_a_full_context_is_said_and_nothing_is_lost(folder: Path) -> None:
    engine = OnnxEngine.load(folder, max_len=10)
    engine.prefill(0, ids(8))
    with pytest.raises(PromptTooLong):
        engine.prefill(0, ids(3))
    engine.decode([0], [1])
    engine.decode([0], [2])
    with pytest.raises(PromptTooLong):
        engine.decode([0], [3])
    engine.truncate(0, 8)
    assert near(engine.decode([0], [4])[0], alone(folder, [*ids(8), 4]))


def test_an_interrupt_leaves_the_length_true(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OnnxEngine.load(folder, slots=2)
    engine.prefill(0, ids(6))
    run = onnx_engine._Pass.run

    def interrupted(self: Any, ids_BT: np.ndarray) -> None:
        run(self, ids_BT)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(onnx_engine._Pass, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.prefill(0, ids(5, seed=3))
        with pytest.raises(KeyboardInterrupt):
            engine.decode([0], [1])
    assert engine.length(0) == 6
    assert near(engine.prefill(0, ids(5, seed=2)), alone(folder, ids(6) + ids(5, seed=2)))


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_verified_logits_are_those_of_one_by_one(folder: Path, count: int) -> None:
    engine = OnnxEngine.load(folder, slots=2)
    for slot in range(2):
        engine.prefill(slot, ids(20))
    rows = engine.verify(1, ids(count, seed=1))
    assert rows.shape == (count, 400) and engine.length(1) == 20 + count and engine.length(0) == 20
    for row, token in zip(rows, ids(count, seed=1), strict=True):
        assert near(row, engine.decode([0], [token])[0])
    engine.truncate(1, 21)
    assert near(engine.decode([1], [3])[0], alone(folder, [*ids(20), ids(1, seed=1)[0], 3]))
    small = OnnxEngine.load(folder, max_len=20)
    small.prefill(0, ids(20))
    with pytest.raises(PromptTooLong):
        small.verify(0, ids(count))


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_speculation_writes_the_same_ids(folder: Path, temperature: float) -> None:
    engine = OnnxEngine.load(folder)
    sampling = SamplingConfig(temperature=temperature, repetition_penalty=1, seed=3)
    expected = list(generate(engine, 0, ids(6) * 4, sampling, max_new_tokens=90))
    speculation = Speculation(engine)
    assert list(generate(engine, 0, ids(6) * 4, sampling, max_new_tokens=90, speculation=speculation)) == expected


def test_exports_that_give_the_last_logits_alone_cannot_verify(folder: Path, tmp_path: Path) -> None:
    """Those from before there were the logits of several."""
    graph = onnx.load(folder / "model.onnx")
    outputs = [each for each in graph.graph.output if each.name != "last_logits"]
    del graph.graph.output[:]
    graph.graph.output.extend(outputs)
    (tmp_path / "old").mkdir()
    onnx.save_model(graph, tmp_path / "old" / "model.onnx")
    old = OnnxEngine(open_session(tmp_path / "old" / "model.onnx"), CONFIG)
    assert OnnxEngine.load(folder).can_verify and not old.can_verify
    with pytest.raises(UserError, match="cannot verify drafted tokens"):
        Speculation(old)


def test_logits_are_not_overwritten_by_the_next_call(folder: Path) -> None:
    engine = OnnxEngine.load(folder)
    first = engine.prefill(0, ids(4))
    kept = first.copy()
    engine.decode([0], [1])
    assert (first == kept).all()


def test_wrong_sizes_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="slots = 0"):
        OnnxEngine.load(folder, slots=0)
    with pytest.raises(UserError, match=r"max_len = 129 does not fit the exported context of 128"):
        OnnxEngine.load(folder, max_len=129)
    with pytest.raises(UserError, match="threads = 0"):
        OnnxEngine.load(folder, threads=0)
    with pytest.raises(UserError, match="token id 400"):
        OnnxEngine.load(folder).prefill(0, [400])


def test_a_folder_without_a_graph_or_with_a_broken_one(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no model.onnx") as refused:
        OnnxEngine.load(source)
    assert refused.value.fix == "make it: mmcli export onnx"
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(MmcliError, match="does not take"):
        open_session(tmp_path / "model.onnx")


def test_a_greedy_reply_is_torchs(source: Path, folder: Path) -> None:
    tokenizer = Tokenizer.load(source)
    greedy = SamplingConfig(temperature=0, repetition_penalty=1.1)
    replies = []
    for engine in (TorchEngine.load(source, device="cpu"), OnnxEngine.load(folder)):
        conversation = Conversation(engine, tokenizer, sampling=greedy, max_new_tokens=30)
        first = "".join(conversation.reply("Hello, how are you?"))
        replies.append((first, "".join(conversation.reply("And 今天?")), conversation.dropped))
    assert replies[0] == replies[1] and replies[0][0]


def test_a_sampled_reply_is_torchs(source: Path, folder: Path) -> None:
    prompt, sampling = ids(9), SamplingConfig(temperature=1.0, top_p=0.9, seed=11)
    drawn = [
        list(generate(engine, 0, prompt, sampling, max_new_tokens=40))
        for engine in (TorchEngine.load(source, device="cpu"), OnnxEngine.load(folder))
    ]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 10


@pytest.mark.parametrize(
    "sampling",
    [SamplingConfig(temperature=0, repetition_penalty=1), SamplingConfig(temperature=1.0, top_p=0.95, seed=5)],
    ids=["greedy", "sampled"],
)
def test_a_batch_writes_what_each_sequence_writes_alone(source: Path, folder: Path, sampling: SamplingConfig) -> None:
    """Also with torch: both engines, alone and together, four times the same ids."""
    prompts = [ids(3 + 5 * number, seed=number) for number in range(5)]
    limits: dict[str, Any] = {"max_new_tokens": 16, "stop_ids": {1, 2}}
    written: list[dict[tuple[int, int], list[int]]] = []
    for load in (lambda n: TorchEngine.load(source, slots=n, device="cpu"), lambda n: OnnxEngine.load(folder, slots=n)):
        batch = generate_batch(load(3), prompts, sampling, n=2, **limits)
        written.append({(each.prompt, each.sample): each.ids for each in batch})
        written.append({})
        engine = load(1)
        for number, prompt in enumerate(prompts):
            for i in range(2):
                seeded = dataclasses.replace(sampling, seed=sampling.seed + i)
                written[-1][number, i] = list(generate(engine, 0, prompt, seeded, **limits))
    assert written[0] == written[1] == written[2] == written[3]
    assert len({tuple(each) for each in written[0].values()}) == (5 if sampling.temperature == 0 else 10)


WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "transformers", "datasets", "safetensors"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from pathlib import Path
from mmcli.evaluation.engines import load_engine
from mmcli.generate.conversation import Conversation, is_chat_model
from mmcli.generate.sampler import SamplingConfig
from mmcli.find import find_model
from mmcli.text.tokenizer import Tokenizer

ref = find_model(sys.argv[1], Path("no-runs"))
tokenizer = Tokenizer.load(ref.path)
engine = load_engine(ref, "onnx")
assert is_chat_model(ref.path, tokenizer)
conversation = Conversation(engine, tokenizer, sampling=SamplingConfig(temperature=0), max_new_tokens=20)
for text in ("Hello, how are you?", "A cloud?"):
    sys.stdout.buffer.write("".join(conversation.reply(text)).encode() + b"\\x00")
assert not {"torch", "onnx"} & set(sys.modules)
"""


def test_a_conversation_needs_no_torch(source: Path, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(folder)], capture_output=True, check=True)
    engine = TorchEngine.load(source, device="cpu")
    greedy = SamplingConfig(temperature=0)
    conversation = Conversation(engine, Tokenizer.load(source), sampling=greedy, max_new_tokens=20)
    expected = ["".join(conversation.reply(text)) for text in ("Hello, how are you?", "A cloud?")]
    assert done.stdout.decode().split("\x00")[:-1] == expected
