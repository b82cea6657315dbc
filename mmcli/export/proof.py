"""Does an exported folder compute what torch computes? It is run as a person would run it, and compared.

Both engines read the same prompts and take the same tokens: torch's greedy ones. The limits are those of the format in
which matrices are stored (`matrices.FORMATS`): fp32 must agree in every logit; what rounds cannot, so it is held to
the perplexity and to how far its logits are off on the whole.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from mmcli.data.demo.documents import documents
from mmcli.errors import MmcliError
from mmcli.export.diagnose import first_difference
from mmcli.export.locate import Dtype, graph_file
from mmcli.export.matrices import FORMATS, Limits
from mmcli.export.perplexity import Perplexity, chunk_perplexity, token_perplexity
from mmcli.export.round_trip import check_tokenizer
from mmcli.export.walk import Step, Walk
from mmcli.generate.onnx_growing import load_onnx_engine
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.formats.hf_config import read_model_config
from mmcli.model.transformer import Transformer
from mmcli.text.tokenizer import Tokenizer

TIE = 1e-4  # two tokens whose logits are nearer than this, times `Proof.scale`, are a tie
PROMPT_LENGTHS = (600, 41, 16, 3)  # the first is longer than the chunk in which prompts are read
NEW_TOKENS = 64
HELD_OUT_TEXTS, HELD_OUT_TOKENS = 8, 64  # read token by token
HELD_OUT_PROMPTS, HELD_OUT_LENGTH = 2, 512  # read in chunks
TEXT_SEED = 1  # training on the built-in corpus takes seed 0: these documents are others
TEXT_NAME = f"built-in documents of seed {TEXT_SEED}"


@dataclass(frozen=True)
class Proof:
    """The comparison of ONNX Runtime with torch."""

    dtype: Dtype
    logits: dict[str, float]  # greatest difference of a logit in prefill, decode and chunks (a prompt in pieces)
    logits_error: float  # root mean square over all of them, as a share of the standard deviation of torch's
    batch_error: float  # root mean square of differences between a sequence decoded with others and alone, both in ONNX
    prompts: list[int]  # their lengths in tokens
    greedy_tokens: int
    greedy_equal: int
    greedy_ties: int  # of the unequal ones, where torch's two best tokens are within TIE
    perplexity: dict[str, Perplexity]  # "chunks": read as prompts are; "tokens": one by one, as replies are
    text: str
    round_trips: int  # texts and conversations that the exported tokenizer encodes and decodes alike
    logits_spread: float = 0.0  # standard deviation of torch's logits
    forced: str | None = None  # the limit that it is beyond, where it was kept all the same

    @property
    def scale(self) -> float:
        """What the limit of a difference is multiplied by: rounding grows with the numbers that are rounded."""
        return _scale(self.logits_spread)


def _scale(spread: float) -> float:
    return max(1.0, spread)


def prove(
    folder: Path, model: Transformer, tokenizer: Tokenizer, dtype: Dtype, *, fate: str, force: bool = False
) -> Proof:
    """Compare the export in `folder` with the torch model that it was made of.

    Args:
        fate: of an export that differs, for the message: "nothing was kept".
        force: accept what the precision of a format costs, be it beyond the limits.

    Raises:
        MmcliError: they differ by more than the limits, with the first layer that does; or ONNX Runtime refuses it.
    """
    limits = FORMATS[dtype].limits
    config = read_model_config(folder)  # of the exported context, which may be shorter than the model's
    texts = list(itertools.islice(documents(TEXT_SEED), 64))
    round_trips = check_tokenizer(folder, tokenizer, texts[:HELD_OUT_TEXTS])
    new_tokens = min(NEW_TOKENS, config.max_seq_len // 2)
    room = config.max_seq_len - new_tokens
    prompts = _streams(tokenizer, texts, sorted({max(1, min(each, room)) for each in PROMPT_LENGTHS}, reverse=True))
    length = max(len(prompt) for prompt in prompts) + new_tokens
    reference = TorchEngine(model, slots=len(prompts), max_len=length)
    graph = graph_file(folder)
    exported = load_onnx_engine(folder, graph=graph, slots=len(prompts), max_len=length)
    walk = Walk(reference, exported, prompts)
    steps = list(walk.steps(new_tokens))
    n_tokens = min(HELD_OUT_TOKENS, length - 1) + 1
    held_out = [tokenizer.encode_document(text)[:n_tokens] for text in texts[-HELD_OUT_TEXTS:]]
    long = _streams(tokenizer, texts[::-1], [min(HELD_OUT_LENGTH, config.max_seq_len) + 1] * HELD_OUT_PROMPTS)
    spread = math.sqrt(float(np.mean([step.variance for step in steps])))
    near = TIE * _scale(spread)
    tied = [step for step in steps if step.chosen != step.chosen_onnx and step.gap <= near]
    proof = Proof(
        dtype=dtype,
        logits={phase: _worst(step for step in steps if step.phase == phase) for phase in _phases(steps)},
        logits_error=_relative_error(steps),
        batch_error=walk.batch_error,
        prompts=[len(prompt) for prompt in prompts],
        greedy_tokens=len(steps),
        greedy_equal=sum(step.chosen == step.chosen_onnx for step in steps),
        greedy_ties=len(tied),
        perplexity={
            "chunks": chunk_perplexity(onnx.load(graph), config, model, long),
            "tokens": token_perplexity(exported, model, held_out),
        },
        text=TEXT_NAME,
        round_trips=round_trips,
        logits_spread=spread,
    )
    problem, fix = _fault(proof, limits), "run the model with torch, and report this with its config.json"
    if problem is None and (problem := _cost(proof, limits)) is not None:
        if force and _is_finite(proof):
            return dataclasses.replace(proof, forced=problem)
        fix = "export it with a finer --dtype, or with --force"
    if problem is not None:
        worst = max(steps, key=lambda step: (math.isnan(step.difference), step.difference))
        where = first_difference(folder, model, worst.ids, worst.split, exact=limits.logits is not None)
        what = f"the exported graph does not compute what torch computes: {problem}; {where}"
        raise MmcliError(what, f"{fate}; {fix}")
    return proof


def _relative_error(steps: Sequence[Step]) -> float:
    """Root mean square of the errors of logits, as a share of torch's standard deviation; flat logits have none."""
    error = float(np.mean([step.squared_error for step in steps]))
    spread = float(np.mean([step.variance for step in steps]))
    if spread == 0.0:
        return math.inf if error else 0.0
    return math.sqrt(error / spread)


def _fault(proof: Proof, limits: Limits) -> str | None:
    """Why an export is refused whatever its precision, or None. Comparisons are written so that NaN is a problem."""
    if limits.logits is not None:
        for phase, difference in proof.logits.items():
            if not difference <= limits.logits * proof.scale:
                return f"logits differ by {difference:.2g} in {phase} (limit {limits.logits * proof.scale:.2g})"
        unequal = proof.greedy_tokens - proof.greedy_equal - proof.greedy_ties
        if unequal:
            return f"{unequal} of {proof.greedy_tokens} greedy tokens differ without a tie"
    if not proof.batch_error <= limits.batch_error * proof.scale:
        limit = f"limit {limits.batch_error * proof.scale:.2g}"
        return f"logits of a sequence decoded in a batch and alone differ by {proof.batch_error:.2g} ({limit})"
    return None


def _cost(proof: Proof, limits: Limits) -> str | None:
    """By what its precision costs an export is beyond its limits, or None."""
    if limits.logits_error is not None and not proof.logits_error <= limits.logits_error:
        return f"the error of the logits is {proof.logits_error:.2g} of their spread (limit {limits.logits_error:g})"
    for way, perplexity in proof.perplexity.items():
        if not perplexity.rise <= limits.perplexity:
            return f"perplexity read in {way} rises by {perplexity.rise:.1%} (limit {limits.perplexity:.1%})"
    return None


def _is_finite(proof: Proof) -> bool:
    return math.isfinite(proof.logits_error) and all(math.isfinite(each.onnx) for each in proof.perplexity.values())


def _phases(steps: Sequence[Step]) -> list[str]:
    return list(dict.fromkeys(step.phase for step in steps))


def _worst(steps: Iterator[Step]) -> float:
    return float(np.max([step.difference for step in steps]))  # np.max keeps NaN, max() may lose it


def _streams(tokenizer: Tokenizer, texts: Sequence[str], lengths: Sequence[int]) -> list[list[int]]:
    """Texts one after the other, cut to each of the lengths; every stream begins with another text."""
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    encoded = tokenizer.encode_texts(texts)
    streams = [itertools.chain.from_iterable(encoded[number:]) for number in range(len(lengths))]
    return [
        list(itertools.islice(itertools.chain(start, stream), length))
        for length, stream in zip(lengths, streams, strict=True)
    ]
