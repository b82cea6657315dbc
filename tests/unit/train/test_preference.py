"""DPO over a micro-batch: the loss of the paper, counted by pairs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmcli.data.pack.batches import Batch
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.train.preference import PREFERENCE_METRICS, PairBatch, dpo_losses, preference_loss, sequence_logps

CONFIG = ModelConfig(dim=16, hidden_dim=24, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=32, init_std=0.2)
REFERENCE = np.array([[-9.0, -8.0], [-7.5, -9.5], [-8.0, -8.0]], dtype=np.float32)


def pairs(config: ModelConfig = CONFIG) -> PairBatch:
    """Three pairs of 8 tokens, of which the last 4 are replies; the last row is half padding."""
    ids = np.random.default_rng(0).integers(0, 32, (6, 9))
    labels, segments = ids[:, 1:].copy(), np.zeros((6, 8), dtype=np.int64)
    labels[:, :4] = -100
    labels[5, 6:], segments[5, 6:] = -100, -1
    positions = np.tile(np.arange(8), (6, 1))
    return PairBatch.from_batch(Batch(ids[:, :-1].copy(), labels, positions, segments), REFERENCE, config)


def test_a_pair_counts_once_and_padding_not_at_all() -> None:
    batch = pairs()
    assert batch.counts == {"dpo_loss": 3.0} and batch.tokens == 6 * 8 - 2
    assert pairs(replace(CONFIG, use_moe=True)).counts == {"dpo_loss": 3.0, "balance": 6.0}
    assert pairs(replace(CONFIG, use_moe=True, seq_aux=False)).counts == {"dpo_loss": 3.0, "balance": 1.0}


def test_a_batch_moves_with_its_reference() -> None:
    moved = pairs().to(torch.device("meta"))
    assert moved.reference_P2.is_meta and moved.rows.ids_BT.is_meta and moved.rows.ctx.positions_BT.is_meta
    assert moved.counts == pairs().counts


def test_the_log_probability_of_a_reply_is_the_sum_over_its_tokens() -> None:
    model, batch = Transformer(CONFIG), pairs()
    with torch.no_grad():
        logps_P2, stats = sequence_logps(model, batch)
        logps_BTV = model.head(model(batch.rows.ids_BT, batch.rows.ctx)[0]).log_softmax(-1)
    assert stats is None
    for row in range(6):
        labels = batch.rows.labels_BT[row].tolist()
        expected = sum(float(logps_BTV[row, t, label]) for t, label in enumerate(labels) if label >= 0)
        assert float(logps_P2[row // 2, row % 2]) == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_that_of_the_paper() -> None:
    logps = torch.tensor([[-5.0, -6.0], [-7.0, -6.5], [-8.0, -8.0]])
    losses, margins = dpo_losses(logps, torch.from_numpy(REFERENCE), 0.1, 0.0)
    by_hand = [0.1 * ((-5 + 9) - (-6 + 8)), 0.1 * ((-7 + 7.5) - (-6.5 + 9.5)), 0.0]
    assert margins.tolist() == pytest.approx(by_hand)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-margin)) for margin in by_hand])
    smoothed, _ = dpo_losses(logps, torch.from_numpy(REFERENCE), 0.1, 0.2)
    expected = [0.8 * math.log(1 + math.exp(-m)) + 0.2 * math.log(1 + math.exp(m)) for m in by_hand]
    assert smoothed.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("use_moe", [False, True])
def test_terms_and_metrics_of_a_micro_batch(use_moe: bool) -> None:
    config = replace(CONFIG, use_moe=use_moe)
    model, batch = Transformer(config), pairs(config)
    out = preference_loss(model, batch, config, beta=0.1, label_smoothing=0.0)
    with torch.no_grad():
        logps_P2, _ = sequence_logps(model, batch)
    ratios = logps_P2 - batch.reference_P2
    margins = 0.1 * (ratios[:, 0] - ratios[:, 1])
    torch.testing.assert_close(out.terms["dpo_loss"].sum.detach(), -F.logsigmoid(margins).sum())
    torch.testing.assert_close(out.metrics["margin"].sum.detach(), margins.sum())
    assert float(out.metrics["accuracy"].sum) == int((margins > 0).sum())
    torch.testing.assert_close(out.metrics["chosen_logp"].sum.detach(), logps_P2[:, 0].sum())
    assert {name: term.count for name, term in out.terms.items()} == batch.counts
    assert all(term.count == 3 for term in out.metrics.values())
    assert {metric.name for metric in PREFERENCE_METRICS} <= {*out.terms, *out.metrics}
    if use_moe:
        assert out.terms["balance"].coef == config.aux_loss_alpha
    out.terms["dpo_loss"].sum.backward()
    assert all(each.grad is not None for each in model.parameters())
