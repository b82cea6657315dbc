"""Muon: the same numbers as torch's, in batches, in stacks of experts, and after a resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.stage import Silent
from mmcli.train import muon
from mmcli.train.checkpoint import Progress, load_newest, save_checkpoint
from mmcli.train.config import OptimConfig
from mmcli.train.muon import QUINTIC, RMS, Muon, orthogonalize
from mmcli.train.optim import build_optimizer

SQUARE, WIDE, TALL = (48, 48), (32, 80), (80, 32)
NEARLY_SQUARE = (32, 40)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def newton_schulz(matrix: Tensor) -> Tensor:
    """The iteration as it is published, in fp64."""
    x = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    x = x / x.norm()
    for a, b, c in QUINTIC:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if matrix.shape[0] <= matrix.shape[1] else x.T).float()


def stepped(values: list[Tensor], grads: list[list[Tensor]], **options: Any) -> list[Tensor]:
    """Parameters of these values after a step with each list of gradients."""
    parameters = [nn.Parameter(value.clone()) for value in values]
    optimizer = Muon([{"params": parameters, "muon": True}], lr=0.02, weight_decay=0.1, **options)
    for each in grads:
        for parameter, grad in zip(parameters, each, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


# Orthogonalization


@pytest.mark.parametrize("shape", [SQUARE, WIDE, TALL, NEARLY_SQUARE])
def test_it_is_the_published_iteration(shape: tuple[int, int]) -> None:
    batch = random(3, *shape)
    found = orthogonalize(batch)
    for matrix, mine in zip(batch, found, strict=True):
        torch.testing.assert_close(mine, newton_schulz(matrix), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [WIDE, TALL, NEARLY_SQUARE])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_come_near_1_and_directions_stay(shape: tuple[int, int], scale: float) -> None:
    matrix = random(*shape)
    found = orthogonalize(scale * matrix[None])[0]
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.67
    assert float(values.max()) < 1.21
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.T @ found @ right.T
    torch.testing.assert_close(turned, torch.diag(turned.diagonal()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [WIDE, NEARLY_SQUARE])
def test_nothing_stays_nothing_and_what_nearly_is_stays_small(shape: tuple[int, int]) -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, *shape)), torch.zeros(2, *shape))
    assert float(orthogonalize(1e-14 * random(1, *shape)).abs().max()) < 1e-3


@pytest.mark.parametrize("shape", [SQUARE, WIDE, TALL])
def test_bf16_products_are_close(shape: tuple[int, int]) -> None:
    batch = random(2, *shape)
    found = orthogonalize(batch, dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    exact = orthogonalize(batch)
    assert float((found.float() - exact).norm() / exact.norm()) < 0.05


# The step


@pytest.mark.parametrize("shape", [SQUARE, WIDE, TALL, NEARLY_SQUARE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_steps_as_torchs_muon(shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal in fp32 with the iteration in fp32 on both sides; in bf16, torch's own way, as close as bf16 is."""
    theirs = pytest.importorskip("torch.optim._muon")
    if dtype == torch.float32:
        monkeypatch.setattr(theirs, "_zeropower_via_newtonschulz", lambda grad, *_: newton_schulz(grad))
    value, grads = random(*shape), [random(*shape, seed=step + 1) for step in range(4)]
    parameter = nn.Parameter(value.clone())
    optimizer = torch.optim.Muon([parameter], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    (mine,) = stepped([value], [[grad] for grad in grads], dtype=dtype)
    if dtype == torch.float32:
        torch.testing.assert_close(mine, parameter.detach(), rtol=0, atol=1e-5)
    else:
        change = parameter.detach() - value
        assert float((mine - parameter).detach().norm() / change.norm()) < 0.05


def test_a_batch_steps_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [SQUARE, WIDE, TALL, SQUARE, WIDE, SQUARE, NEARLY_SQUARE]
    values = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
    grads = [[random(*shape, seed=10 * step + i) for i, shape in enumerate(shapes)] for step in (1, 2)]
    together = stepped(values, grads)
    monkeypatch.setattr(muon, "BATCH_ELEMENTS", 2 * 48 * 48)
    in_parts = stepped(values, grads)
    for i, value in enumerate(values):
        (alone,) = stepped([value], [[each[i]] for each in grads])
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-6)
        torch.testing.assert_close(in_parts[i], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [SQUARE, WIDE, TALL])
def test_each_expert_of_a_stack_steps_as_alone(shape: tuple[int, int]) -> None:
    value, grads = random(4, *shape), [random(4, *shape, seed=step) for step in (1, 2)]
    (stack,) = stepped([value], [[grad] for grad in grads])
    for expert in range(4):
        (alone,) = stepped([value[expert]], [[grad[expert]] for grad in grads])
        torch.testing.assert_close(stack[expert], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(128, 128), (128, 384), (384, 128)])
def test_an_update_is_as_large_as_adamws(shape: tuple[int, int]) -> None:
    (found,) = stepped([torch.zeros(shape)], [[random(*shape)]])
    rms = float(found.square().mean().sqrt()) / 0.02
    assert 0.7 * RMS < rms < 1.1 * RMS


def test_matrices_without_a_gradient_stay() -> None:
    still, moved = nn.Parameter(random(8, 8)), nn.Parameter(random(8, 8, seed=1))
    before = still.detach().clone()
    optimizer = Muon([{"params": [still, moved], "muon": True}], lr=0.1)
    moved.square().sum().backward()
    optimizer.step()
    assert torch.equal(still, before) and still not in optimizer.state
    optimizer.zero_grad()
    optimizer.step()


def test_other_groups_step_as_adamw() -> None:
    matrix, vector = random(8, 16), random(16, seed=1)
    pairs = [(nn.Parameter(matrix.clone()), nn.Parameter(vector.clone())) for _ in range(2)]
    mine = Muon([{"params": [pairs[0][0]], "muon": True}, {"params": [pairs[0][1]], "weight_decay": 0.3}], lr=0.02)
    theirs = torch.optim.AdamW([pairs[1][1]], lr=0.02, betas=(0.9, 0.95), weight_decay=0.3, fused=True)
    for step in range(3):
        for pair in pairs:
            pair[0].grad, pair[1].grad = random(8, 16, seed=step), random(16, seed=step)
        mine.step()
        theirs.step()
    assert torch.equal(pairs[0][1], pairs[1][1])
    assert set(mine.state[pairs[0][1]]) == {"step", "exp_avg", "exp_avg_sq"}
    assert set(mine.state[pairs[0][0]]) == {"momentum_buffer"}


# Training with it

CONFIG = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=60, use_moe=True, n_routed_experts=3, tie_embeddings=False
)


def train(model: Transformer, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """The loss of predicting the next of rising numbers, before each step."""
    losses = []
    for step in steps:
        ids_BT = (torch.arange(16) + 7 * step + torch.tensor([[0], [20]])) % 60
        positions_BT = torch.arange(16).expand(2, 16).numpy().copy()
        ctx = AttnContext.from_batch(positions_BT, positions_BT * 0, torch.device("cpu"))
        hidden_BTD, _ = model(ids_BT, ctx)
        logits = model.head(hidden_BTD)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ((ids_BT + 1) % 60).flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_the_loss_falls_and_repeats_exactly() -> None:
    found = []
    for _ in range(2):
        model = Transformer(CONFIG)
        losses = train(model, build_optimizer(model, OptimConfig(optimizer="muon", lr=0.01)), range(30))
        found.append((losses, dict(model.named_parameters())))
    assert found[0][0][-1] < 0.5 * found[0][0][0]
    assert found[0][0] == found[1][0]
    assert all(torch.equal(each, found[1][1][name]) for name, each in found[0][1].items())


def test_it_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    config = OptimConfig(optimizer="muon", lr=0.01)
    model = Transformer(CONFIG)
    optimizer = build_optimizer(model, config)
    train(model, optimizer, range(3))
    save_checkpoint(tmp_path, model, optimizer, Progress(step=3), keep=1)
    losses = train(model, optimizer, range(3, 6))

    resumed = Transformer(CONFIG, seed=1)
    optimizer = build_optimizer(resumed, config)
    assert load_newest(tmp_path, resumed, optimizer, Silent()) == Progress(step=3)
    assert train(resumed, optimizer, range(3, 6)) == losses
    after = dict(resumed.named_parameters())
    assert all(torch.equal(each, after[name]) for name, each in model.named_parameters())


def test_its_state_dict_resumes_too() -> None:
    config = OptimConfig(optimizer="muon", lr=0.01)
    model, other = Transformer(CONFIG), Transformer(CONFIG)
    optimizer = build_optimizer(model, config)
    train(model, optimizer, range(3))
    other.load_state_dict(model.state_dict())
    copied = build_optimizer(other, config)
    copied.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer, range(3, 5)) == train(other, copied, range(3, 5))
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))
