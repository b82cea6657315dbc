"""The perplexity of an export beside that of torch, on the same text, read in the two ways in which texts are read.

Prompts are read many tokens at once and replies one by one: a format may do well at the one and badly at the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from mmcli.evaluation.loss import TokenLosses, document_batches, engine_losses, model_losses, sum_losses
from mmcli.export.rerun import Rerun
from mmcli.generate.engine import Engine
from mmcli.generate.onnx_session import PREFILL_CHUNK
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer

Documents = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Perplexity:
    """Of one text, by both."""

    torch: float
    onnx: float
    tokens: int

    @property
    def rise(self) -> float:
        """As a share; negative where ONNX is better."""
        return self.onnx / self.torch - 1.0


def token_perplexity(engine: Engine, model: Transformer, documents: Documents) -> Perplexity:
    """Read token by token, as a reply is."""
    return _compare(model, documents, engine_losses(engine, documents))


def chunk_perplexity(
    graph: onnx.ModelProto, config: ModelConfig, model: Transformer, documents: Documents
) -> Perplexity:
    """Read in chunks of `PREFILL_CHUNK` tokens, as the engine reads a prompt; every token counts.

    The output head of `graph`, which is changed to that, is run on all tokens of a chunk.
    """
    rerun = Rerun(graph, config, every_token=True)
    return _compare(model, documents, (_chunk_losses(rerun, ids) for ids in documents))


def _compare(model: Transformer, documents: Documents, by_onnx: Iterator[TokenLosses]) -> Perplexity:
    expected = sum_losses(model_losses(model, document_batches(documents)))
    return Perplexity(expected.perplexity, sum_losses(by_onnx).perplexity, expected.tokens)


def _chunk_losses(rerun: Rerun, ids: Sequence[int]) -> TokenLosses:
    read = ids[:-1]
    pieces = [read[start : start + PREFILL_CHUNK] for start in range(0, len(read), PREFILL_CHUNK)]
    labels = np.array(ids[1:], dtype=np.int64)
    logits_TV = np.concatenate([found["logits"] for found in rerun.run(pieces)]).astype(np.float64)
    scores_TV = logits_TV - logits_TV.max(axis=1, keepdims=True)
    nats_T = np.log(np.exp(scores_TV).sum(axis=1)) - scores_TV[np.arange(len(labels)), labels]
    return TokenLosses(labels, nats_T)
