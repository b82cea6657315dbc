"""The DPO loss against trl's own, on the same log-probabilities."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmcli.train.preference import dpo_losses

trl = pytest.importorskip("trl")


def trl_loss(logps_P2: Tensor, reference_P2: Tensor, *, loss_type: str, beta: float, label_smoothing: float) -> Tensor:
    """trl's `DPOTrainer._compute_loss`, given a model that returns these log-probabilities."""
    from trl.trainer.dpo_trainer import DPOTrainer

    pairs = len(logps_P2)
    logps = torch.cat([logps_P2[:, 0], logps_P2[:, 1]])[:, None]
    model = SimpleNamespace(training=True, config=SimpleNamespace())
    trainer: Any = SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
        ),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    ones = torch.ones(2 * pairs, 1)
    outputs = SimpleNamespace(log_probs=logps, entropy=ones, mean_logits=ones, is_top1=ones.bool())
    inputs = {
        "input_ids": torch.zeros(2 * pairs, 2, dtype=torch.int64),
        "attention_mask": torch.ones(2 * pairs, 2, dtype=torch.int64),
        "completion_mask": torch.tensor([[0, 1]] * (2 * pairs)),
        "ref_chosen_logps": reference_P2[:, 0],
        "ref_rejected_logps": reference_P2[:, 1],
    }
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)


def tensors(seed: int, pairs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = -100.0 * torch.rand(pairs, 2, generator=generator)
    return (reference + 5.0 * torch.randn(pairs, 2, generator=generator)).requires_grad_(), reference


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_the_sigmoid_loss_and_its_gradient_equal_trl(beta: float) -> None:
    ours, reference = tensors(0, 16)
    theirs = ours.detach().clone().requires_grad_()
    mine = dpo_losses(ours, reference, beta, 0.0)[0].mean()
    other = trl_loss(theirs, reference, loss_type="sigmoid", beta=beta, label_smoothing=0.0)
    torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
    mine.backward()
    other.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_the_smoothed_loss_equals_trl(smoothing: float) -> None:
    """trl smooths so in `aot`, whose sorting does nothing to a single pair."""
    for seed in range(8):
        logps, reference = tensors(seed, 1)
        mine = dpo_losses(logps, reference, 0.1, smoothing)[0].mean()
        other = trl_loss(logps, reference, loss_type="aot", beta=0.1, label_smoothing=smoothing)
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)


def test_at_the_reference_the_loss_is_ln_2() -> None:
    _, reference = tensors(1, 4)
    losses, margins = dpo_losses(reference, reference, 0.1, 0.0)
    torch.testing.assert_close(losses, torch.full((4,), 2.0).log())
    assert not margins.any()
