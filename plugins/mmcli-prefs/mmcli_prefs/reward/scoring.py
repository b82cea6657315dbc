"""Replies scored by a reward model, as a reward: `--reward model=MODEL`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmcli.api import Attempt, RewardModel, TokenBatch, Tokenizer, encode_chat, load_reward_model
from mmcli_prefs.reward.rows import last_places, whole_rows


class Scorer:
    """A reward model with its own tokenizer: whatever wrote the replies, it reads them as messages."""

    def __init__(self, model: RewardModel, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer

    def __call__(self, attempt: Attempt) -> float:
        """The score of the last reply of an attempt, after all that came before it."""
        turns = attempt.turns or ({"role": "assistant", "content": attempt.reply},)
        return self.score([*attempt.prompt, *turns])

    @torch.inference_mode()
    def score(self, messages: Sequence[Mapping[str, Any]]) -> float:
        """The score of a conversation. Of one longer than the model's context its end is read.

        Raises:
            UserError: the chat template does not take it.
        """
        ids = encode_chat(self._tokenizer, messages).ids[-self._model.config.max_seq_len :]
        batch = whole_rows([np.array(ids)], self._tokenizer.pad_id, len(ids))
        rows = TokenBatch.from_batch(batch, self._model.config).to(self._model.score.weight.device)
        [score] = self._model.scores(rows.ids_BT, rows.ctx, last_places(rows.labels_BT)).tolist()
        return float(score)


def open_reward(folder: Path) -> Scorer:
    """The reward of a reward model's folder.

    Raises:
        UserError: it is not a reward model.
    """
    return Scorer(load_reward_model(folder), Tokenizer.load(folder))
