"""A new model that begins as the bigram model of its data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.train.bigrams import DISCOUNT, Bigrams, can_start_from_bigrams, fit_bigrams, fitting_flops

V = 48
SMALL: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": V, "max_seq_len": 64}
MIXTURE: dict[str, Any] = {"use_moe": True, "n_routed_experts": 4, "num_experts_per_tok": 2}


def chain(length: int = 20_000) -> np.ndarray:
    """A text in which each token has three likely successors."""
    draws = np.random.default_rng(0)
    successors = draws.integers(0, V, (V, 3))
    ids = [0]
    for choice in draws.choice(3, length, p=[0.6, 0.3, 0.1]):
        ids.append(int(successors[ids[-1], choice]))
    return np.array(ids)


def bigrams(ids: np.ndarray) -> Bigrams:
    return Bigrams.count([(ids[:-1], ids[1:])], V)


def test_pairs_are_counted_and_labels_that_do_not_train_are_not() -> None:
    tokens, following = np.array([[1, 2, 1], [1, 2, 0]]), np.array([[2, 1, 2], [3, -100, 0]])
    found = Bigrams.count([(tokens[:1], following[:1]), (tokens[1:], following[1:])], 4)
    assert found.offsets.tolist() == [0, 1, 3, 4, 4] and found.vocab_size == 4
    assert found.successors.tolist() == [0, 2, 3, 1] and found.counts.tolist() == [1, 2, 1, 1]
    assert found.frequencies().tolist() == [1, 3, 1, 0]


def test_targets_are_interpolated_kneser_ney() -> None:
    found = bigrams(np.array([0, 1, 0, 1, 0, 2, 3, 0, 1]))
    ends = found.continuation()
    assert float(ends.sum()) == pytest.approx(1.0) and float(ends.min()) > 0
    targets_RV = found.targets(torch.tensor([0, 2, V - 1]), ends)
    torch.testing.assert_close(targets_RV.sum(dim=1), torch.ones(3))
    left = DISCOUNT * 2 / 4  # token 0: three times 1, once 2
    assert float(targets_RV[0, 1]) == pytest.approx((3 - DISCOUNT) / 4 + left * float(ends[1]), rel=1e-5)
    assert float(targets_RV[0, 2]) == pytest.approx((1 - DISCOUNT) / 4 + left * float(ends[2]), rel=1e-5)
    assert float(targets_RV[0, 5]) == pytest.approx(left * float(ends[5]), rel=1e-5)
    torch.testing.assert_close(targets_RV[2], ends)  # a token that nothing follows


@pytest.mark.parametrize("change", [{}, MIXTURE, {"tie_embeddings": False, "qk_norm": True}, {"mlp": "gelu"}])
def test_a_new_model_predicts_as_the_counts_do_and_from_one_token_alone(change: dict[str, Any]) -> None:
    ids = chain()
    counts = bigrams(ids)
    model = Transformer(ModelConfig(**{**SMALL, **change}), seed=0)
    loss = fit_bigrams(model, counts, seed=0)
    everything = torch.arange(V)
    targets_VV, weights_V = counts.targets(everything, counts.continuation()), counts.frequencies() / (len(ids) - 1)
    entropy = float(-(targets_VV * targets_VV.log()).sum(dim=1) @ weights_V)
    assert entropy - 1e-4 < loss < entropy + 0.1 < math.log(V) - 1.0

    given = torch.from_numpy(ids[None, :40])
    with torch.no_grad():
        hidden_BTD, _ = model.eval()(given, AttnContext.causal(1, 40))
        logps_TV = model.head(hidden_BTD)[0].log_softmax(dim=-1)
    for token in set(ids[:40].tolist()):
        same = logps_TV[given[0] == token]
        torch.testing.assert_close(same, same[:1].expand_as(same), atol=1e-4, rtol=1e-4)
    assert float(-logps_TV[torch.arange(39), given[0, 1:]].mean()) < math.log(V) - 1.0


def test_the_start_is_that_of_the_seed() -> None:
    counts = bigrams(chain(2000))
    first, second, other = (Transformer(ModelConfig(**SMALL), seed=0) for _ in range(3))
    for model, seed in ((first, 0), (second, 0), (other, 1)):
        fit_bigrams(model, counts, seed=seed)
    assert torch.equal(first.head_weight, second.head_weight) and not torch.equal(first.head_weight, other.head_weight)


@pytest.mark.parametrize("change", [{"position": "learned"}, {"parallel_block": True}, {"vocab_size": 2**17}])
def test_other_shapes_do_not_start_so(change: dict[str, Any]) -> None:
    config = ModelConfig(**{**SMALL, **change})
    assert not can_start_from_bigrams(config) and fitting_flops(config) > 0
    if "vocab_size" not in change:
        with pytest.raises(ValueError, match="rotary"):
            fit_bigrams(Transformer(config), bigrams(chain(100)), seed=0)
