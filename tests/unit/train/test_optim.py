"""Parameter groups: each parameter once, with its decay and its rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmcli.config import ConfigError
from mmcli.model.config import ModelConfig
from mmcli.model.count import tensors
from mmcli.model.transformer import Transformer
from mmcli.train.config import OptimConfig
from mmcli.train.muon import Muon
from mmcli.train.optim import build_optimizer, parameter_groups, role_of, set_learning_rate, undone

SMALL = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 50, "max_seq_len": 64}
MODELS = {
    "dense": ModelConfig(**SMALL),
    "untied": ModelConfig(**SMALL, tie_embeddings=False, head_bias=True),
    "moe": ModelConfig(**SMALL, use_moe=True, n_shared_experts=2),
    "gpt2": ModelConfig(**SMALL, norm="layernorm", position="learned", mlp="gelu_tanh", bias=True),
    "qk-norm": ModelConfig(**SMALL, qk_norm=True, head_dim=16),
    "phi": ModelConfig(**SMALL, parallel_block=True, mlp="gelu", bias=True, tie_embeddings=False, head_bias=True),
}
CONFIG = ModelConfig(dim=16, hidden_dim=24, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=32, head_bias=True)
FACTORS = OptimConfig(optimizer="muon", embedding_lr_factor=2.0, head_lr_factor=3.0, vector_lr_factor=4.0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_parameter_is_in_one_group(name: str, optimizer: str) -> None:
    model = Transformer(MODELS[name])
    config = OptimConfig(optimizer=optimizer)  # type: ignore[arg-type]
    found = [id(p) for group in build_optimizer(model, config).param_groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_muon_takes_the_hidden_matrices_and_nothing_else(name: str) -> None:
    model = Transformer(MODELS[name])
    taken = {id(p) for group in parameter_groups(model, FACTORS) if group["muon"] for p in group["params"]}
    rest = [key for key, p in model.named_parameters() if id(p) not in taken]
    assert {key.split(".")[-2] for key in rest if not key.endswith("bias") and "norm" not in key} <= {
        "embed_tokens", "embed_positions", "lm_head", "gate"
    }  # fmt: skip
    hidden = sum(t.numel * t.copies for t in tensors(MODELS[name]) if t.is_hidden)
    assert sum(p.numel() for p in model.parameters() if id(p) in taken) == hidden


def test_vectors_do_not_decay_and_each_role_has_its_rate() -> None:
    model = Transformer(ModelConfig(**SMALL, use_moe=True, tie_embeddings=False, head_bias=True))
    optimizer = build_optimizer(model, FACTORS)
    set_learning_rate(optimizer, 0.1)
    expected = {"hidden": 1.0, "embedding": 2.0, "head": 3.0, "vector": 4.0, "other": 1.0}
    roles = {id(p): role_of(name, p) for name, p in model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        (role,) = {roles[id(p)] for p in group["params"]}
        seen.add(role)
        assert group["lr"] == pytest.approx(0.1 * expected[role])
        assert group["weight_decay"] == (0.0 if role == "vector" else FACTORS.weight_decay)
    assert seen == set(expected)


def test_a_rate_factor_reaches_the_step() -> None:
    moved = []
    for factor in (1.0, 0.5):
        model = Transformer(MODELS["dense"])
        before = model.head_weight.detach().clone()
        optimizer = build_optimizer(model, OptimConfig(weight_decay=0.0, embedding_lr_factor=factor))
        set_learning_rate(optimizer, 0.01)
        model.head_weight.sum().backward()
        optimizer.step()
        moved.append(model.head_weight.detach() - before)
    torch.testing.assert_close(moved[1], 0.5 * moved[0], rtol=1e-3, atol=1e-7)


def test_what_an_adapter_adds_and_a_foreign_layer_take_adamw() -> None:
    matrix = torch.zeros(4, 4)
    assert role_of("model.layers.0.self_attn.q_proj.lora_A", matrix) == "other"
    assert role_of("weight", matrix) == "other"
    assert role_of("model.layers.0.self_attn.q_proj.weight", matrix) == "hidden"
    optimizer = build_optimizer(nn.Linear(4, 1), OptimConfig(optimizer="muon"))
    assert isinstance(optimizer, Muon) and not any(group["muon"] for group in optimizer.param_groups)


def test_frozen_parameters_are_left_out() -> None:
    model = Transformer(MODELS["dense"])
    model.model.embed_tokens.requires_grad_(False)
    groups = build_optimizer(model, FACTORS).param_groups
    assert all(p is not model.head_weight for group in groups for p in group["params"])


@pytest.mark.parametrize("name", ["embedding_lr_factor", "head_lr_factor", "vector_lr_factor", "momentum"])
def test_negative_factors_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"optim.{name} = -1.0"):
        OptimConfig(**{name: -1.0})  # type: ignore[arg-type]


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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_undone_steps_leave_no_trace(optimizer: str, steps_before: int) -> None:
    found = []
    for trials in (0, 3):
        model = Transformer(MODELS["moe"])
        made = build_optimizer(model, OptimConfig(optimizer=optimizer, lr=0.1))  # type: ignore[arg-type]
        for _ in range(steps_before):
            step(model, made)
        kept = {id(p): {key: value.clone() for key, value in made.state[p].items()} for p in list(made.state)}
        before = [p.detach().clone() for p in model.parameters()]
        with undone(made):
            for _ in range(trials):
                step(model, made)
            moved = any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
            assert moved == (trials > 0)
        assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
        assert {id(p) for p in made.state} == set(kept)
        assert all(torch.equal(kept[id(p)][key], value) for p in made.state for key, value in made.state[p].items())
        step(model, made)
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_steps_are_undone_after_an_error_too() -> None:
    model = Transformer(MODELS["dense"])
    optimizer = build_optimizer(model, FACTORS)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError), undone(optimizer):
        step(model, optimizer)
        raise RuntimeError
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)) and not optimizer.state


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """An update with gradients that repeat."""
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    optimizer.step()
