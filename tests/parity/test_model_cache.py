"""A torch engine on its cache, whatever the chunks and slots, against the full forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmcli.errors import UserError
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.attention import AttnContext
from mmcli.model.cache import KVCache
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer

V, N = 50, 20
SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": V, "max_seq_len": 32, "init_std": 0.1}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "plain attention": {"flash_attn": False},
    "moe": {"use_moe": True},
    "window": {"sliding_window": 6},
    "window, plain": {"sliding_window": 6, "flash_attn": False},
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_theta": 1e4, "qk_norm": True},
    "gpt2": {"position": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True, "n_kv_heads": 4},
    "phi": {
        "parallel_block": True, "norm": "layernorm", "mlp": "gelu_tanh", "bias": True, "head_bias": True,
        "rotary_fraction": 0.5, "tie_embeddings": False, "n_kv_heads": 4,
    },
}  # fmt: skip


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return Transformer(ModelConfig(**SIZES, **KINDS[request.param])).eval()


def tokens(seed: int) -> list[int]:
    return torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def full(model: Transformer, ids: list[int]) -> Tensor:
    """logits_NV of every token, without a cache."""
    return model.head(model(torch.tensor([ids]), AttnContext.causal(1, len(ids)))[0][0])


def assert_near(found: np.ndarray, expected: Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_prefill_in_pieces_goes_on_where_the_slot_stands(model: Transformer, chunk: int) -> None:
    ids = tokens(0)
    expected, engine = full(model, ids), TorchEngine(model, slots=2, max_len=N, prefill_chunk=chunk)
    for start, stop in ((0, 7), (7, 8), (8, N)):
        assert_near(engine.prefill(1, ids[start:stop]), expected[stop - 1])
        assert engine.length(1) == stop and engine.length(0) == 0


def test_step_by_step_is_the_full_pass(model: Transformer) -> None:
    ids = tokens(0)
    expected, engine = full(model, ids), TorchEngine(model)
    for i, each in enumerate(ids):
        assert_near(engine.decode([0], [each])[0], expected[i])


@pytest.mark.parametrize("slots", [(0, 1, 2), (2, 0), (3, 1), (1, 2)])
def test_slots_of_different_length_decode_in_one_call(model: Transformer, slots: tuple[int, ...]) -> None:
    lengths = {0: 4, 1: 11, 2: 7, 3: 1}
    engine = TorchEngine(model, slots=4, max_len=N)
    texts = {slot: tokens(slot) for slot in lengths}
    for slot, length in lengths.items():
        engine.prefill(slot, texts[slot][:length])
    for step in range(4):
        logits = engine.decode(slots, [texts[slot][lengths[slot] + step] for slot in slots])
        for row, slot in enumerate(slots):
            assert_near(logits[row], full(model, texts[slot])[lengths[slot] + step])
    assert engine.cache.lengths.tolist() == [length + 4 * (slot in slots) for slot, length in lengths.items()]


def test_truncate_and_copy(model: Transformer) -> None:
    ids, other = tokens(0), tokens(1)
    engine = TorchEngine(model, slots=2, max_len=N)
    engine.prefill(0, ids)
    engine.copy(0, 1)
    assert engine.length(1) == N
    engine.truncate(0, 5)
    engine.truncate(1, 9)
    assert_near(engine.prefill(0, other[5:12]), full(model, ids[:5] + other[5:12])[-1])
    assert_near(engine.prefill(1, ids[9:]), full(model, ids)[-1])  # the copy is its own


def test_a_sequence_without_room_is_refused_and_nothing_is_lost() -> None:
    model = Transformer(ModelConfig(**SIZES)).eval()
    engine, ids = TorchEngine(model, max_len=10, prefill_chunk=1), tokens(0)
    cache = engine.cache
    engine.prefill(0, ids[:8])
    with pytest.raises(UserError, match="has 11 tokens, the context holds 10"):
        engine.prefill(0, ids[8:11])
    with pytest.raises(UserError, match="3 tokens after 8 are more than the 10"):
        cache.view([0], 3)
    assert cache.length(0) == 8
    assert_near(engine.prefill(0, ids[8:10]), full(model, ids[:10])[-1])
    with pytest.raises(UserError, match="has 11 tokens, the context holds 10"):
        engine.decode([0], [1])
    with pytest.raises(UserError, match="1 tokens after 10"):
        cache.view([0], 1)
    with pytest.raises(ValueError, match="slot 0 holds 10"):
        cache.truncate(0, 11)


def test_learned_positions_end() -> None:
    with pytest.raises(UserError, match="max_len = 33"):
        KVCache(ModelConfig(**SIZES, **KINDS["gpt2"]), max_len=33)
    assert KVCache(ModelConfig(**SIZES), max_len=33).max_len == 33  # rotary goes on
    assert np.all(KVCache(ModelConfig(**SIZES), slots=3).lengths == 0)
