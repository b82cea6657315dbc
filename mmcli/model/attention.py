"""Attention: the metadata of a batch (`AttnContext`), kernel, mask and rotary tables of a forward pass
(`AttentionPlan`), and the computation itself (`attend`).

Shapes: B rows, T tokens in a row, H query heads, K key/value heads, G = H/K queries for a key, d features of a head,
J keys (T without a cache, the tokens held so far with one), N documents of the batch.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcli.model.cache import CacheView, KVCache
from mmcli.model.config import ModelConfig
from mmcli.model.device import move
from mmcli.model.documents import LONG, document_attention

Kernel = Literal["parts", "varlen", "documents", "causal", "full", "masked", "plain"]
MANY = 32  # rows times key heads from which two products are quicker than SDPA, whose kernel has some 4 us for each
FLASH_DTYPES = (torch.bfloat16, torch.float16)  # FlashAttention on CUDA takes no others
FLASH_HEAD_DIM = 256  # its widest head
FLASH_CAPABILITY = (8, 0)  # its oldest GPUs


@dataclass(frozen=True)
class AttnContext:
    """Attention mask metadata of one batch: positions and document boundaries, built once on the host.

    A token attends to itself and the earlier tokens of its own document. Equal neighbouring segment numbers of a row
    are one document; a stretch of padding (segment -1) counts as one too, so no softmax is ever empty and no real token
    attends to padding.
    """

    positions_BT: Tensor  # place of each token in its document, int64
    segments_BT: Tensor | None  # segment of each token, -1 for padding; None with a cache
    document_ids_BT: Tensor | None  # document that each token belongs to, numbered over the whole batch
    cu_seqlens: Tensor | None  # int32 [N' + 1]: start of each document in the flattened batch, filled up (see below)
    max_len: int  # no document is longer than this; with a cache, the number of keys
    single_segment: bool  # each row is one segment, then at most padding: plain causal attention is exact
    rows: int  # rows that hold at least one real token
    varlen: bool = False  # the device and torch have FlashAttention over `cu_seqlens`
    branches_BT: Tensor | None = None  # of a document that several texts begin with: 0, then 1, 2, ... of each text
    cache: CacheView | None = None
    parts: tuple[AttnContext, ...] = ()  # of a pass over slots that get different numbers of tokens: its one row

    @classmethod
    def from_batch(
        cls, positions_BT: Any, segments_BT: Any, device: torch.device | str = "cpu", *, branches_BT: Any = None
    ) -> AttnContext:
        """The context of a packed batch.

        Args:
            positions_BT: [B, T] ints, numpy or tensor, restarting at 0 in each segment.
            segments_BT: [B, T] ints, numpy or tensor; equal neighbours of a row are one segment, -1 is padding.
            device: of the model.
            branches_BT: [B, T] ints where texts share their beginning: a document holds it once, as branch 0, and then
                what follows in each text, as branch 1, 2 and so on, positions going on from the shared part. Tokens
                attend to branch 0 and to their own.

        `max_len` is T and `cu_seqlens` is filled up with empty documents to a power of two, since a compiled graph is
        made anew for every other number or length.
        """
        segments = _on_host(segments_BT)
        n_rows, n_tokens = segments.shape
        starts = np.ones((n_rows, n_tokens), dtype=bool)
        starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
        padding = segments < 0
        one_document = (starts & ~padding).sum(axis=1) <= 1
        padding_is_last = (np.diff(padding.astype(np.int8), axis=1) >= 0).all()
        edges = np.flatnonzero(starts.ravel())
        cu_seqlens = np.full((1 << max(4, len(edges).bit_length())) + 1, segments.size, dtype=np.int32)
        cu_seqlens[: len(edges)] = edges
        document_ids = (np.cumsum(starts.ravel()) - 1).reshape(segments.shape)
        return cls(
            positions_BT=torch.from_numpy(_on_host(positions_BT)).to(device),
            segments_BT=torch.from_numpy(segments).to(device),
            document_ids_BT=torch.from_numpy(document_ids).to(device),
            cu_seqlens=torch.from_numpy(cu_seqlens).to(device),
            max_len=n_tokens,
            single_segment=bool(one_document.all() and padding_is_last),
            branches_BT=None if branches_BT is None else torch.from_numpy(_on_host(branches_BT)).to(device),
            rows=int((~padding).any(axis=1).sum()),
            varlen=_has_varlen(torch.device(device)),
        )

    @classmethod
    def causal(cls, n_rows: int, n_tokens: int, device: torch.device | str = "cpu") -> AttnContext:
        """The context of `n_rows` rows that are one segment each, without padding."""
        positions = np.tile(np.arange(n_tokens, dtype=np.int64), (n_rows, 1))
        return cls.from_batch(positions, np.zeros_like(positions), device)

    @classmethod
    def for_cache(cls, cache: KVCache, slots: Sequence[int], n_tokens: int) -> AttnContext:
        """The context of `n_tokens` new tokens in each of `slots`, each going on where its slot stands.

        The model then writes their keys and values into the cache; `cache.advance(slots, n_tokens)` makes them count.

        Raises:
            UserError: a slot has no room for them.
        """
        view = cache.view(slots, n_tokens)
        fresh = not view.starts.any()
        return cls(
            positions_BT=view.positions_BT,
            segments_BT=None,
            document_ids_BT=None,
            cu_seqlens=None,
            max_len=view.end,
            single_segment=fresh,
            rows=len(slots),
            cache=view,
        )

    @classmethod
    def for_cache_parts(cls, cache: KVCache, slots: Sequence[int], counts: Sequence[int]) -> AttnContext:
        """The context of one row that holds `counts[i]` new tokens of each of `slots`, one slot after the other.

        All that works on single tokens takes the row at once; attention takes it by parts, which are slots that lie
        side by side and get as many tokens. `cache.advance` makes the tokens count, slot by slot.

        Raises:
            UserError: a slot has no room for them.
        """
        groups: list[tuple[list[int], int]] = []
        for slot, count in zip(slots, counts, strict=True):
            if groups and groups[-1][1] == count and groups[-1][0][-1] == slot - 1:
                groups[-1][0].append(slot)
            else:
                groups.append(([slot], count))
        parts = tuple(cls.for_cache(cache, held, count) for held, count in groups)
        return cls(
            positions_BT=torch.cat([part.positions_BT.flatten() for part in parts])[None],
            segments_BT=None,
            document_ids_BT=None,
            cu_seqlens=None,
            max_len=max(part.max_len for part in parts),
            single_segment=False,
            rows=1,
            parts=parts,
        )

    def to(self, device: torch.device) -> AttnContext:
        """The same context on `device`; a copy from pinned memory does not wait."""
        moved = self._map(lambda tensor: move(tensor, device))
        return replace(moved, varlen=_has_varlen(device))

    def pin_memory(self) -> AttnContext:
        """The same context in page-locked host memory, from which a copy to a CUDA device does not wait."""
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> AttnContext:
        changes: dict[str, Any] = {key: move(value) for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **changes)

    @property
    def valid_BT(self) -> Tensor:
        """True where a token is not padding."""
        if self.segments_BT is None:
            return torch.ones_like(self.positions_BT, dtype=torch.bool)
        return self.segments_BT >= 0

    def mask(self, window: int | None) -> Tensor:
        """The attention mask, [B, 1, T, J] bool: True where a token (T) attends to a key (J).

        Args:
            window: the newest keys that a token attends to, itself included; None for all.
        """
        if self.document_ids_BT is None:
            query_BT1 = self.positions_BT[:, :, None]
            key_J = torch.arange(self.max_len, device=query_BT1.device)
            seen = key_J <= query_BT1
        else:
            index_T = torch.arange(self.document_ids_BT.shape[1], device=self.document_ids_BT.device)
            query_BT1, key_J = index_T[None, :, None], index_T
            seen = (key_J <= query_BT1) & (self.document_ids_BT[:, :, None] == self.document_ids_BT[:, None, :])
        if self.branches_BT is not None:
            key_B1J = self.branches_BT[:, None, :]
            seen = seen & ((key_B1J == 0) | (key_B1J == self.branches_BT[:, :, None]))
        if window is not None:
            if self.branches_BT is not None:  # places and positions differ
                query_BT1, key_J = self.positions_BT[:, :, None], self.positions_BT[:, None, :]
            seen = seen & (query_BT1 - key_J < window)
        return seen[:, None]


def _on_host(array: Any) -> np.ndarray:
    values = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    return np.ascontiguousarray(values, dtype=np.int64)


def _find_varlen() -> Callable[..., Any] | None:
    """torch's variable-length FlashAttention, if it takes grouped queries and a window."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return None
    return varlen_attn if {"window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters) else None


VARLEN: Callable[..., Any] | None = None  # looked up for the first batch on CUDA: the import takes seconds


def _has_varlen(device: torch.device) -> bool:
    global VARLEN
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FLASH_CAPABILITY:
        return False
    VARLEN = VARLEN or _find_varlen()
    return VARLEN is not None


def choose_kernel(
    ctx: AttnContext,
    *,
    flash: bool,
    dropout_p: float,
    window: int | None,
    dtype: torch.dtype,
    head_dim: int,
) -> Kernel:
    """The attention kernel, from what is known on the host.

    "plain" is the softmax written out; "causal" and "full" are SDPA without a mask, "masked" with one; "varlen" is
    FlashAttention over the documents of the flattened batch, which only CUDA has (a mask would lose FlashAttention
    there); "documents" is the same on the CPU. "parts": each part of the context has a kernel of its own.
    """
    if ctx.parts:
        return "parts"
    if not flash:
        return "plain"
    if ctx.branches_BT is not None:
        return "masked"
    limited = window is not None and window < ctx.max_len
    if ctx.single_segment and not limited:
        return "causal"
    if ctx.cache is not None:
        return "full" if ctx.cache.sees_all and not limited else "masked"
    fits = dtype in FLASH_DTYPES and head_dim % 8 == 0 and head_dim <= FLASH_HEAD_DIM
    if ctx.varlen and fits and dropout_p == 0.0:
        return "varlen"
    on_cpu = ctx.document_ids_BT is not None and ctx.document_ids_BT.device.type == "cpu"
    return "documents" if on_cpu and not limited and dropout_p == 0.0 else "masked"


@dataclass(frozen=True)
class AttentionPlan:
    """Attention of one forward pass, decided once and handed to every block."""

    ctx: AttnContext
    kernel: Kernel
    mask_B1TJ: Tensor | None  # for the kernels "masked" and "plain"
    rotary: tuple[Tensor, Tensor] | None  # (cos, sin), [B, T, 1, rotary_dim] each; None without rotary positions
    valid_BT: Tensor | None  # tokens that routers count, padding left out; None where they keep no statistics
    dropout_p: float  # share of the attention weights that is dropped
    window: int | None  # newest keys that a token attends to, itself included; None for all
    parts: tuple[AttentionPlan, ...] = ()  # of the context's parts

    def split(self, row_1NHd: Tensor) -> list[Tensor]:
        """The parts of a row, [B, T, heads, d] each."""
        shapes = [part.ctx.positions_BT.shape for part in self.parts]
        pieces = row_1NHd[0].split([shape.numel() for shape in shapes])
        return [piece.unflatten(0, shape) for piece, shape in zip(pieces, shapes, strict=True)]


def plan_attention(
    ctx: AttnContext,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    training: bool,
    rotary: tuple[Tensor, Tensor] | None = None,
) -> AttentionPlan:
    """The plan of a forward pass over a batch.

    Args:
        dtype: of queries, keys and values: autocast's, if it is on.
        training: whether dropout acts.
        rotary: tables of the batch's positions, see `mmcli.model.rotary.Rotary`.
    """
    window, dropout_p = config.sliding_window, config.dropout if training else 0.0
    kernel = choose_kernel(
        ctx,
        flash=config.flash_attn,
        dropout_p=dropout_p,
        window=window,
        dtype=dtype,
        head_dim=config.d_head,
    )
    return AttentionPlan(
        ctx=ctx,
        kernel=kernel,
        mask_B1TJ=ctx.mask(window) if kernel in ("masked", "plain") else None,
        rotary=rotary,
        valid_BT=ctx.valid_BT if config.use_moe and ctx.cache is None and not ctx.parts else None,
        dropout_p=dropout_p,
        window=window,
        parts=tuple(plan_attention(part, config, dtype=dtype, training=training) for part in ctx.parts),
    )


def attend(q_BTHd: Tensor, k_BJKd: Tensor, v_BJKd: Tensor, plan: AttentionPlan) -> Tensor:
    """softmax(q k' / sqrt(d)) v with grouped queries, by the planned kernel; returns out_BTHd."""
    kernel, mask = plan.kernel, plan.mask_B1TJ
    if kernel == "varlen":
        return _varlen(q_BTHd, k_BJKd, v_BJKd, plan.ctx, plan.window)
    if kernel == "documents":
        assert plan.ctx.document_ids_BT is not None
        flat = (each.flatten(0, 1) for each in (q_BTHd, k_BJKd, v_BJKd, plan.ctx.document_ids_BT))
        out_NHd, _ = document_attention(*flat)
        return out_NHd.view_as(q_BTHd)
    q, k, v = q_BTHd.transpose(1, 2), k_BJKd.transpose(1, 2), v_BJKd.transpose(1, 2)
    if kernel == "plain":
        assert mask is not None
        return _plain(q, k, v, mask, plan.dropout_p).transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    if q.shape[2] == 1 and kernel in ("full", "masked") and q.device.type == "cpu":
        # Queries of one token are rows of their key's head: H/K times fewer, larger products to do.
        q_BKGd = q.reshape(len(q), k.shape[1], -1, q.shape[3])
        if len(q) * k.shape[1] >= MANY and k.dtype == torch.float32 and plan.dropout_p == 0.0:
            out = _by_products(q_BKGd, k, v, mask)
        else:
            out = F.scaled_dot_product_attention(q_BKGd, k, v, attn_mask=mask, dropout_p=plan.dropout_p)
        return out.reshape(q.shape).transpose(1, 2)
    if grouped and q.is_cuda and (kernel == "masked" or q.dtype not in FLASH_DTYPES):
        # Of the CUDA kernels only FlashAttention groups queries itself; the memory-efficient one wants equal heads.
        k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))
        grouped = False
    dtype, shared = q.dtype, plan.ctx.branches_BT is not None
    wide = shared and q.shape[2] < LONG and q.device.type == "cpu" and dtype == torch.bfloat16  # see LONG
    if wide:
        q, k, v = q.float(), k.float(), v.float()
    with torch.autocast("cpu", enabled=False) if wide else contextlib.nullcontext():
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=plan.dropout_p,
            is_causal=kernel == "causal",
            enable_gqa=grouped,
        )
    return out.to(dtype).transpose(1, 2)


def _plain(q_BHTd: Tensor, k_BKJd: Tensor, v_BKJd: Tensor, mask_B1TJ: Tensor, dropout_p: float) -> Tensor:
    """Attention written out, the softmax in fp32; returns out_BHTd."""
    n_rows, n_heads, n_tokens, head_dim = q_BHTd.shape
    q_BKGTd = q_BHTd.reshape(n_rows, k_BKJd.shape[1], -1, n_tokens, head_dim)
    scores = q_BKGTd @ k_BKJd[:, :, None].transpose(-2, -1) * head_dim**-0.5
    scores = scores.float().masked_fill(~mask_B1TJ[:, :, None], float("-inf"))
    weights = F.dropout(scores.softmax(dim=-1), dropout_p, training=dropout_p > 0.0)
    out_BKGTd = weights.to(v_BKJd.dtype) @ v_BKJd[:, :, None]
    return out_BKGTd.reshape(n_rows, n_heads, n_tokens, head_dim)


def _by_products(q_BKGd: Tensor, k_BKJd: Tensor, v_BKJd: Tensor, mask_B11J: Tensor | None) -> Tensor:
    """Attention of one new token in each of many rows; returns out_BKGd."""
    n_rows, n_heads, n_queries, head_dim = q_BKGd.shape
    scores = q_BKGd.flatten(0, 1) @ k_BKJd.flatten(0, 1).transpose(1, 2) * head_dim**-0.5
    if mask_B11J is not None:
        scores.view(n_rows, n_heads, n_queries, -1).masked_fill_(~mask_B11J, float("-inf"))
    return (scores.softmax(dim=-1) @ v_BKJd.flatten(0, 1)).view(q_BKGd.shape)


def _varlen(q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, ctx: AttnContext, window: int | None) -> Tensor:
    """FlashAttention over the documents of the flattened batch (CUDA, bf16 or fp16)."""
    assert ctx.cu_seqlens is not None and VARLEN is not None
    out: Tensor = VARLEN(
        q_BTHd.flatten(0, 1),
        k_BTKd.flatten(0, 1),
        v_BTKd.flatten(0, 1),
        ctx.cu_seqlens,
        ctx.cu_seqlens,
        ctx.max_len,
        ctx.max_len,
        window_size=(-1 if window is None else window - 1, 0),  # the kernel does not count the token itself
        enable_gqa=q_BTHd.shape[2] != k_BTKd.shape[2],
    )
    return out.view_as(q_BTHd)
