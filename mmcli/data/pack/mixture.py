"""Mixtures: sources with weights, `--data a.jsonl:0.7 --data b.parquet:0.3`.

The weights are shares of the tokens of an epoch. No source is repeated: an epoch has all of the source that is
scarcest for its share, and of the others as many tokens as their shares then allow. Which records those are, a hash of
their content and the seed decides. See docs/decisions/005-mixtures.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmcli.data.sources.hub import COMMIT
from mmcli.errors import UserError


def token_targets(tokens: Sequence[int], mixture: Sequence[tuple[str, float]]) -> list[int]:
    """Tokens that an epoch takes of each part, which has `tokens` of them.

    Args:
        mixture: (name, share) of each part.

    Raises:
        UserError: a part has no token.
    """
    for count, (name, share) in zip(tokens, mixture, strict=True):
        if not count:
            raise UserError(f"{name} has a share of {share:.1%}, but no token to train on", "leave it out of --data")
    epoch = min(count / share for count, (_, share) in zip(tokens, mixture, strict=True))
    return [min(count, round(epoch * share)) for count, (_, share) in zip(tokens, mixture, strict=True)]


def describe_mixture(names: Sequence[str], taken: Sequence[int], tokens: Sequence[int]) -> str:
    """One line for the person: how much of each part an epoch uses, and its true share; commits are shortened."""
    short = (COMMIT.sub(lambda commit: commit[0][:7], name) for name in names)
    each = (
        f"{name} {used:,} of {count:,} tokens ({used / max(1, sum(taken)):.1%})"
        for name, used, count in zip(short, taken, tokens, strict=True)
    )
    return "an epoch has: " + ", ".join(each)


def take_tokens(lengths_N: np.ndarray, hashes_N: np.ndarray, target: int, *, cut: bool) -> np.ndarray:
    """[N] tokens to take of each of N records, `target` in all, in the order of their hashes.

    Args:
        cut: the last record may be taken in part (its beginning); else whole records come as near as they can, and
            there is at least one.
    """
    order = np.argsort(hashes_N, kind="stable")
    ends = np.cumsum(lengths_N[order])
    taken = np.zeros(len(lengths_N), dtype=np.int64)
    if cut:
        starts = ends - lengths_N[order]
        taken[order] = np.clip(target - starts, 0, lengths_N[order])
        return taken
    count = int(np.searchsorted(ends, target, side="right"))  # so many records do not go beyond the target
    before = int(ends[count - 1]) if count else 0
    if count < len(order) and (not count or int(ends[count]) - target < target - before):
        count += 1
    taken[order[:count]] = lengths_N[order[:count]]
    return taken


def scatter(hashes: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 (Steele et al. 2014) of hash + seed: even over 0 to 2**64, another order for each seed."""
    x = hashes.astype(np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
