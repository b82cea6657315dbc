"""MiniMind2 as published, written out here from its description, against our model: dense and MoE.

RMSNorm, rotary with base 1e6 on half-split pairs, grouped-query attention with 8 query and 2 key heads, SwiGLU
w2(silu(w1 x) * w3 x), tied embeddings, no biases; MoE: softmax router, 2 of 4 experts renormalised, one shared expert.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.formats.families import MINIMIND
from mmcli.model.formats.parameters import disk_tensors
from mmcli.model.transformer import Transformer

D, H, K, d, EPS = 64, 8, 2, 8, 1e-5


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt()


def turn(x: Tensor) -> Tensor:
    """Position t turns the pair (i, i + d/2) by t * 1e6^(-2i/d), as complex numbers."""
    T = x.shape[1]
    angles = torch.outer(torch.arange(T).float(), 1e6 ** (-torch.arange(0, d, 2).float() / d))
    turned = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


def swiglu(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    inner = F.silu(x @ p[f"{name}.gate_proj.weight"].t()) * (x @ p[f"{name}.up_proj.weight"].t())
    return inner @ p[f"{name}.down_proj.weight"].t()


def moe(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    scores = (x @ p[f"{name}.gate.weight"].t()).softmax(-1)
    best, chosen = scores.topk(2, dim=-1)
    best = best / (best.sum(-1, keepdim=True) + 1e-20)
    out = swiglu(x, p, f"{name}.shared_experts.0")
    for e in range(4):
        weight = (best * (chosen == e)).sum(-1, keepdim=True)
        out = out + weight * swiglu(x, p, f"{name}.experts.{e}")
    return out


def minimind2(p: dict[str, Tensor], ids: Tensor, n_layers: int, use_moe: bool) -> Tensor:
    x = p["model.embed_tokens.weight"][ids]
    B, T = ids.shape
    for n in range(n_layers):
        at = f"model.layers.{n}"
        h = rms(x, p[f"{at}.input_layernorm.weight"])
        q, k, v = ((h @ p[f"{at}.self_attn.{each}_proj.weight"].t()).view(B, T, -1, d) for each in "qkv")
        q, k = turn(q), turn(k)
        k, v = (each.repeat_interleave(H // K, dim=2) for each in (k, v))
        scores = torch.einsum("bthd,bshd->bhts", q, k) / d**0.5 + torch.full((T, T), float("-inf")).triu(1)
        out = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).reshape(B, T, H * d)
        x = x + out @ p[f"{at}.self_attn.o_proj.weight"].t()
        h = rms(x, p[f"{at}.post_attention_layernorm.weight"])
        x = x + (moe if use_moe else swiglu)(h, p, f"{at}.mlp")
    return rms(x, p["model.norm.weight"]) @ p["model.embed_tokens.weight"].t()


@pytest.mark.parametrize("use_moe", [False, True])
def test_our_model_is_minimind2(use_moe: bool) -> None:
    config = ModelConfig(dim=D, n_layers=3, n_heads=H, n_kv_heads=K, vocab_size=100, use_moe=use_moe, init_std=0.15)
    model = Transformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    tensors = disk_tensors(model.state_dict(), config, MINIMIND.layout)
    ids = torch.randint(0, 100, (2, 17), generator=torch.Generator().manual_seed(0))
    logits = model.head(model(ids, AttnContext.causal(2, 17))[0])
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, minimind2(tensors, ids, 3, use_moe), atol=1e-5, rtol=1e-5)
