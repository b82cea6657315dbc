"""The loss of a model on built-in documents, before and after an export changed its numbers. No torch here."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from mmcli.data.demo.documents import documents
from mmcli.errors import MmcliError
from mmcli.evaluation.loss import document_batches, model_losses, sum_losses
from mmcli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mmcli.model.transformer import Transformer

TEXTS, TEXT_TOKENS, TEXT_SEED = 8, 64, 1  # training on the built-in corpus takes seed 0: these documents are others


def held_out_texts() -> list[str]:
    """Built-in documents that the built-in corpus does not hold."""
    return list(itertools.islice(documents(TEXT_SEED), TEXTS))


def held_out_ids(tokenizer: Tokenizer, max_seq_len: int) -> list[list[int]]:
    """The beginnings of `held_out_texts` in tokens, of which a model of that context predicts all but the first."""
    length = min(TEXT_TOKENS, max_seq_len) + 1
    return [tokenizer.encode_document(text)[:length] for text in held_out_texts()]


def held_out_loss(model: Transformer, tokenizer: Tokenizer) -> float:
    """Nats a token on `held_out_texts`."""
    ids = held_out_ids(tokenizer, model.config.max_seq_len)
    return sum_losses(model_losses(model, document_batches(ids))).loss


def refuse_rise(before: float, after: float, limit: float, dtype: str, better: str) -> None:
    """Refuse weights that made the loss worse.

    Args:
        limit: greatest rise of perplexity, as a share.
        better: a type that would not, for the advice.

    Raises:
        MmcliError: perplexity rose by more, or is not a number.
    """
    if not after - before <= math.log1p(limit):  # NaN is refused too
        what = f"the loss rose from {before:.4g} to {after:.4g} nats a token in {dtype}"
        allowed = f"perplexity may rise by {limit:.0%}"
        raise MmcliError(f"{what} ({allowed})", f"nothing was kept; export with --dtype {better}")
