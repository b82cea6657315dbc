from __future__ import annotations

import torch

from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.train.config import OptimConfig
from mmcli.train.optim import build_optimizer

CONFIG = ModelConfig(dim=16, hidden_dim=24, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=32, head_bias=True)


def test_matrices_decay_and_norms_and_biases_do_not() -> None:
    model = Transformer(CONFIG)
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    for each in model.parameters():
        each.grad = torch.zeros_like(each)
    optimizer.step()
    for name, each in model.named_parameters():
        share = 0.95 if each.dim() >= 2 else 1.0  # 1 - lr * weight_decay
        torch.testing.assert_close(each.detach(), before[name] * share, msg=lambda text, name=name: f"{name}: {text}")
    assert {name for name, each in before.items() if each.dim() < 2} == {
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.norm.weight",
        "lm_head.bias",
    }


def test_frozen_parameters_are_not_optimized() -> None:
    model = Transformer(CONFIG).requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)  # type: ignore[union-attr]
    (group,) = build_optimizer(model, OptimConfig()).param_groups
    assert len(group["params"]) == 1 and group["params"][0] is model.model.layers[0].mlp.up_proj.weight  # type: ignore[union-attr]


def test_a_first_step_is_adam_with_the_given_numbers() -> None:
    weight = torch.nn.Linear(1, 1, bias=False)
    config = OptimConfig(lr=0.01, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-3)
    optimizer = build_optimizer(weight, config)
    with torch.no_grad():
        weight.weight.fill_(2.0)
    weight.weight.grad = torch.full((1, 1), 0.5)
    optimizer.step()  # the bias-corrected moments of a first step are g and g^2
    assert abs(float(weight.weight.detach()) - (2.0 * (1 - 0.01 * 0.1) - 0.01 * 0.5 / (0.5 + 1e-3))) < 1e-6
