"""A new model that begins as the bigram model of its data.

How often one token follows another is counted in a second, and a short training spends most of its time on learning
just that. Here the embedding, the first feed-forward network and the norms around it are fitted to the counts, while
every other projection into the residual stream is zero: the model then predicts the next token from the present one
alone, about as well as smoothed counts do, and training goes on from there (docs/decisions/007-bigram-start.md). It
stays a model like any other: nothing is added to it.

Shapes: V vocabulary, D width, S distinct pairs of tokens, R tokens of a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmcli.model.config import ModelConfig
from mmcli.model.init import RESIDUAL_OUTPUTS
from mmcli.model.transformer import Block, Transformer

STEPS, ROWS = 80, 800  # of the fit: tokens of a step, at most the vocabulary
MATRIX_RATE, FFN_RATE = 2e-2, 3e-3  # learning rates: embedding, head and norms; feed-forward network
WARMUP_STEPS, DECAY_SHARE = 5, 0.6
DISCOUNT = 0.75  # of Kneser-Ney: what each count gives to the pairs that were not seen
MOST_PAIRS = 1 << 24  # that are counted
LARGEST_VOCABULARY = 1 << 16


@dataclass(frozen=True)
class Bigrams:
    """Pairs of neighbouring tokens and how often each was seen, sorted by the first token, then by the second.

    Attributes:
        offsets: [V + 1] int64: the successors of token i are `offsets[i]` to `offsets[i + 1]`.
        successors: [S] int64.
        counts: [S] float32.
    """

    offsets: Tensor
    successors: Tensor
    counts: Tensor

    @classmethod
    def count(cls, pairs: Iterable[tuple[np.ndarray, np.ndarray]], vocab_size: int) -> Bigrams:
        """Of (tokens, next tokens) in arrays of one shape; negative next tokens are left out."""
        keys = []
        for tokens, following in pairs:
            kept = following >= 0
            keys.append(tokens[kept] * np.int64(vocab_size) + following[kept])
        distinct, counts = np.unique(np.concatenate(keys), return_counts=True)
        first, second = np.divmod(distinct, vocab_size)
        offsets = np.searchsorted(first, np.arange(vocab_size + 1))
        return cls(torch.from_numpy(offsets), torch.from_numpy(second), torch.from_numpy(counts.astype(np.float32)))

    def to(self, device: torch.device) -> Bigrams:
        return Bigrams(self.offsets.to(device), self.successors.to(device), self.counts.to(device))

    @property
    def vocab_size(self) -> int:
        return len(self.offsets) - 1

    def frequencies(self) -> Tensor:
        """[V]: how often each token was seen before another one."""
        lengths = self.offsets.diff()
        owners = torch.repeat_interleave(torch.arange(self.vocab_size, device=lengths.device), lengths)
        return torch.zeros(self.vocab_size, device=lengths.device).index_add_(0, owners, self.counts)

    def continuation(self) -> Tensor:
        """[V]: the share of all distinct pairs that end in each token, none of them zero (Kneser-Ney's unigrams)."""
        ends = torch.bincount(self.successors, minlength=self.vocab_size).float() + 0.1
        return ends / ends.sum()

    def targets(self, tokens_R: Tensor, continuation_V: Tensor) -> Tensor:
        """[R, V] probabilities of what follows each token: interpolated Kneser-Ney, of one discount.

        Source: Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling", equation 16.
        """
        starts, ends = self.offsets[tokens_R], self.offsets[tokens_R + 1]
        kinds_R = (ends - starts).float()
        rows = torch.repeat_interleave(torch.arange(len(tokens_R), device=starts.device), ends - starts)
        within = torch.arange(len(rows), device=starts.device) - torch.repeat_interleave(
            (ends - starts).cumsum(0) - (ends - starts), ends - starts
        )
        places = starts[rows] + within
        counts = self.counts[places]
        totals_R = torch.zeros(len(tokens_R), device=starts.device).index_add_(0, rows, counts)
        left_R = torch.where(totals_R > 0, DISCOUNT * kinds_R / totals_R.clamp(min=1), 1.0)
        found_RV = left_R[:, None] * continuation_V
        found_RV[rows, self.successors[places]] += (counts - DISCOUNT) / totals_R[rows]
        return found_RV


def can_start_from_bigrams(config: ModelConfig) -> bool:
    """True where a token alone, through the first feed-forward network, gives the hidden state of the model."""
    return config.position == "rope" and not config.parallel_block and config.vocab_size <= LARGEST_VOCABULARY


def fitting_flops(config: ModelConfig) -> float:
    """FLOPs of `fit_bigrams`, nearly all of them in the logits."""
    return 6.0 * STEPS * min(ROWS, config.vocab_size) * config.vocab_size * config.dim


def fit_bigrams(model: Transformer, bigrams: Bigrams, seed: int) -> float:
    """Make a new model the bigram model of `bigrams`, in place; its cross-entropy to them in nats per token.

    Raises:
        ValueError: the model has another shape than `can_start_from_bigrams` takes.
    """
    config = model.config
    if not can_start_from_bigrams(config):
        raise ValueError("only models with rotary positions and blocks one after the other start from bigrams")
    device = model.head_weight.device
    bigrams = bigrams.to(device)
    block = model.model.layers[0]
    assert isinstance(block, Block)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in RESIDUAL_OUTPUTS for part in name.split(".")):
                parameter.zero_()
    ffn = list(block.mlp.parameters())
    norms = [*block.post_attention_layernorm.parameters(), *model.model.norm.parameters()]
    matrices = {id(each): each for each in (model.model.embed_tokens.weight, model.head_weight)}
    rest = [*matrices.values(), *norms, *([] if model.head_bias is None else [model.head_bias])]
    groups = [{"params": rest, "peak": MATRIX_RATE}, {"params": ffn, "peak": FFN_RATE}]
    optimizer = torch.optim.AdamW(groups, lr=MATRIX_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    frequency_V, continuation_V = bigrams.frequencies(), bigrams.continuation()
    frequency_V = frequency_V / frequency_V.sum()
    size = min(ROWS, config.vocab_size)
    draws, left = np.random.Generator(np.random.Philox(key=seed % 2**64)), np.empty(0, dtype=np.int64)
    for step in range(STEPS):
        if len(left) < size:
            left = np.concatenate([left, draws.permutation(config.vocab_size)])
        tokens_R, left = torch.from_numpy(left[:size]).to(device), left[size:]
        weights_R = frequency_V[tokens_R] * (config.vocab_size / size)
        share = min(1.0, (step + 1) / WARMUP_STEPS, (1.0 - step / STEPS) / DECAY_SHARE)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        logits_RV = _logits(model, block, tokens_R)
        with torch.no_grad():  # of the cross-entropy, by hand: no step needs its value
            errors_RV = logits_RV.float().softmax(dim=-1) - bigrams.targets(tokens_R, continuation_V)
        logits_RV.backward(errors_RV * weights_R[:, None])
        optimizer.step()
        model.zero_grad(set_to_none=True)
    with torch.no_grad():
        parts = torch.arange(config.vocab_size, device=device).split(size)
        logps = (_logits(model, block, part).float().log_softmax(dim=-1) for part in parts)
        targets = (bigrams.targets(part, continuation_V) for part in parts)
        losses_V = torch.cat([-(q_RV * p_RV).sum(dim=-1) for q_RV, p_RV in zip(targets, logps, strict=True)])
        return float(losses_V @ frequency_V)


def _logits(model: Transformer, block: Block, tokens_R: Tensor) -> Tensor:
    """[R, V], of one token each, while no other part of the model has a say."""
    x_RD = model.model.embed_tokens(tokens_R)
    return model.head(model.model.norm(x_RD + _feed_forward(block, block.post_attention_layernorm(x_RD))))


def _feed_forward(block: Block, x_RD: Tensor) -> Tensor:
    if not block.config.use_moe:
        return block.mlp(x_RD)
    out_1RD, _ = block.mlp(x_RD[None], None)
    return out_1RD[0]
