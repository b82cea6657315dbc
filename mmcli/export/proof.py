"""Does an exported folder compute what torch computes? It is run as a person would run it, and compared.

Both engines read the same prompts and take the same tokens: torch's greedy ones. The limits are those of the format in
which matrices are stored (`matrices.FORMATS`): fp32 must agree in every logit; int8 cannot, so it is held to the
perplexity and to how far its logits are off on the whole.

Shapes: V vocabulary, S slots.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmcli.data.demo.documents import documents
from mmcli.errors import MmcliError
from mmcli.evaluation.loss import document_batches, engine_losses, model_losses, sum_losses
from mmcli.export.diagnose import first_difference
from mmcli.export.locate import Dtype
from mmcli.export.matrices import FORMATS, Limits
from mmcli.export.round_trip import check_tokenizer
from mmcli.generate.engine import Engine
from mmcli.generate.onnx_engine import OnnxEngine
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.transformer import Transformer
from mmcli.text.tokenizer import Tokenizer

TIE = 1e-4  # two tokens whose logits are nearer than this, times `Proof.scale`, are a tie
PROMPT_LENGTHS = (600, 41, 16, 3)  # the first is longer than the chunk in which prompts are read
NEW_TOKENS = 64
HELD_OUT_TEXTS, HELD_OUT_TOKENS = 8, 64
TEXT_SEED = 1  # training on the built-in corpus takes seed 0: these documents are others
TEXT_NAME = f"built-in documents of seed {TEXT_SEED}"


@dataclass(frozen=True)
class Proof:
    """The comparison of ONNX Runtime with torch."""

    dtype: Dtype
    logits: dict[str, float]  # greatest difference of a logit in prefill, decode and chunks (a prompt in pieces)
    logits_error: float  # root mean square over all of them, as a share of the standard deviation of torch's
    prompts: list[int]  # their lengths in tokens
    greedy_tokens: int
    greedy_equal: int
    greedy_ties: int  # of the unequal ones, where torch's two best tokens are within TIE
    perplexity_torch: float
    perplexity_onnx: float
    perplexity_tokens: int
    text: str
    round_trips: int  # texts and conversations that the exported tokenizer encodes and decodes alike
    logits_spread: float = 0.0  # standard deviation of torch's logits

    @property
    def scale(self) -> float:
        """What the limit of a difference is multiplied by: rounding grows with the numbers that are rounded."""
        return _scale(self.logits_spread)

    @property
    def perplexity_rise(self) -> float:
        """As a share; negative where ONNX is better."""
        return self.perplexity_onnx / self.perplexity_torch - 1.0


def _scale(spread: float) -> float:
    return max(1.0, spread)


def prove(folder: Path, model: Transformer, tokenizer: Tokenizer, dtype: Dtype) -> Proof:
    """Compare the export in `folder` with the torch model that it was made of.

    Raises:
        MmcliError: they differ by more than the limits, with the first layer that does; or ONNX Runtime refuses it.
    """
    matrices = FORMATS[dtype]
    texts = list(itertools.islice(documents(TEXT_SEED), 64))
    round_trips = check_tokenizer(folder, tokenizer, texts[:HELD_OUT_TEXTS])
    context = model.config.max_seq_len
    new_tokens = min(NEW_TOKENS, context // 2)
    prompts = _prompts(tokenizer, texts, context - new_tokens)
    length = max(len(prompt) for prompt in prompts) + new_tokens
    reference = TorchEngine(model, slots=len(prompts), max_len=length)
    exported = OnnxEngine.load(folder, slots=len(prompts), max_len=length)
    steps = list(_walk(reference, exported, prompts, new_tokens, together=matrices.rows_independent))
    n_tokens = min(HELD_OUT_TOKENS, length - 1) + 1
    held_out = [tokenizer.encode_document(text)[:n_tokens] for text in texts[-HELD_OUT_TEXTS:]]
    by_torch = sum_losses(model_losses(model, document_batches(held_out)))
    by_onnx = sum_losses(engine_losses(exported, held_out))
    spread = math.sqrt(float(np.mean([step.variance for step in steps])))
    near = TIE * _scale(spread)
    tied = [step for step in steps if step.chosen != step.chosen_onnx and step.gap <= near]
    proof = Proof(
        dtype=dtype,
        logits={phase: _worst(step for step in steps if step.phase == phase) for phase in _phases(steps)},
        logits_error=_relative_error(steps),
        prompts=[len(prompt) for prompt in prompts],
        greedy_tokens=len(steps),
        greedy_equal=sum(step.chosen == step.chosen_onnx for step in steps),
        greedy_ties=len(tied),
        perplexity_torch=by_torch.perplexity,
        perplexity_onnx=by_onnx.perplexity,
        perplexity_tokens=by_torch.tokens,
        text=TEXT_NAME,
        round_trips=round_trips,
        logits_spread=spread,
    )
    problem = _problem(proof, matrices.limits)
    if problem is not None:
        worst = max(steps, key=lambda step: (math.isnan(step.difference), step.difference))
        where = first_difference(folder, model, worst.ids, worst.split, exact=matrices.limits.logits is not None)
        what = f"the exported graph does not compute what torch computes: {problem}; {where}"
        raise MmcliError(what, "nothing was kept; run the model with torch, and report this with its config.json")
    return proof


def _relative_error(steps: Sequence[_Step]) -> float:
    """Root mean square of the errors of logits, as a share of torch's standard deviation; flat logits have none."""
    error = float(np.mean([step.squared_error for step in steps]))
    spread = float(np.mean([step.variance for step in steps]))
    if spread == 0.0:
        return math.inf if error else 0.0
    return math.sqrt(error / spread)


def _problem(proof: Proof, limits: Limits) -> str | None:
    """Why an export is refused, or None. Comparisons are written so that NaN is a problem."""
    if limits.logits is not None:
        for phase, difference in proof.logits.items():
            if not difference <= limits.logits * proof.scale:
                return f"logits differ by {difference:.2g} in {phase} (limit {limits.logits * proof.scale:.2g})"
        unequal = proof.greedy_tokens - proof.greedy_equal - proof.greedy_ties
        if unequal:
            return f"{unequal} of {proof.greedy_tokens} greedy tokens differ without a tie"
    if limits.logits_error is not None and not proof.logits_error <= limits.logits_error:
        return f"the error of the logits is {proof.logits_error:.2g} of their spread (limit {limits.logits_error:g})"
    if not proof.perplexity_rise <= limits.perplexity:
        return f"perplexity rises by {proof.perplexity_rise:.1%} (limit {limits.perplexity:.1%})"
    return None


@dataclass(frozen=True)
class _Step:
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


def _step(phase: str, ids: list[int], split: int, torch_V: np.ndarray, onnx_V: np.ndarray) -> _Step:
    error_V = torch_V.astype(np.float64) - onnx_V
    chosen, chosen_onnx = int(torch_V.argmax()), int(onnx_V.argmax())
    return _Step(
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


def _walk(
    reference: Engine, exported: Engine, prompts: Sequence[list[int]], new_tokens: int, *, together: bool
) -> Iterator[_Step]:
    """Prefill each prompt, decode torch's greedy tokens, then read each prompt again in pieces.

    With `together`, every other token is decoded for all slots in one call: where rows do not depend on each other.
    """
    histories = [list(prompt) for prompt in prompts]
    chosen: list[int] = []
    for slot, ids in enumerate(prompts):
        pair = reference.prefill(slot, ids), exported.prefill(slot, ids)
        yield _step("prefill", ids, 0, *pair)
        chosen.append(int(pair[0].argmax()))
    slots = list(range(len(prompts)))
    for number in range(new_tokens):
        torch_SV = reference.decode(slots, chosen)
        if together and number % 2:
            onnx_SV = exported.decode(slots, chosen)
        else:
            onnx_SV = np.concatenate([exported.decode([slot], [chosen[slot]]) for slot in slots])
        for slot in slots:
            histories[slot].append(chosen[slot])
            yield _step("decode", histories[slot], len(histories[slot]) - 1, torch_SV[slot], onnx_SV[slot])
        chosen = [int(row.argmax()) for row in torch_SV]
    for slot, ids in enumerate(prompts):
        for engine in (reference, exported):
            engine.truncate(slot, 0)
        torch_V = reference.prefill(slot, ids)
        edges = sorted({0, min(1, len(ids)), min(6, len(ids)), len(ids)})
        for start, end in itertools.pairwise(edges):
            onnx_V = exported.prefill(slot, ids[start:end])
        yield _step("chunks", ids, edges[-2], torch_V, onnx_V)


def _phases(steps: Sequence[_Step]) -> list[str]:
    return list(dict.fromkeys(step.phase for step in steps))


def _worst(steps: Iterator[_Step]) -> float:
    return float(np.max([step.difference for step in steps]))  # np.max keeps NaN, max() may lose it


def _prompts(tokenizer: Tokenizer, texts: Sequence[str], room: int) -> list[list[int]]:
    """Prompts of several lengths, each the beginning of another text; the longest is several texts."""
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    encoded = tokenizer.encode_texts(texts)
    lengths = sorted({max(1, min(length, room)) for length in PROMPT_LENGTHS}, reverse=True)
    streams = [itertools.chain.from_iterable(encoded[number:]) for number in range(len(lengths))]
    return [
        list(itertools.islice(itertools.chain(start, stream), length))
        for length, stream in zip(lengths, streams, strict=True)
    ]
