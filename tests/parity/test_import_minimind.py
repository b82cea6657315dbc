"""Imported MiniMind checkpoints compute what MiniMind computes, written out here from its description.

Both namings, dense and mixture, fp32 and fp16. Until 2025-04 rotary turns neighbouring features as complex numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcli.config import parse_set
from mmcli.model.attention import AttnContext
from mmcli.model.formats.read import read_model
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

V, D, H, K, d, FFN, LAYERS = 400, 64, 8, 2, 8, 96, 2
OLD = {
    "embed": "tok_embeddings", "norm": "norm", "head": "output", "layers": "layers", "first": "attention_norm",
    "second": "ffn_norm", "q": "attention.wq", "k": "attention.wk", "v": "attention.wv", "o": "attention.wo",
    "ffn": "feed_forward", "gate": "w1", "up": "w3", "down": "w2", "shared": "feed_forward.shared_experts",
}  # fmt: skip
NEW = {
    "embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head", "layers": "model.layers",
    "first": "input_layernorm", "second": "post_attention_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
    "v": "self_attn.v_proj", "o": "self_attn.o_proj", "ffn": "mlp", "gate": "gate_proj", "up": "up_proj",
    "down": "down_proj", "shared": "mlp.shared_experts.0",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["Hello, how are you today?", "The rain falls."] * 3, vocab_size=350)


def random_state(names: dict[str, str], use_moe: bool, qk_norm: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(3)

    def matrix(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=made) * 0.15).to(dtype)

    def norm(width: int) -> Tensor:
        return (torch.rand(width, generator=made) + 0.5).to(dtype)

    state = {f"{names['embed']}.weight": matrix(V, D)}
    for n in range(LAYERS):
        at = f"{names['layers']}.{n}."
        shapes = {"q": (H * d, D), "k": (K * d, D), "v": (K * d, D), "o": (D, H * d)}
        state |= {f"{at}{names[each]}.weight": matrix(*shape) for each, shape in shapes.items()}
        state |= {f"{at}{names[each]}.weight": norm(D) for each in ("first", "second")}
        if qk_norm:
            state |= {f"{at}self_attn.{each}_norm.weight": norm(d) for each in "qk"}
        ffns = [f"{at}{names['ffn']}"]
        if use_moe:
            state[f"{at}{names['ffn']}.gate.weight"] = matrix(4, D)
            ffns = [f"{at}{names['ffn']}.experts.{e}" for e in range(4)] + ([] if qk_norm else [at + names["shared"]])
        for prefix in ffns:
            state |= {f"{prefix}.{names[each]}.weight": matrix(FFN, D) for each in ("gate", "up")}
            state[f"{prefix}.{names['down']}.weight"] = matrix(D, FFN)
    state[f"{names['norm']}.weight"] = norm(D)
    state[f"{names['head']}.weight"] = state[f"{names['embed']}.weight"]
    return state


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def turn(x: Tensor, neighbours: bool) -> Tensor:
    """Position t turns pair i by t * 1e6^(-2i/d): features (2i, 2i + 1), or (i, i + d/2)."""
    angles = torch.outer(torch.arange(x.shape[1]).double(), 1e6 ** (-torch.arange(0, d, 2).double() / d))
    pairs = x.unflatten(-1, (-1, 2)) if neighbours else torch.stack(x.chunk(2, dim=-1), dim=-1)
    turned = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles)[:, None]
    parts = torch.view_as_real(turned)
    return parts.flatten(-2) if neighbours else torch.cat(parts.unbind(-1), dim=-1)


def swiglu(x: Tensor, p: dict[str, Tensor], prefix: str, names: dict[str, str]) -> Tensor:
    gate, up, down = (p[f"{prefix}.{names[each]}.weight"].t() for each in ("gate", "up", "down"))
    return (F.silu(x @ gate) * (x @ up)) @ down


def moe(x: Tensor, p: dict[str, Tensor], at: str, names: dict[str, str], qk_norm: bool) -> Tensor:
    scores = (x @ p[f"{at}{names['ffn']}.gate.weight"].t()).softmax(-1)
    best, chosen = scores.topk(1 if qk_norm else 2, dim=-1)
    best = best / (best.sum(-1, keepdim=True) + 1e-20)
    out = 0 if qk_norm else swiglu(x, p, at + names["shared"], names)
    for e in range(4):
        weight = (best * (chosen == e)).sum(-1, keepdim=True)
        out = out + weight * swiglu(x, p, f"{at}{names['ffn']}.experts.{e}", names)
    return out


def minimind(p: dict[str, Tensor], ids: Tensor, names: dict[str, str], use_moe: bool, qk_norm: bool) -> Tensor:
    p = {name: tensor.double() for name, tensor in p.items()}
    eps = 1e-6 if qk_norm else 1e-5
    x = p[f"{names['embed']}.weight"][ids]
    B, T = ids.shape
    for n in range(LAYERS):
        at = f"{names['layers']}.{n}."
        h = rms(x, p[f"{at}{names['first']}.weight"], eps)
        q, k, v = ((h @ p[f"{at}{names[each]}.weight"].t()).view(B, T, -1, d) for each in "qkv")
        if qk_norm:
            q, k = rms(q, p[f"{at}self_attn.q_norm.weight"], eps), rms(k, p[f"{at}self_attn.k_norm.weight"], eps)
        q, k = turn(q, names is OLD), turn(k, names is OLD)
        k, v = (each.repeat_interleave(H // K, dim=2) for each in (k, v))
        scores = torch.einsum("bthd,bshd->bhts", q, k) / d**0.5 + torch.full((T, T), float("-inf")).triu(1)
        mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).reshape(B, T, H * d)
        x = x + mixed @ p[f"{at}{names['o']}.weight"].t()
        h = rms(x, p[f"{at}{names['second']}.weight"], eps)
        ffn = moe(h, p, at, names, qk_norm) if use_moe else swiglu(h, p, at + names["ffn"], names)
        x = x + ffn
    return rms(x, p[f"{names['norm']}.weight"], eps) @ p[f"{names['head']}.weight"].t()


CASES: dict[str, tuple[dict[str, str], bool, bool]] = {
    "first names, dense": (OLD, False, False),
    "first names, moe": (OLD, True, False),
    "second names, dense": (NEW, False, False),
    "second names, moe": (NEW, True, False),
    "minimind-3": (NEW, False, True),
    "minimind-3-moe": (NEW, True, True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_imported_checkpoint_is_minimind(
    case: str, dtype: torch.dtype, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    names, use_moe, qk_norm = CASES[case]
    state: dict[str, Any] = random_state(names, use_moe, qk_norm, dtype)
    tables = {"pos_cis": torch.ones(4, 4), "layers.0.attention.mask": torch.ones(1, 1, 4, 4)} if names is OLD else {}
    torch.save({f"_orig_mod.{name}": each for name, each in {**state, **tables}.items()}, tmp_path / "full_sft.pth")
    found = read_model(tmp_path / "full_sft.pth", tokenizer=tokenizer, settings=parse_set([f"model.n_heads={H}"]))
    assert all(parameter.dtype == dtype for parameter in found.model.parameters())
    model = found.model.float()
    ids = torch.randint(0, V, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.head(model(ids, AttnContext.causal(2, 17))[0])
    expected = minimind(state, ids, names, use_moe, qk_norm).float()
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
