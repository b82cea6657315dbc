from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcli.model import attention, documents
from mmcli.model.attention import AttentionPlan, AttnContext, choose_kernel, plan_attention
from mmcli.model.config import ModelConfig
from mmcli.model.documents import document_attention
from mmcli.model.transformer import Transformer

SEGMENTS = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2, -1], [0, 0, 0, 0, 0, 0, 0, -1, -1, -1]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]])
PADDED = np.array([[3, 3, 3, 3, 3, 3, 3, 3, 3, -1], [0, 0, 0, 0, 0, 0, 0, -1, -1, -1]])


def inputs(seed: int = 0, rows: int = 2, tokens: int = 10) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, tokens, 4, 8), (rows, tokens, 2, 8), (rows, tokens, 2, 8))
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def plan(ctx: AttnContext, dtype: torch.dtype = torch.float32, **fields: Any) -> AttentionPlan:
    """The plan of a training pass with 4 heads of 8 features over 2 key/value heads."""
    config = ModelConfig(dim=32, n_heads=4, n_kv_heads=2, **fields)
    return plan_attention(ctx, config, dtype=dtype, training=True)


def attend(
    q: Tensor, k: Tensor, v: Tensor, ctx: AttnContext, flash: bool = True, window: int | None = None, dropout: float = 0
) -> Tensor:
    made = plan(ctx, q.dtype, flash_attn=flash, sliding_window=window, dropout=dropout)
    return attention.attend(q, k, v, made)


def naive(q: Tensor, k: Tensor, v: Tensor, segments: np.ndarray, window: int | None) -> Tensor:
    """One token, one head at a time; padding is left 0."""
    out = torch.zeros_like(q)
    for b, t in np.argwhere(segments >= 0):
        seen = [j for j in range(t + 1) if segments[b, j] == segments[b, t] and (window is None or t - j < window)]
        for h in range(q.shape[2]):
            scores = torch.stack([q[b, t, h] @ k[b, j, h // 2] / 8**0.5 for j in seen])
            out[b, t, h] = scores.softmax(0) @ torch.stack([v[b, j, h // 2] for j in seen])
    return out


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("window", [None, 3, 50])
@pytest.mark.parametrize("segments", [SEGMENTS, PADDED], ids=["packed", "single"])
def test_attention_is_the_naive_loop(segments: np.ndarray, window: int | None, flash: bool) -> None:
    q, k, v = inputs()
    out = attend(q, k, v, AttnContext.from_batch(POSITIONS, segments), flash=flash, window=window)
    real = torch.from_numpy(segments >= 0)
    torch.testing.assert_close(out[real], naive(q, k, v, segments, window)[real], atol=1e-6, rtol=1e-5)
    assert out.isfinite().all()


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("segments", [SEGMENTS, PADDED], ids=["packed", "single"])
def test_fused_and_plain_have_the_same_numbers_and_gradients(segments: np.ndarray, window: int | None) -> None:
    results = []
    for flash in (True, False):
        tensors = inputs()
        out = attend(*tensors, AttnContext.from_batch(POSITIONS, segments), flash=flash, window=window)
        out = out[torch.from_numpy(segments >= 0)]  # padding may differ: it is finite and goes nowhere
        out.mul(torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out, *(each.grad for each in tensors)])
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, atol=2e-6, rtol=1e-5)


def test_padding_has_no_influence() -> None:
    ctx = AttnContext.from_batch(POSITIONS, SEGMENTS)
    real = torch.from_numpy(SEGMENTS >= 0)
    q, k, v = inputs()
    before = attend(q, k, v, ctx)[real]
    with torch.no_grad():
        for each in (q, k, v):
            each[~real] = 1e4
    assert torch.equal(attend(q, k, v, ctx)[real], before)
    attend(q, k, v, ctx)[real].sum().backward()
    assert all(each.grad is not None and not each.grad[~real].any() for each in (q, k, v))


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("segments", [SEGMENTS, PADDED], ids=["packed", "single"])
def test_dropout_drops_weights_and_keeps_the_mean(segments: np.ndarray, flash: bool) -> None:
    ctx = AttnContext.from_batch(POSITIONS, segments)
    q, k, v = inputs()
    whole = attend(q, k, v, ctx, flash=flash)
    torch.manual_seed(0)
    dropped = torch.stack([attend(q, k, v, ctx, flash=flash, dropout=0.3).detach() for _ in range(600)])
    assert not torch.equal(dropped[0], dropped[1])
    assert (dropped.mean(0) - whole)[:, :7].abs().mean() < 0.05 < (dropped[0] - whole)[:, :7].abs().mean()


def test_a_context_knows_its_documents() -> None:
    ctx = AttnContext.from_batch(POSITIONS, SEGMENTS)
    assert ctx.cu_seqlens is not None and ctx.cu_seqlens.dtype == torch.int32
    assert ctx.cu_seqlens.tolist() == [0, 3, 5, 9, 10, 17, *[20] * 11]  # filled up to 2^4 runs
    assert ctx.document_ids_BT is not None
    assert ctx.document_ids_BT.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2, 2, 3], [4, 4, 4, 4, 4, 4, 4, 5, 5, 5]]
    assert ctx.positions_BT.tolist() == POSITIONS.tolist() and ctx.max_len == 10 and ctx.rows == 2
    assert ctx.valid_BT.tolist() == (SEGMENTS >= 0).tolist()
    many = AttnContext.from_batch(np.zeros((1, 40)), np.arange(40)[None])
    assert many.cu_seqlens is not None and many.cu_seqlens.tolist() == [*range(40), *[40] * 25]


@pytest.mark.parametrize(
    ("segments", "single", "rows"),
    [
        ([[0, 0, 0], [5, 5, 5]], True, 2),
        ([[0, 0, -1], [-1, -1, -1]], True, 1),
        ([[0, 0, 1], [0, 0, 0]], False, 2),
        ([[-1, 0, 0], [0, 0, 0]], False, 2),
        ([[0, -1, 0], [0, 0, 0]], False, 2),
    ],
)
def test_a_single_segment_is_recognised(segments: Any, single: bool, rows: int) -> None:
    as_tensor = torch.tensor(segments, dtype=torch.int32)
    ctx = AttnContext.from_batch(torch.zeros_like(as_tensor), as_tensor)
    assert ctx.single_segment is single and ctx.rows == rows
    assert AttnContext.causal(2, 3).single_segment


def test_a_segment_number_that_comes_back_is_another_segment() -> None:
    q, k, v = inputs(tokens=4)
    twice = attend(q, k, v, AttnContext.from_batch([[0, 1, 0, 0]] * 2, [[0, 0, 1, 0]] * 2))
    apart = attend(q, k, v, AttnContext.from_batch([[0, 1, 0, 0]] * 2, [[0, 0, 1, 2]] * 2))
    assert torch.equal(twice, apart)


def test_the_kernel_is_chosen_from_what_the_host_knows() -> None:
    packed, single = AttnContext.from_batch(POSITIONS, SEGMENTS), AttnContext.from_batch(POSITIONS, PADDED)
    cuda = AttnContext(**{**vars(packed.to(torch.device("meta"))), "varlen": True})
    usual: dict[str, Any] = {"flash": True, "dropout_p": 0.0, "window": None, "dtype": torch.bfloat16, "head_dim": 64}
    assert choose_kernel(single, **usual) == "causal"
    assert choose_kernel(single, **{**usual, "window": 10}) == "causal"
    assert choose_kernel(single, **{**usual, "window": 9}) == "masked"
    assert choose_kernel(packed, **usual) == "documents"
    for change in ({"window": 3}, {"dropout_p": 0.1}):
        assert choose_kernel(packed, **{**usual, **change}) == "masked"
    assert choose_kernel(cuda, **usual) == "varlen"
    for change in ({"dtype": torch.float32}, {"head_dim": 12}, {"head_dim": 264}, {"dropout_p": 0.1}):
        assert choose_kernel(cuda, **{**usual, **change}) == "masked"
    assert choose_kernel(cuda, **{**usual, "flash": False}) == "plain"


def test_a_plan_has_what_its_kernel_needs() -> None:
    packed, single = AttnContext.from_batch(POSITIONS, SEGMENTS), AttnContext.from_batch(POSITIONS, PADDED)
    masked, causal, documents = plan(packed, dropout=0.1), plan(single), plan(packed)
    assert (masked.kernel, causal.kernel, documents.kernel) == ("masked", "causal", "documents")
    assert masked.mask_B1TJ is not None and torch.equal(masked.mask_B1TJ, packed.mask(None))
    assert causal.mask_B1TJ is None and documents.mask_B1TJ is None
    plain = plan(single, flash_attn=False, sliding_window=3)
    assert plain.mask_B1TJ is not None and torch.equal(plain.mask_B1TJ, single.mask(3))
    assert masked.valid_BT is None
    routed = plan(packed, use_moe=True).valid_BT
    assert routed is not None and torch.equal(routed, torch.from_numpy(SEGMENTS >= 0))


def test_dropout_is_planned_for_training_alone() -> None:
    ctx, config = AttnContext.causal(1, 4), ModelConfig(dropout=0.5)
    for training, dropout_p in ((True, 0.5), (False, 0.0)):
        assert plan_attention(ctx, config, dtype=torch.float32, training=training).dropout_p == dropout_p


def test_a_context_moves_with_all_its_tensors() -> None:
    ctx = AttnContext.from_batch(POSITIONS, SEGMENTS)
    moved = ctx.to(torch.device("meta"))
    tensors = [each for each in vars(moved).values() if isinstance(each, Tensor)]
    assert len(tensors) == 4 and all(each.is_meta for each in tensors)
    assert (moved.max_len, moved.rows, moved.single_segment) == (ctx.max_len, ctx.rows, ctx.single_segment)


def test_varlen_is_called_with_documents_that_mean_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself needs CUDA; here a stand-in with its documented meaning checks what it is given."""

    def varlen(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, **how: Any
    ) -> Tensor:
        assert how["enable_gqa"] and torch.equal(cu_q, cu_k) and max_q == max_k >= int(cu_q.diff().max())
        left, right = how["window_size"]
        out = torch.empty_like(q)
        for start, stop in zip(cu_q.tolist()[:-1], cu_q.tolist()[1:], strict=True):
            i = torch.arange(stop - start)
            seen = (i <= i[:, None] + right) & ((i >= i[:, None] - left) if left >= 0 else True)
            run = (each[start:stop].transpose(0, 1)[None] for each in (q, k, v))
            attended = F.scaled_dot_product_attention(*run, attn_mask=seen, enable_gqa=True)
            out[start:stop] = attended[0].transpose(0, 1)
        return out

    monkeypatch.setattr(attention, "VARLEN", varlen)
    ctx = AttnContext.from_batch(POSITIONS, SEGMENTS)
    tensors = [each.detach().bfloat16() for each in inputs()]
    for window in (None, 3):
        out = attend(*tensors, AttnContext(**{**vars(ctx), "varlen": True}), window=window)
        torch.testing.assert_close(out, attend(*tensors, ctx, window=window), atol=2e-2, rtol=2e-2)


def packed_rows(lengths: list[int], n_tokens: int = 64, padding: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Positions and segments of three rows whose documents have these lengths in turn, the last one padded."""
    positions, segments, at = np.zeros((3, n_tokens), dtype=np.int64), np.full((3, n_tokens), -1), 0
    for row in range(3):
        place, end = 0, n_tokens - (padding if row == 2 else 0)
        while place < end:
            size = min(lengths[at % len(lengths)], end - place)
            positions[row, place : place + size], segments[row, place : place + size] = np.arange(size), at
            place, at = place + size, at + 1
    return positions, segments


@pytest.mark.parametrize("lengths", [[7, 3, 11, 1], [16], [60, 2, 5]], ids=str)
def test_documents_by_themselves_attend_as_behind_a_mask(monkeypatch: pytest.MonkeyPatch, lengths: list[int]) -> None:
    ctx = AttnContext.from_batch(*packed_rows(lengths))
    config = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=50, max_seq_len=64)
    model, ids = Transformer(config, seed=1), torch.arange(3 * 64).view(3, 64) * 7 % 50
    found = []
    for kernel in ("documents", "masked"):
        monkeypatch.setattr(attention, "choose_kernel", lambda *_, kernel=kernel, **__: kernel)
        model.zero_grad()
        hidden, _ = model(ids, ctx)
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        found.append((hidden, [p.grad for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_operator_of_documents_is_as_torch_wants_it() -> None:
    generator, ids_N = torch.Generator().manual_seed(0), torch.tensor([0, 0, 0, 1, 2, 2])
    shapes = ((6, 4, 3), (6, 2, 3), (6, 2, 3))
    qkv = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(document_attention, (*qkv, ids_N), test_utils=tests)
    torch.autograd.gradcheck(lambda *given: document_attention(*given, ids_N)[0], qkv)


@pytest.mark.parametrize(("lengths", "wide"), [([40, 70], True), ([600, 30], False), ([540, 600], False)], ids=str)
def test_bf16_documents_have_the_gradient_of_fp32(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], wide: bool
) -> None:
    """Short documents go through the kernel in fp32, as forward passes do; long ones have their gradient in bf16."""
    kernel, seen = documents._flash_backward, set[torch.dtype]()

    def spy(*given: Any) -> Any:
        seen.add(given[0].dtype)
        return kernel(*given)

    monkeypatch.setattr(documents, "_flash_backward", spy)
    generator, tokens = torch.Generator().manual_seed(0), sum(lengths)
    ids_N = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    qkv = [torch.randn(tokens, heads, 16, generator=generator).bfloat16().requires_grad_() for heads in (4, 2, 2)]
    grad_NHd = torch.randn(tokens, 4, 16, generator=generator).bfloat16()
    out, _ = document_attention(*qkv, ids_N)
    found = torch.autograd.grad(out, qkv, grad_NHd)
    assert seen == {torch.float32 if wide else torch.bfloat16}
    exact = [each.detach().float().requires_grad_() for each in qkv]
    expected, _ = document_attention(*exact, ids_N)
    torch.testing.assert_close(out.float(), expected, atol=1e-2, rtol=1e-2)
    for own, right in zip(found, torch.autograd.grad(expected, exact, grad_NHd.float()), strict=True):
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own.float(), right, atol=2e-2, rtol=2e-2)
