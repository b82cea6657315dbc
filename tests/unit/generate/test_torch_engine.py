"""The torch engine: every way to fill a slot gives the logits of one whole forward pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmcli.errors import UserError
from mmcli.generate.engine import PromptTooLong
from mmcli.generate.generate import generate
from mmcli.generate.sampler import SamplingConfig, sample
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.device import choose_device
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.text.train import train_tokenizer

SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 300, "max_seq_len": 64}
KINDS = {
    "dense": {},
    "plain attention": {"flash_attn": False},
    "moe": {"use_moe": True, "hidden_dim": 24},
    "learned positions": {"position": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True},
    "window": {"sliding_window": 7},
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def make_model(kind: str = "dense") -> Transformer:
    torch.manual_seed(3)
    model = Transformer(ModelConfig(**{**SHAPE, **KINDS[kind], "init_std": 0.2}))  # logits far from each other
    return model.eval()


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return make_model(request.param)


def some_ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, SHAPE["vocab_size"], n).tolist()


def whole(model: Transformer, ids: list[int]) -> np.ndarray:
    """logits_TV of one forward pass without a cache."""
    with torch.no_grad():
        hidden, _ = model(torch.tensor([ids]), AttnContext.causal(1, len(ids)))
        return model.head(hidden)[0].numpy()


def test_prefill_and_decode_are_the_whole_forward(model: Transformer) -> None:
    ids = some_ids(20)
    expected = whole(model, ids)
    engine = TorchEngine(model)
    logits = engine.prefill(0, ids[:9])
    assert logits.dtype == np.float32 and logits.shape == (engine.vocab_size,)
    np.testing.assert_allclose(logits, expected[8], **CLOSE)
    for i in range(9, 20):
        assert engine.length(0) == i
        np.testing.assert_allclose(engine.decode([0], [ids[i]])[0], expected[i], **CLOSE)


def test_prefill_in_pieces_is_prefill_at_once(model: Transformer) -> None:
    ids = some_ids(33)
    expected = whole(model, ids)[-1]
    engine = TorchEngine(model, slots=2)
    for part in (ids[:1], ids[1:12], ids[12:]):
        logits = engine.prefill(1, part)
    np.testing.assert_allclose(logits, expected, **CLOSE)
    chunked = TorchEngine(model, prefill_chunk=8)
    np.testing.assert_allclose(chunked.prefill(0, ids), expected, **CLOSE)
    assert chunked.length(0) == engine.length(1) == 33


def test_rows_of_different_length_decode_as_if_alone(model: Transformer) -> None:
    prompts = [some_ids(n, seed=n) for n in (3, 17, 1, 9)]
    together = TorchEngine(model, slots=4)
    alone = [TorchEngine(model) for _ in prompts]
    for slot, prompt in enumerate(prompts):
        np.testing.assert_array_equal(together.prefill(slot, prompt), alone[slot].prefill(0, prompt))
    for step in range(6):
        order = [2, 0, 3, 1] if step % 2 else [0, 3]  # all of them in any order, or some
        ids = [some_ids(1, seed=100 * step + slot)[0] for slot in order]
        batch = together.decode(order, ids)
        assert batch.shape == (len(order), together.vocab_size)
        for row, slot, token in zip(batch, order, ids, strict=True):
            np.testing.assert_allclose(row, alone[slot].decode([0], [token])[0], **CLOSE)
    assert [together.length(slot) for slot in range(4)] == [engine.length(0) for engine in alone]


def test_a_truncated_slot_is_as_if_fresh(model: Transformer) -> None:
    ids, other = some_ids(24), some_ids(15, seed=5)
    engine = TorchEngine(model)
    engine.prefill(0, ids)
    engine.truncate(0, 10)
    assert engine.length(0) == 10
    expected = whole(model, ids[:10] + other)[-1]
    np.testing.assert_allclose(engine.prefill(0, other), expected, **CLOSE)
    engine.truncate(0, 0)
    np.testing.assert_allclose(engine.prefill(0, other), whole(model, other)[-1], **CLOSE)


def test_a_copied_slot_goes_its_own_way(model: Transformer) -> None:
    ids = some_ids(12)
    engine = TorchEngine(model, slots=3)
    engine.prefill(2, some_ids(30, seed=9))  # what was there before must not show through
    engine.prefill(0, ids)
    engine.copy(0, 2)
    assert engine.length(2) == 12
    rows = engine.decode([0, 2], [5, 6])
    np.testing.assert_allclose(rows[0], whole(model, [*ids, 5])[-1], **CLOSE)
    np.testing.assert_allclose(rows[1], whole(model, [*ids, 6])[-1], **CLOSE)


def test_a_full_slot_refuses_more_and_stays_as_it_was() -> None:
    engine = TorchEngine(make_model(), slots=2, max_len=16)
    engine.prefill(0, some_ids(16))
    engine.prefill(1, some_ids(4))
    with pytest.raises(PromptTooLong, match="has 17 tokens, the context holds 16"):
        engine.prefill(0, [1])
    with pytest.raises(PromptTooLong, match="has 17 tokens"):
        engine.decode([1, 0], [1, 1])
    with pytest.raises(PromptTooLong, match="has 24 tokens") as caught:
        engine.prefill(1, some_ids(20))
    assert caught.value.exit_code == 2
    assert (engine.length(0), engine.length(1)) == (16, 4)


@pytest.mark.parametrize("bad", [-1, 300])
def test_ids_of_another_tokenizer_are_refused(bad: int) -> None:
    engine = TorchEngine(make_model())
    with pytest.raises(UserError, match=f"token id {bad} is outside the model's vocabulary of 300"):
        engine.prefill(0, [1, bad])
    engine.prefill(0, [1])
    with pytest.raises(UserError, match=f"token id {bad} "):
        engine.decode([0], [bad])
    assert engine.length(0) == 1


def test_sampled_sequences_are_the_same_alone_and_after_a_retry() -> None:
    """Three sequences drawn in one batch, by hand, against `generate` on each alone."""
    model = make_model()
    prompts = [some_ids(n, seed=n) for n in (4, 11, 7)]
    sampling = SamplingConfig(temperature=1.0, seed=9)
    together = TorchEngine(model, slots=3)
    expected = []
    for prompt in prompts:
        engine = TorchEngine(model)
        first = list(generate(engine, 0, prompt, sampling, max_new_tokens=12))
        assert list(generate(engine, 0, prompt, sampling, max_new_tokens=12, cached=len(prompt))) == first
        expected.append(first)
    sequences = [list(prompt) for prompt in prompts]
    logits_SV = np.stack([together.prefill(slot, prompt) for slot, prompt in enumerate(prompts)])
    for step in range(12):
        for sequence, logits_V in zip(sequences, logits_SV, strict=True):
            sequence.append(int(sample(logits_V[None], [sampling], [sequence], [len(sequence)])[0]))
        if step < 11:
            logits_SV = together.decode([0, 1, 2], [sequence[-1] for sequence in sequences])
    assert [s[len(p) :] for s, p in zip(sequences, prompts, strict=True)] == expected


def test_load_reads_a_saved_folder(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["some words to learn from"], vocab_size=300)
    model = make_model()
    save_model(tmp_path / "model", model, model.config, tokenizer)
    engine = TorchEngine.load(tmp_path / "model", slots=2, max_len=20, device="cpu")
    assert (engine.slots, engine.max_len, engine.vocab_size) == (2, 20, 300)
    ids = some_ids(8)
    np.testing.assert_allclose(engine.prefill(1, ids), whole(model, ids)[-1], **CLOSE)
    half = TorchEngine.load(tmp_path / "model", device="cpu", dtype=torch.bfloat16)
    logits = half.prefill(0, ids)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, whole(model, ids)[-1], atol=0.1 * float(np.abs(logits).max()))


def test_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match="slots = 0"):
        TorchEngine(make_model(), slots=0)
    with pytest.raises(UserError, match="max_len = 0"):
        TorchEngine(make_model(), max_len=0)
    with pytest.raises(UserError, match='there is no device "warp"'):
        choose_device("warp")


def test_a_device_that_is_not_here_is_refused() -> None:
    absent = "mps" if not torch.backends.mps.is_available() else "cuda:99"
    with pytest.raises(UserError, match=f'device "{absent}" cannot be used here'):
        choose_device(absent)
    assert choose_device("cpu").type == "cpu"
    assert choose_device().type in ("cpu", "cuda", "mps")


def test_rows_of_different_length_in_one_pass_are_those_of_single_calls(model: Transformer) -> None:
    rows = [some_ids(n, seed=n) for n in (3, 1, 1, 7, 1, 4)]
    slots = [5, 1, 2, 0, 4, 3]
    together, alone = (TorchEngine(model, slots=6, max_len=40, prefill_chunk=5) for _ in range(2))
    for engine in (together, alone):
        for slot in range(1, 6):
            engine.prefill(slot, some_ids(2 * slot, seed=slot + 20))
    expected = [alone.prefill(slot, row) for slot, row in zip(slots, rows, strict=True)]
    np.testing.assert_allclose(together.extend(slots, rows), np.stack(expected), **CLOSE)
    assert [together.length(slot) for slot in range(6)] == [alone.length(slot) for slot in range(6)]
    after = together.decode(range(6), [7] * 6)
    np.testing.assert_allclose(after, alone.decode(range(6), [7] * 6), **CLOSE)


def test_a_row_that_does_not_fit_leaves_all_as_they_were() -> None:
    engine = TorchEngine(make_model(), slots=2, max_len=8)
    engine.prefill(0, [1, 2])
    with pytest.raises(PromptTooLong):
        engine.extend([0, 1], [[3], [1] * 9])
    assert (engine.length(0), engine.length(1)) == (2, 0)
