from __future__ import annotations

import math

import pytest
import torch

from mmcli.model.config import ModelConfig
from mmcli.model.rotary import Rotary, rotary_frequencies, rotate


def test_rotation_is_by_position_times_frequency() -> None:
    config = ModelConfig(dim=8, n_heads=1, n_kv_heads=1, rope_theta=100.0)
    x = torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, *Rotary(config)(torch.tensor([[7]])))[0, 0, 0]
    for pair in range(4):
        angle = 7 * 100.0 ** (-2 * pair / 8)
        a, b = float(x[..., pair]), float(x[..., pair + 4])
        assert float(turned[pair]) == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-6)
        assert float(turned[pair + 4]) == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-6)


def test_scores_depend_on_the_distance_only() -> None:
    rotary = Rotary(ModelConfig(dim=32, n_heads=1, n_kv_heads=1))
    q, k = torch.randn(2, 1, 1, 1, 32, generator=torch.Generator().manual_seed(0))

    def score(at_q: int, at_k: int) -> float:
        turned = [rotate(x, *rotary(torch.tensor([[at]]))) for x, at in ((q, at_q), (k, at_k))]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_only_a_share_of_the_head_is_rotated() -> None:
    config = ModelConfig(dim=16, n_heads=2, n_kv_heads=2, rotary_fraction=0.5)
    x = torch.randn(1, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, *Rotary(config)(torch.tensor([[1, 2, 3]])))
    assert torch.equal(turned[..., 4:], x[..., 4:]) and not torch.isclose(turned[..., :4], x[..., :4]).any()


def test_angles_stay_fp32_when_the_model_does_not() -> None:
    config = ModelConfig(dim=64, n_heads=1, n_kv_heads=1)
    positions = torch.tensor([[8191]])
    expected = Rotary(config)(positions)
    for found, wanted in zip(Rotary(config).to(torch.bfloat16)(positions), expected, strict=True):
        assert found.dtype == torch.float32 and torch.equal(found, wanted)
    with torch.device("meta"):
        model = Rotary(config)
    assert torch.equal(model.to_empty(device="cpu")(positions)[0], expected[0])


def test_yarn_keeps_fast_pairs_stretches_slow_ones_and_sharpens() -> None:
    plain = ModelConfig(dim=128, n_heads=1, n_kv_heads=1, rope_theta=1e4)
    values = {"rope_scaling": "yarn", "rope_factor": 4.0, "max_seq_len": 8192}
    stretched = ModelConfig(dim=128, n_heads=1, n_kv_heads=1, rope_theta=1e4, **values)
    assert stretched.original_seq_len == 2048
    before, after = rotary_frequencies(plain)[0], rotary_frequencies(stretched)
    ratio = before / after[0]
    turns = 2048 * before / (2 * math.pi)
    assert torch.allclose(ratio[turns > 40], torch.ones(1)) and torch.allclose(
        ratio[turns < 0.8], torch.full((1,), 4.0)
    )
    assert (ratio.diff() >= -1e-6).all()
    assert after[1] == pytest.approx(0.1 * math.log(4.0) + 1.0)
