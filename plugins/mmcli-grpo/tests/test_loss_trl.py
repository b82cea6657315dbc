"""The loss, its gradient and the advantages against trl's own, on the same log-probabilities; and by hand."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmcli_grpo.loss import VARIANTS, Objective, advantages, kl_losses, policy_losses, reply_weights
from torch import Tensor

B, T, MOST = 6, 7, 9
TRL = {"grpo": "grpo", "dapo": "dapo", "dr_grpo": "dr_grpo", "gspo": "grpo", "cispo": "cispo"}


def tensors(spread: float = 0.4) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(log-probabilities, old ones, those of a reference, advantages, mask with a tool result inside a reply)."""
    generator = torch.Generator().manual_seed(1)
    old = -3.0 * torch.rand(B, T, generator=generator)
    logps = (old + spread * torch.randn(B, T, generator=generator)).requires_grad_()
    reference = old + 0.3 * torch.randn(B, T, generator=generator)
    given = torch.randn(B, generator=generator)
    mask = (torch.arange(T)[None] < torch.tensor([7, 3, 5, 1, 6, 7])[:, None]).float()
    mask[0, 2:4] = 0.0
    return logps, old, reference, given, mask


def ours(logps: Tensor, old: Tensor, reference: Tensor, given: Tensor, mask: Tensor, objective: Objective) -> Tensor:
    """The loss of a step of one micro-batch, as the loop divides it."""
    losses, _ = policy_losses(logps, old, given, mask, objective)
    losses = losses + objective.kl_coef * kl_losses(logps, reference)
    count = mask.sum() if objective.average == "token" else float(len(mask))
    return (losses * mask * reply_weights(mask, objective)).sum() / count


def trl_loss(
    logps: Tensor, old: Tensor, reference: Tensor, given: Tensor, mask: Tensor, name: str, objective: Objective
) -> Tensor:
    """trl's `GRPOTrainer._compute_loss`, given a model that returns these log-probabilities."""
    trainer_module = pytest.importorskip("trl.trainer.grpo_trainer")
    same = lambda x: x  # noqa: E731
    high = 1.0 + objective.clip_high if name == "cispo" else objective.clip_high
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=same, reduce=lambda x, reduction: x, num_processes=1, device="cpu"),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        _get_per_token_logps_and_entropies=lambda *a, **k: (logps, torch.zeros_like(logps), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="sequence" if objective.ratio == "reply" else "token",
        beta=objective.kl_coef,
        loss_type=TRL[name],
        epsilon_low=objective.clip_low,
        epsilon_high=high,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        max_completion_length=objective.max_new_tokens,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    ones = torch.ones(B, T, dtype=torch.int64)
    inputs = {
        "prompt_ids": ones[:, :1],
        "prompt_mask": ones[:, :1],
        "completion_ids": ones,
        "completion_mask": torch.maximum(mask.long(), (mask.cumsum(1) < mask.sum(1, keepdim=True)).long()),
        "tool_mask": mask.long(),
        "advantages": given,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    return trainer_module.GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize("kl_coef", [0.0, 0.05])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_loss_and_gradient_equal_trl(name: str, kl_coef: float) -> None:
    objective = replace(VARIANTS[name], kl_coef=kl_coef, max_new_tokens=MOST)
    mine, *rest = tensors(0.001 if name == "gspo" else 0.4)
    theirs = mine.detach().clone().requires_grad_()
    loss, other = ours(mine, *rest, objective), trl_loss(theirs, *rest, name, objective)
    torch.testing.assert_close(loss, other, atol=1e-6, rtol=1e-6)
    loss.backward()
    other.backward()
    assert mine.grad is not None and mine.grad.abs().sum() > 0
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-7, rtol=1e-6)


def test_the_variants_differ_on_the_same_replies() -> None:
    values = {
        name: ours(*tensors(), replace(objective, max_new_tokens=MOST)).item() for name, objective in VARIANTS.items()
    }
    assert len({round(value, 4) for value in values.values()}) == len(VARIANTS)


def test_advantages_equal_trl_and_are_not_scaled_for_dr_grpo() -> None:
    nanstd = pytest.importorskip("trl.trainer.utils").nanstd
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 2.0]])
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    expected = centred / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    torch.testing.assert_close(advantages(rewards, scaled=True), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(advantages(rewards, scaled=False), centred)
    assert not advantages(rewards, scaled=True)[1].any()


def test_a_ratio_is_clipped_where_it_would_go_further_and_only_there() -> None:
    old = torch.zeros(4, 1)
    logps = torch.tensor([[1.5], [1.5], [0.5], [0.5]]).log().requires_grad_()
    given = torch.tensor([1.0, -1.0, 1.0, -1.0])
    losses, clipped = policy_losses(logps, old, given, torch.ones(4, 1), VARIANTS["dapo"])
    assert clipped.flatten().tolist() == [True, False, False, True]
    torch.testing.assert_close(losses.detach().flatten(), torch.tensor([-1.28, 1.5, -0.5, 0.8]))
    losses.sum().backward()
    assert logps.grad is not None
    assert (logps.grad.flatten() != 0).tolist() == [False, True, True, False]


def test_a_weight_of_cispo_has_no_gradient_and_keeps_clipped_tokens() -> None:
    logps = torch.tensor([[2.0]]).requires_grad_()  # a ratio of e^2, clipped to 5
    losses, clipped = policy_losses(logps, torch.zeros(1, 1), torch.ones(1), torch.ones(1, 1), VARIANTS["cispo"])
    losses.sum().backward()
    assert bool(clipped) and logps.grad is not None
    assert float(logps.grad) == pytest.approx(-5.0)
