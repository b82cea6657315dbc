"""Reward models: the loss of trl, the scores of transformers, and a reward that others can use."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmcli_prefs.reward import REWARD, RewardConfig
from mmcli_prefs.reward.rows import last_places, whole_rows
from mmcli_prefs.reward.scoring import Scorer, open_reward
from mmcli_prefs.reward.training import pair_losses
from torch import Tensor

from mmcli.api import (
    Attempt,
    ModelConfig,
    TokenBatch,
    Tokenizer,
    Transformer,
    UserError,
    encode_chat,
    load_model,
    load_reward_model,
    new_score,
    run_stage,
    save_model,
    save_reward_model,
)
from mmcli.find import find_language_model, find_model
from mmcli.testing import check_stage, tiny_model

SMALL: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "init_std": 0.1, "max_seq_len": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied": {"tie_embeddings": False},
    "qwen3": {"qk_norm": True},
    "gpt2": {"norm": "layernorm", "position": "learned", "mlp": "gelu_tanh", "bias": True, "n_kv_heads": 4},
    "qwen3_moe": {"use_moe": True, "n_shared_experts": 0, "norm_topk_prob": False, "qk_norm": True},
}


def trl_loss(scores_P2: Tensor, center: float | None) -> Tensor:
    """trl's `RewardTrainer.compute_loss`, given a model with these scores."""
    from trl.trainer.reward_trainer import RewardTrainer

    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=center),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    logits = torch.cat([scores_P2[:, 0], scores_P2[:, 1]])[:, None]
    return RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), {})


@pytest.mark.parametrize("center", [0.0, 0.01])
def test_the_loss_and_its_gradient_equal_trl(center: float) -> None:
    pytest.importorskip("trl")
    scores_P2 = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)) * 3
    ours, theirs = (scores_P2.clone().requires_grad_() for _ in range(2))
    mine, other = pair_losses(ours, center)[0].mean(), trl_loss(theirs, center or None)
    torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
    mine.backward()
    other.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("reward") / "model")


@pytest.fixture(scope="module")
def tokenizer(language_model: Path) -> Tokenizer:
    return Tokenizer.load(language_model)


def saved(folder: Path, tokenizer: Tokenizer, **shape: Any) -> Path:
    """A reward model of random weights."""
    base = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **{**SMALL, **shape}), seed=1)
    save_reward_model(folder, base, new_score(base, 2), tokenizer)
    return folder


def conversation(text: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_gives_the_same_scores(shape: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = saved(tmp_path / shape, tokenizer, **SHAPES[shape])
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.config.num_labels == 1
    talks = [conversation("What is a cloud?", "It is water."), conversation("Why?", "I will not say why it is so.")]
    ids = [np.array(encode_chat(tokenizer, talk).ids) for talk in talks]
    batch = whole_rows(ids, tokenizer.pad_id, 128)
    mask = torch.from_numpy((batch.segments_BT >= 0).astype(np.int64))
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(batch.ids_BT), attention_mask=mask).logits[:, 0].tolist()
    mine = load_reward_model(folder, device="cpu")
    rows = TokenBatch.from_batch(batch, mine.config)
    with torch.no_grad():
        found = mine.scores(rows.ids_BT, rows.ctx, last_places(rows.labels_BT)).tolist()
    assert found == pytest.approx(expected, abs=1e-5) and abs(found[0] - found[1]) > 1e-3
    scorer = Scorer(mine, tokenizer)
    assert [scorer.score(talk) for talk in talks] == pytest.approx(found, abs=1e-5)


def test_a_long_conversation_is_read_at_its_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    scorer = open_reward(saved(tmp_path / "model", tokenizer))
    start = conversation("say it. " * 200, "No.")
    assert scorer.score([*start, *conversation("Why?", "yes " * 60)]) == scorer.score(conversation("Why?", "yes " * 60))


def test_the_reward_of_an_attempt_is_the_score_of_its_conversation(tokenizer: Tokenizer, tmp_path: Path) -> None:
    scorer = open_reward(saved(tmp_path / "model", tokenizer))
    asked, reply = conversation("What is a cloud?", "It is water.")
    attempt = Attempt(prompt=(asked,), answer="", reply="It is water.")
    for turns in ((), (reply,)):
        assert scorer(replace(attempt, turns=turns)) == scorer.score([asked, reply])


def test_a_reward_model_is_none_that_writes(language_model: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", tokenizer)
    with pytest.raises(UserError, match="is a reward model"):
        load_model(folder)
    with pytest.raises(UserError, match="is a reward model"):
        find_language_model(str(folder), tmp_path)
    with pytest.raises(UserError, match="is not a reward model"):
        load_reward_model(language_model)
    for run, path in (("0001-sft-a", language_model), ("0002-reward-a", folder)):
        target = tmp_path / "runs" / run / "model"
        target.mkdir(parents=True)
        for name in ("config.json", "tokenizer.json"):
            (target / name).write_bytes((path / name).read_bytes())
    found = {ref: find_model(ref, tmp_path / "runs").run for ref in ("latest", "latest:reward")}
    assert {ref: run and run.number for ref, run in found.items()} == {"latest": 1, "latest:reward": 2}


def test_a_score_of_several_labels_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    base = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **SMALL))
    save_reward_model(tmp_path / "m", base, torch.zeros(2, 32), tokenizer)
    with pytest.raises(UserError, match=r"a score of \[2, 32\]"):
        load_reward_model(tmp_path / "m")


def test_values_that_make_no_sense_are_refused() -> None:
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="center"):
            RewardConfig(center=value)


def pairs_file(path: Path) -> Path:
    rows = [{"prompt": f"{i}?", "chosen": f"Yes, it is {i}.", "rejected": "I will not say."} for i in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_it_learns_which_reply_is_better(tied: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **SMALL, tie_embeddings=tied)
    save_model(tmp_path / "base", Transformer(config, seed=0), config, tokenizer)
    values = {"data.sources": [str(pairs_file(tmp_path / "pairs.jsonl"))], "data.seq_len": 128, "train.steps": 20}
    values |= {"train.start_from": str(tmp_path / "base"), "train.batch_size": 8, "optim.lr": 1e-2}
    run = run_stage("reward", {**values, "train.device": "cpu", "train.precision": "fp32"}, runs_dir=tmp_path / "runs")
    assert run.info()["val_accuracy"] == 1.0
    scorer = open_reward(run.model)
    scores = [scorer.score(conversation("99?", reply)) for reply in ("Yes, it is 99.", "I will not say.")]
    assert scores[0] > scores[1] + 1
    assert REWARD.name in run.name


@pytest.mark.slow
def test_it_does_what_every_stage_must(tmp_path: Path) -> None:
    assert [check for check in check_stage("reward", folder=tmp_path) if check.problem] == []
