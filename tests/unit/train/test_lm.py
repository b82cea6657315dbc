from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmcli.cli.progress import step_line
from mmcli.data.pack.batches import Batch
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.train.lm import TokenBatch, language_model_loss, language_model_metrics

CONFIG = ModelConfig(dim=16, hidden_dim=24, n_heads=2, n_kv_heads=1, n_layers=2, vocab_size=32, use_moe=True)


def padded_batch() -> TokenBatch:
    ids = np.random.default_rng(0).integers(0, 32, (2, 12))
    labels, segments = ids.copy(), np.zeros_like(ids)
    labels[1, 5:], segments[1, 5:] = -100, -1
    positions = np.tile(np.arange(12), (2, 1))
    return TokenBatch.from_batch(Batch(ids, labels, positions, segments), CONFIG)


def test_what_the_routers_did_is_counted_over_real_tokens() -> None:
    model, batch = Transformer(CONFIG), padded_batch()
    _, stats = model(batch.ids_BT, batch.ctx)
    assert stats is not None and stats.load_LE.sum(dim=1).tolist() == [17 * 2, 17 * 2]
    metrics = {name: term.sum / term.count for name, term in language_model_loss(model, batch, CONFIG).metrics.items()}
    share_LE = stats.load_LE / 34
    entropy = -(share_LE * share_LE.clamp(min=1e-9).log()).sum(dim=1).mean() / math.log(4)
    torch.testing.assert_close(metrics["expert_load"], share_LE.mean(dim=0))
    torch.testing.assert_close(metrics["expert_entropy"], entropy)
    assert float(metrics["expert_dropped"]) == 0.0


def test_choices_that_no_expert_computed_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmcli.model import moe

    computed = moe.balance_loss

    def lossy(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        balance, load_E = computed(*arguments)  # type: ignore[arg-type]  # whatever it takes
        return balance, load_E // 2

    monkeypatch.setattr(moe, "balance_loss", lossy)
    term = language_model_loss(Transformer(CONFIG), padded_batch(), CONFIG).metrics["expert_dropped"]
    assert 0.5 <= float(term.sum / term.count) < 0.6


def test_the_line_of_a_step_with_many_experts_fits() -> None:
    values = {"step": 31_000, "steps": 80_000, "loss": 1.853, "tokens_per_second": 9_999.0, "mfu": 0.45}
    routers = {"expert_load": [1 / 64] * 64, "expert_entropy": 1.0, "expert_dropped": 0.0}
    line = step_line({**values, **routers, "eta_seconds": 86_000.0}, language_model_metrics(CONFIG))
    assert "experts 2-2% H1.00 drop 0" in line and len(line) <= 80


@pytest.mark.parametrize("moe", [False, True])
def test_logits_of_labelled_tokens_alone_give_the_same_gradient(monkeypatch: pytest.MonkeyPatch, moe: bool) -> None:
    config = ModelConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=64, max_seq_len=32, use_moe=moe)
    draws = np.random.default_rng(0)
    ids = draws.integers(0, 64, (3, 16))
    labels = np.where(draws.random((3, 16)) < 0.4, draws.integers(0, 64, (3, 16)), -100)
    positions = np.tile(np.arange(16), (3, 1))
    found = []
    for nearly_all in (0.9, 0.0):
        monkeypatch.setattr("mmcli.train.lm.NEARLY_ALL", nearly_all)
        batch = TokenBatch.from_batch(Batch(ids, labels, positions, np.zeros_like(positions)), config)
        assert (batch.labelled_N is None) == (nearly_all == 0.0)
        model = Transformer(config, seed=1)
        out = language_model_loss(model, batch.to(torch.device("cpu")), config)
        out.terms["loss"].sum.backward()
        found.append((out.terms["loss"], [p.grad for p in model.parameters() if p.grad is not None]))
    (one, gradients), (other, expected) = found
    assert one.count == other.count == (labels >= 0).sum()
    torch.testing.assert_close(one.sum, other.sum)
    for each, plain in zip(gradients, expected, strict=True):
        torch.testing.assert_close(each, plain, rtol=1e-4, atol=1e-6)
