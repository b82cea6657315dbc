"""The negative log-likelihood of tokens, by a torch model or by any engine, and the figures that follow from it.

No torch is imported before a torch model is measured.

Shapes: B rows, T tokens in a row, N predicted tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmcli.data.pack.batches import NO_LABEL, Batch
from mmcli.generate.engine import Engine


@dataclass(frozen=True)
class TokenLosses:
    """-log p of tokens, in nats, each given the tokens before it."""

    labels_N: np.ndarray  # the ids predicted, int64
    nats_N: np.ndarray  # float64


@dataclass(frozen=True)
class TextLoss:
    """The negative log-likelihood of a text."""

    nats: float  # over all tokens
    tokens: int
    text_nats: float = 0.0  # over the tokens that stand for text; a control token has no bytes
    bytes: int = 0

    @property
    def loss(self) -> float:
        """Nats a token; NaN if there is none."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits for a byte of text, the same for every tokenizer; control tokens do not count (as in nanochat)."""
        return self.text_nats / math.log(2.0) / max(1, self.bytes)


def model_losses(model: Any, batches: Iterable[Batch]) -> Iterator[TokenLosses]:
    """The losses of every labelled token of each batch.

    Args:
        model: a Transformer, or its compiled form, in the mode (training or evaluation) that is wanted.
    """
    for batch in batches:
        is_label_BT = batch.labels_BT != NO_LABEL
        nats_BT = batch_nats(model, batch)
        yield TokenLosses(batch.labels_BT[is_label_BT], nats_BT[is_label_BT])


def batch_nats(model: Any, batch: Batch) -> np.ndarray:
    """-log p of the labels of a batch, float64 [B, T]; 0 where there is no label."""
    import torch

    from mmcli.model.attention import AttnContext
    from mmcli.model.logps import token_logps

    device = model.head_weight.device
    ctx = AttnContext.from_batch(batch.positions_BT, batch.segments_BT, device)
    ids_BT, labels_BT = (torch.from_numpy(array).to(device) for array in (batch.ids_BT, batch.labels_BT))
    with torch.no_grad():
        hidden_BTD, _ = model(ids_BT, ctx)
        logps_BT = token_logps(hidden_BTD, model.head_weight, labels_BT, bias=model.head_bias)
    nats_BT: np.ndarray = -logps_BT.cpu().double().numpy()
    return nats_BT


def engine_losses(engine: Engine, documents: Iterable[Sequence[int]]) -> Iterator[TokenLosses]:
    """The losses of every token of each document but its first, read one by one in slot 0.

    Raises:
        PromptTooLong: a document is longer than the context and one token.
        UserError: an id that the model does not have.
    """
    for ids in documents:
        engine.truncate(0, 0)
        nats = [_nats(engine.decode([0], [id])[0], following) for id, following in itertools.pairwise(ids)]
        yield TokenLosses(np.array(ids[1:], dtype=np.int64), np.array(nats, dtype=np.float64))


def _nats(logits_V: np.ndarray, id: int) -> float:
    scores_V = logits_V.astype(np.float64) - float(logits_V.max())
    return float(np.log(np.exp(scores_V).sum()) - scores_V[id])


def sum_losses(parts: Iterable[TokenLosses], byte_lengths_V: np.ndarray | None = None) -> TextLoss:
    """All of `parts` together.

    Args:
        byte_lengths_V: bytes of text of every id of the tokenizer (`Tokenizer.byte_lengths`); None leaves bytes out.
    """
    nats = text_nats = 0.0
    tokens = n_bytes = 0
    for part in parts:
        nats += float(part.nats_N.sum())
        tokens += len(part.labels_N)
        if byte_lengths_V is not None:
            lengths_N = byte_lengths_V[part.labels_N]
            text_nats += float(part.nats_N[lengths_N > 0].sum())
            n_bytes += int(lengths_N.sum())
    return TextLoss(nats, tokens, text_nats, n_bytes)


def document_batches(documents: Iterable[Sequence[int]]) -> Iterator[Batch]:
    """Each document as a batch of one row, in which every token but the first is predicted.

    A document of fewer than two tokens predicts nothing and gives no batch.
    """
    for document in documents:
        if len(document) < 2:
            continue
        ids_1T = np.array([document], dtype=np.int64)
        positions_1T = np.arange(ids_1T.shape[1] - 1, dtype=np.int64)[None]
        yield Batch(ids_1T[:, :-1], ids_1T[:, 1:], positions_1T, np.zeros_like(positions_1T))
