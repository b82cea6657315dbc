from __future__ import annotations

import pytest
import torch

from mmcli.model.config import ModelConfig
from mmcli.model.init import init_weights
from mmcli.model.transformer import Transformer

SIZES = {"dim": 64, "n_heads": 4, "vocab_size": 200, "init_std": 0.05}


def test_the_same_seed_gives_the_same_weights_whatever_random_state_there_is() -> None:
    config = ModelConfig(**SIZES, n_layers=2, use_moe=True)
    first = Transformer(config, seed=5)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = Transformer(config, seed=5)
    assert torch.equal(torch.get_rng_state(), state)  # and moves none
    other = Transformer(config, seed=6)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert "norm" in name or not torch.equal(a, c), name


def test_known_values_hold_across_versions_and_machines() -> None:
    model = Transformer(ModelConfig(**SIZES, n_layers=2), seed=0)
    found = model.model.layers[1].self_attn.q_proj.weight[3, :3].tolist()
    assert found == pytest.approx([0.041758, -0.04729, -0.020388], abs=1e-6)


def test_a_layer_keeps_its_weights_when_layers_are_added() -> None:
    shallow, deep = (Transformer(ModelConfig(**SIZES, n_layers=n)) for n in (2, 3))
    for name, parameter in shallow.named_parameters():
        scale = (2 / 3) ** 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
        torch.testing.assert_close(deep.get_parameter(name), parameter * scale)


@pytest.mark.parametrize("use_moe", [False, True])
def test_standard_deviations(use_moe: bool) -> None:
    model = Transformer(ModelConfig(**SIZES, n_layers=8, use_moe=use_moe, qk_norm=True))
    init_weights(model, model.config, 3)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
            continue
        wanted = 0.05 / 4 if "o_proj" in name or "down_proj" in name else 0.05  # sqrt(2 * 8) = 4
        close = 0.2 if parameter.numel() < 1000 else 0.05
        assert parameter.std().item() == pytest.approx(wanted, rel=close), name
        assert abs(parameter.mean().item()) < wanted * 0.2, name


def test_biases_and_norms() -> None:
    config = ModelConfig(**SIZES, n_layers=1, norm="layernorm", bias=True, head_bias=True, position="learned")
    for name, parameter in Transformer(config).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std() > 0.01, name
