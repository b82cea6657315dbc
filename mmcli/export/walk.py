"""Torch and an export over the same prompts, logits beside logits.

Shapes: V vocabulary, S slots.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mmcli.generate.engine import Engine

BATCH_EVERY = 8  # decoded tokens: so often all slots are decoded together and alone


@dataclass(frozen=True)
class Step:
    """One pair of logits: what was read before them, and how they compare."""

    phase: str
    ids: list[int]
    split: int  # the ids before it were in the cache when the others were run
    difference: float
    squared_error: float
    variance: float
    chosen: int
    chosen_onnx: int
    gap: float  # by how much torch prefers its own choice to that of ONNX


def _compare(phase: str, ids: list[int], split: int, torch_V: np.ndarray, onnx_V: np.ndarray) -> Step:
    error_V = torch_V.astype(np.float64) - onnx_V
    chosen, chosen_onnx = int(torch_V.argmax()), int(onnx_V.argmax())
    return Step(
        phase,
        list(ids),
        split,
        difference=float(np.abs(error_V).max()),
        squared_error=float(np.mean(error_V**2)),
        variance=float(torch_V.var()),
        chosen=chosen,
        chosen_onnx=chosen_onnx,
        gap=float(torch_V[chosen] - torch_V[chosen_onnx]),
    )


class Walk:
    """Both engines over the same prompts."""

    def __init__(self, reference: Engine, exported: Engine, prompts: Sequence[list[int]]) -> None:
        self._reference, self._exported, self._prompts = reference, exported, prompts
        self._slots = list(range(len(prompts)))
        self._batch_errors: list[float] = []  # mean squares

    def steps(self, new_tokens: int) -> Iterator[Step]:
        """Prefill each prompt, decode torch's greedy tokens, then read each prompt again in pieces."""
        histories = [list(prompt) for prompt in self._prompts]
        chosen: list[int] = []
        for slot, ids in enumerate(self._prompts):
            pair = self._reference.prefill(slot, ids), self._exported.prefill(slot, ids)
            yield _compare("prefill", ids, 0, *pair)
            chosen.append(int(pair[0].argmax()))
        for number in range(new_tokens):
            torch_SV, onnx_SV = self._reference.decode(self._slots, chosen), self._decode(number, chosen)
            for slot in self._slots:
                histories[slot].append(chosen[slot])
                yield _compare("decode", histories[slot], len(histories[slot]) - 1, torch_SV[slot], onnx_SV[slot])
            chosen = [int(row.argmax()) for row in torch_SV]
        for slot, ids in enumerate(self._prompts):
            yield self._in_pieces(slot, ids)

    @property
    def batch_error(self) -> float:
        """Root mean square of the differences between logits of a batch and alone; known once the steps are taken."""
        return float(np.sqrt(np.mean(self._batch_errors)))

    def _decode(self, number: int, chosen: Sequence[int]) -> np.ndarray:
        """A token of every slot, in turn together and alone; sometimes both, which must agree."""
        exported, lengths = self._exported, [self._exported.length(slot) for slot in self._slots]
        if number % 2:
            return np.concatenate([exported.decode([slot], [chosen[slot]]) for slot in self._slots])
        together_SV = exported.decode(self._slots, chosen)
        if number % BATCH_EVERY == 0:
            for slot in self._slots:
                exported.truncate(slot, lengths[slot])
                alone_V = exported.decode([slot], [chosen[slot]])[0]
                self._batch_errors.append(float(np.mean((together_SV[slot].astype(np.float64) - alone_V) ** 2)))
        return together_SV

    def _in_pieces(self, slot: int, ids: list[int]) -> Step:
        for engine in (self._reference, self._exported):
            engine.truncate(slot, 0)
        torch_V = self._reference.prefill(slot, ids)
        edges = sorted({0, min(1, len(ids)), min(6, len(ids)), len(ids)})
        for start, end in itertools.pairwise(edges):
            onnx_V = self._exported.prefill(slot, ids[start:end])
        return _compare("chunks", ids, edges[-2], torch_V, onnx_V)
