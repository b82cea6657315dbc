"""Reward models: a transformer whose head is one number a sequence, in the layout of transformers'
`AutoModelForSequenceClassification` with `num_labels = 1`.

Shapes: B rows, T tokens, D width.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmcli.errors import UserError
from mmcli.files import write_json
from mmcli.find import is_reward_model
from mmcli.manifest import refuse_damaged
from mmcli.model.attention import AttnContext
from mmcli.model.device import choose_device
from mmcli.model.formats.families import family_of
from mmcli.model.formats.hf_config import read_config_and_family, to_hf_config
from mmcli.model.formats.parameters import build_model, disk_tensors
from mmcli.model.formats.weights import INDEX, WEIGHTS, open_weights
from mmcli.model.transformer import Head, Transformer

if TYPE_CHECKING:
    from mmcli.text.tokenizer import Tokenizer

SCORE = "score.weight"  # [1, D]
LANGUAGE_MODEL = re.compile(r"(ForCausalLM|LMHeadModel)$")


class RewardModel(Transformer):
    """A Transformer that scores: the hidden state of a sequence's last token through `score`, in place of the head.

    It shares all modules but the head with the language model that it is made of.
    """

    def __init__(self, base: Transformer, score_1D: Tensor) -> None:
        """
        Args:
            base: its modules are taken as they are, with what an adapter put into them.
            score_1D: the weights of the score, on the device of `base`.
        """
        nn.Module.__init__(self)  # not that of Transformer, which would make weights of its own
        self.config = dataclasses.replace(base.config, tie_embeddings=True, head_bias=False)  # a head without weights
        self.model, self.lm_head, self.rotary = base.model, Head(self.config), base.rotary
        self.checkpoint_layers, self.training = base.checkpoint_layers, base.training
        self.score = nn.Linear(score_1D.shape[1], 1, bias=False, device="meta")
        self.score.weight = nn.Parameter(score_1D)

    def scores(self, ids_BT: Tensor, ctx: AttnContext, last_B: Tensor) -> Tensor:
        """[B] fp32, of the sequences that end at the places `last_B` of their rows."""
        hidden_BTD, _ = self(ids_BT, ctx)
        return last_scores(self, hidden_BTD, last_B)


def last_scores(model: Any, hidden_BTD: Tensor, last_B: Tensor) -> Tensor:
    """[B] fp32: the scores of the hidden states at the places `last_B`.

    Args:
        model: a RewardModel, or its compiled form.
    """
    rows_B = torch.arange(hidden_BTD.shape[0], device=hidden_BTD.device)
    scores_B: Tensor = model.score(hidden_BTD[rows_B, last_B]).float().squeeze(1)
    return scores_B


def new_score(base: Transformer, seed: int) -> Tensor:
    """[1, D] normal numbers of the deviation 1 / sqrt(D + 1) (Stiennon et al. 2020, arXiv:2009.01325, appendix B)."""
    generator = torch.Generator().manual_seed(seed)
    score_1D = torch.randn(1, base.config.dim, generator=generator) / (base.config.dim + 1) ** 0.5
    return score_1D.to(base.head_weight)


def save_reward_model(folder: Path, base: Transformer, score_1D: Tensor, tokenizer: Tokenizer) -> None:
    """Write a complete folder of a reward model; the caller writes beside the final place, then renames.

    Args:
        folder: made if missing.
        base: the model whose hidden states are scored; of its head nothing is kept.
        score_1D: the weights of the score.
    """
    family = family_of(base.config)
    folder.mkdir(parents=True, exist_ok=True)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    document = to_hf_config(base.config, dtype=str(score_1D.dtype).removeprefix("torch."), family=family, **ids)
    document["architectures"] = [LANGUAGE_MODEL.sub("ForSequenceClassification", family.architecture)]
    document |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}  # transformers counts the labels by these
    write_json(folder / "config.json", document)
    headless = RewardModel(base, score_1D)
    state = {name: each for name, each in headless.state_dict().items() if name != SCORE}
    tensors = disk_tensors(state, headless.config, family.layout) | {SCORE: score_1D.detach()}
    save_file({name: each.cpu().contiguous() for name, each in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    tokenizer.save(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")


def load_reward_model(folder: Path, *, device: str = "auto") -> RewardModel:
    """The reward model of a folder, in eval mode, its weights in fp32: one of `mmcli reward`, or of another program in
    the layout of transformers.

    Raises:
        UserError: it is no reward model, scores more than one label, its files are damaged, or there is no such device.
    """
    if not is_reward_model(folder):
        raise UserError(f"{folder} is not a reward model", "train one: mmcli reward (plugins/mmcli-prefs)")
    config, family = read_config_and_family(folder)
    refuse_damaged(folder, [WEIGHTS, INDEX])
    weights = open_weights(folder)
    score = weights.entries.get(SCORE)
    if score is None or tuple(score.shape) != (1, config.dim):
        found = "no score" if score is None else f"a score of {list(score.shape)}"
        raise UserError(f"{folder} has {found}, not one of [1, {config.dim}]", "give a model with a single label")
    headless, place = dataclasses.replace(config, tie_embeddings=True, head_bias=False), choose_device(device)
    base = build_model(weights.without([SCORE]), headless, family.layout, device=place, dtype=torch.float32)
    return RewardModel(base, score.read().to(place, torch.float32)).eval()


CARD = """---
tags:
- mmcli
- reward-model
---

# A reward model trained with mmcli

It gives a conversation one number, the higher the better its last reply:
`transformers.AutoModelForSequenceClassification`, with the score of the last token.
"""
