"""The loss of tokens: by a model, by an engine, and what follows from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmcli.evaluation.loss import (
    TextLoss,
    TokenLosses,
    document_batches,
    engine_losses,
    model_losses,
    sum_losses,
)
from mmcli.generate.engine import PromptTooLong
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer

CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, vocab_size=60, max_seq_len=64, init_std=0.2)
DOCUMENTS = [list(range(3, 30)), [7, 8], [1], [59, 0, 59, 0, 5]]


@pytest.fixture
def model() -> Transformer:
    return Transformer(CONFIG, seed=5).eval()


def test_the_loss_of_a_model_is_the_cross_entropy(model: Transformer) -> None:
    longer = [ids for ids in DOCUMENTS if len(ids) > 1]
    for ids, found in zip(longer, model_losses(model, document_batches(DOCUMENTS)), strict=True):
        assert found.labels_N.tolist() == ids[1:] and found.nats_N.dtype == np.float64
        with torch.no_grad():
            hidden, _ = model(torch.tensor([ids]), AttnContext.causal(1, len(ids)))
            expected = F.cross_entropy(model.head(hidden)[0, :-1], torch.tensor(ids[1:]), reduction="none")
        np.testing.assert_allclose(found.nats_N, expected.numpy(), rtol=1e-5)


def test_an_engine_gives_the_losses_of_its_model(model: Transformer) -> None:
    engine = TorchEngine(model, slots=2, max_len=40)
    engine.prefill(0, [9, 9, 9])  # what the slot held does not count
    by_engine = [each for each in engine_losses(engine, DOCUMENTS) if len(each.labels_N)]
    assert len(by_engine) == 3
    for one, other in zip(by_engine, model_losses(model, document_batches(DOCUMENTS)), strict=True):
        assert one.labels_N.tolist() == other.labels_N.tolist()
        np.testing.assert_allclose(one.nats_N, other.nats_N, rtol=1e-4, atol=1e-5)
    with pytest.raises(PromptTooLong):
        list(engine_losses(engine, [[1] * 42]))
    assert len(next(engine_losses(engine, [[1] * 41])).nats_N) == 40


def test_what_follows_from_the_losses() -> None:
    parts = [
        TokenLosses(np.array([0, 2]), np.array([0.5, 1.5])),
        TokenLosses(np.array([1]), np.array([2.0])),
    ]
    found = sum_losses(parts, np.array([0, 3, 1]))  # id 0 is a control token: no bytes
    assert found == TextLoss(nats=4.0, tokens=3, text_nats=3.5, bytes=4)
    assert found.loss == pytest.approx(4 / 3) and found.perplexity == pytest.approx(math.exp(4 / 3))
    assert found.bits_per_byte == pytest.approx(3.5 / math.log(2) / 4)
    assert sum_losses(parts) == TextLoss(nats=4.0, tokens=3)


def test_of_nothing_there_is_no_loss() -> None:
    assert math.isnan(sum_losses([]).loss) and math.isnan(sum_losses([]).perplexity)
    assert TextLoss(nats=1e6, tokens=1).perplexity == math.exp(700)
