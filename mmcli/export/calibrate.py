"""What 4 bits are fitted to: how strongly each input feature is driven, and which matrices need 8 bits.

Both are measured on built-in documents that no training and no proof reads, or on text of a person's own. The documents
need not be of the model's own kind: for a model of web pages they served as well as web pages.

Shapes: I features in, T tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmcli.data.demo.documents import documents
from mmcli.data.encode.encoders import encode_records
from mmcli.data.records.account import RecordAccount
from mmcli.data.sources.sources import open_any
from mmcli.errors import UserError
from mmcli.export.decoder import build_model
from mmcli.export.graph import Graph
from mmcli.export.matrices import Floats, Limits, NBits
from mmcli.export.perplexity import chunk_perplexity
from mmcli.export.quantize import Blocks
from mmcli.export.rerun import Rerun
from mmcli.model.transformer import Transformer
from mmcli.text.tokenizer import Tokenizer

TEXT_SEED = 2  # training on the built-in corpus takes seed 0, the proof seed 1
TEXTS, LENGTH = 4, 256
LEAST = 32  # tokens of a person's own text


# Parts of the names of the matrices that stay in 8 bits, from the smallest file to the largest; {last} is a layer.
# The first layer and the last cost the least for what they bring, then attention.
PLANS = (
    (),
    ("layers.0.", "layers.{last}."),
    ("layers.0.", "layers.{last}.", ".self_attn."),
    ("layers.0.", "layers.{last}.", ".self_attn.", ".down_proj"),
)
SHARE = 0.8  # of the perplexity that a format may cost: the proof reads other text


def fit(matrices: NBits, model: Transformer, texts: Sequence[Sequence[int]]) -> NBits:
    """The format with the errors of weights weighed by what comes in, and as few matrices in 8 bits as will do.

    Args:
        texts: ids that stand for what the model reads.
    """
    powers = _input_powers(model, texts)
    made: dict[tuple[str, int], Blocks] = {}
    for plan in PLANS:
        kept = tuple(part.format(last=model.config.n_layers - 1) for part in plan)
        fitted = matrices.fitted(powers, kept, made)
        rise = chunk_perplexity(build_model(model, fitted), model.config, model, texts).rise
        if rise <= SHARE * matrices.limits.perplexity:
            break
    return fitted


class _Recorder(Floats):
    """Notes which tensor every matrix multiplies."""

    def __init__(self) -> None:
        super().__init__(Limits(perplexity=0.0, batch_error=0.0))
        self.input_of: dict[str, str] = {}

    def linear(self, graph: Graph, x: str, matrix_OI: np.ndarray, bias_O: np.ndarray | None, *, name: str) -> str:
        self.input_of[name] = x
        return super().linear(graph, x, matrix_OI, bias_O, name=name)


def _input_powers(model: Transformer, texts: Sequence[Sequence[int]]) -> Mapping[str, np.ndarray]:
    """Name of a matrix in the graph -> mean square [I] of every feature that it multiplies, their mean being 1.

    1 everywhere for an expert that no token came to.
    """
    recorder = _Recorder()
    graph = build_model(model, recorder)
    inputs = list(dict.fromkeys(recorder.input_of.values()))
    rerun = Rerun(graph, model.config, inner=inputs)
    squares: dict[str, np.ndarray] = {}
    for ids in texts:
        for found in rerun.run([ids]):
            for name in inputs:
                x_TI = found[name].reshape(-1, found[name].shape[-1])
                squares[name] = squares.get(name, 0.0) + np.einsum("ti,ti->i", x_TI, x_TI, dtype=np.float64)
    return {matrix: _relative(squares[x]) for matrix, x in recorder.input_of.items()}


def calibration_texts(tokenizer: Tokenizer, source: Path | None, context: int) -> list[list[int]]:
    """The first 1,024 ids of documents or conversations, one after the other, in pieces that fit the context.

    Args:
        source: a file or folder of text or conversations; None: built-in documents.

    Raises:
        UserError: it cannot be used, or has less than 32 tokens.
    """
    length = min(LENGTH, context)
    if source is None:
        built_in = list(itertools.islice(documents(TEXT_SEED), 16 * TEXTS))
        encoded: Iterable[Sequence[int]] = tokenizer.encode_texts(built_in)
    else:
        encoded = _records(source, tokenizer)
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = itertools.chain.from_iterable(encoded)
    pieces = [[*start, *itertools.islice(ids, length - len(start))] for _ in range(TEXTS)]
    texts = [piece for piece in pieces if len(piece) > 1 + len(start)]
    if source is not None and sum(map(len, texts)) < min(LEAST, TEXTS * length):
        what = f"{source} has less than {LEAST} tokens to fit int4 to"
        raise UserError(what, "give a longer text, or omit --calibrate")
    return texts


def _records(source: Path, tokenizer: Tokenizer) -> Iterator[Sequence[int]]:
    """The ids of each record that a training would keep."""
    sources = open_any([str(source)], ("text", "chat"))
    with RecordAccount() as account:
        for batch in encode_records(sources, tokenizer, account, batch_records=16 * TEXTS, workers=1):
            for _, record in batch.kept:
                yield from record.ids


def _relative(squares_I: np.ndarray) -> np.ndarray:
    mean = float(squares_I.mean())
    return squares_I.astype(np.float32) / np.float32(mean) if mean > 0.0 else np.ones(len(squares_I), dtype=np.float32)
