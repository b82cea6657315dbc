"""How often the chosen reply is the likelier one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcli.data.demo import CORPUS_VERSION
from mmcli.data.record import EncodedRecord
from mmcli.errors import UserError
from mmcli.evaluation import preferences
from mmcli.evaluation.loss import document_batches, model_losses
from mmcli.evaluation.preferences import measure_preferences, split_pairs
from mmcli.evaluation.scores import Score
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import load_model, save_model
from mmcli.model.transformer import Transformer
from mmcli.run import ModelRef
from mmcli.stage import Silent
from mmcli.text.chat import encode_chat
from mmcli.text.tokenizer import Tokenizer

CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, vocab_size=400, max_seq_len=120, init_std=0.2)
PAIRS = [("Hello", "The rain falls on the hills.", "a"), ("Who?", "b", "cloud water"), ("你好", "世界", "天气很好。")]


@pytest.fixture
def ref(tokenizer: Tokenizer, tmp_path: Path) -> ModelRef:
    save_model(tmp_path / "model", Transformer(CONFIG, seed=3), CONFIG, tokenizer)
    return ModelRef(tmp_path / "model", None)


def write(path: Path, pairs: list[tuple[str, str, str]]) -> str:
    lines = [json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in pairs]
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def logp(ref: ModelRef, tokenizer: Tokenizer, prompt: str, reply: str) -> tuple[float, float]:
    """(sum, mean) of a reply's log-probabilities, alone in a batch."""
    messages = [{"role": "user", "content": prompt}]
    asked = encode_chat(tokenizer, messages, add_generation_prompt=True).ids
    whole = encode_chat(tokenizer, [*messages, {"role": "assistant", "content": reply}])
    trained = whole.trained[len(asked) :]
    [losses] = model_losses(load_model(ref.path).eval(), document_batches([whole.ids]))
    nats = losses.nats_N[len(asked) - 1 :][trained]
    return -float(nats.sum()), -float(nats.mean())


@pytest.mark.parametrize("together", [1, 2, 256])
def test_pairs_are_compared_by_sum_and_by_token(
    ref: ModelRef, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(preferences, "TOGETHER", together)
    found = measure_preferences(ref, [write(tmp_path / "pairs.jsonl", PAIRS)], device="cpu")
    expected = [[logp(ref, tokenizer, prompt, reply) for reply in replies] for prompt, *replies in PAIRS]
    by_sum, by_token = ([chosen[i] > rejected[i] for chosen, rejected in expected] for i in (0, 1))
    assert found.by_sum == Score(sum(by_sum), 3) and found.by_token == Score(sum(by_token), 3)
    margin = sum(chosen[0] - rejected[0] for chosen, rejected in expected) / 3
    assert found.margin == pytest.approx(margin, rel=1e-4)
    assert (found.kept, found.rejected, found.too_long, found.version) == (3, 0, 0, "")


def test_the_other_way_round_the_others_are_preferred(ref: ModelRef, tmp_path: Path) -> None:
    one = measure_preferences(ref, [write(tmp_path / "a.jsonl", PAIRS)], device="cpu")
    turned = [(prompt, rejected, chosen) for prompt, chosen, rejected in PAIRS]
    other = measure_preferences(ref, [write(tmp_path / "b.jsonl", turned)], device="cpu")
    assert one.by_sum.correct + other.by_sum.correct == one.by_token.correct + other.by_token.correct == 3
    assert one.margin == pytest.approx(-other.margin)


def test_the_built_in_pairs_are_held_out(ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = list(preferences.demo.preferences(held_out=True))
    monkeypatch.setattr(preferences.demo, "preferences", lambda held_out: pairs[:20] if held_out else None)
    found = measure_preferences(ref, device="cpu")
    assert found.by_sum.total + found.too_long == 20 and found.version == CORPUS_VERSION
    values = found.to_json()
    assert (values["suite"], values["data"]) == ("preferences", ["demo"])
    assert values["score"] == found.by_sum.share and values["interval"] == list(found.by_sum.interval)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, list])
def test_ids_from_other_processes_are_the_same(dtype: Any) -> None:
    ids, trained = [[1, 2, 3, 4], [1, 2, 5]], [[False, False, True, True], [False, False, True]]
    given = [list(each) if dtype is list else np.array(each, dtype=dtype) for each in ids]
    pair = EncodedRecord(given, [np.array(each, dtype=np.uint8) for each in trained], 0)
    [batch] = preferences._pair_batches([pair], 100, pad_id=0)
    assert batch.ids_BT.tolist() == [[1, 2, 3], [1, 2, 0]]
    assert batch.labels_BT.tolist() == [[-100, 3, 4], [-100, 5, -100]]
    assert batch.segments_BT.tolist() == [[0, 0, 0], [0, 0, -1]]
    assert batch.positions_BT.tolist() == [[0, 1, 2], [0, 1, 0]]


class Told(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def test_what_cannot_be_compared_is_told(ref: ModelRef, tmp_path: Path) -> None:
    path, told = tmp_path / "pairs.jsonl", Told()
    write(path, [PAIRS[0], ("Long", "The rain " * 200, "no")])
    path.write_text(path.read_text() + '{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    found = measure_preferences(ref, [str(path)], device="cpu", report=told)
    assert (found.by_sum.total, found.too_long, found.kept, found.rejected) == (1, 1, 2, 1)
    assert any("1 of 3 records rejected" in each for each in told.said)
    assert any("1 pairs do not fit into the context of 120 tokens" in each for each in told.said)
    with pytest.raises(UserError, match="no preference pair of the data fits"):
        measure_preferences(ref, [write(path, [("Long", "The rain " * 200, "no")])], device="cpu")
    with pytest.raises(UserError, match="no preference pair of the data can be used"):
        measure_preferences(ref, [write(path, [("a", "b", "b")])], device="cpu")


def test_pairs_are_told_from_texts(ref: ModelRef, tmp_path: Path) -> None:
    text, pairs = str(tmp_path / "text.txt"), write(tmp_path / "pairs.jsonl", PAIRS)
    Path(text).write_text("Hello.")
    assert split_pairs([text, pairs, "demo"]) == ([pairs], [text, "demo"])
    assert split_pairs(["demo", text], built_in=True) == (["demo"], [text])
    assert split_pairs([]) == ([], [])
    assert split_pairs([pairs], columns=["prompt=prompt", "chosen=chosen", "rejected=rejected"]) == ([pairs], [])
    with pytest.raises(UserError, match="demo stands for the held-out pairs"):
        measure_preferences(ref, ["demo", pairs])
