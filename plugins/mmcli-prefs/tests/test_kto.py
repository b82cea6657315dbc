"""KTO: the loss and the gradient of trl, replies beside mismatched ones, and the same loss however a step is cut."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcli_prefs.kto import KTO, KtoConfig
from mmcli_prefs.kto.records import UNPAIRED, as_labelled, is_labelled
from mmcli_prefs.kto.replies import MISMATCHED, OWN, Mismatched
from mmcli_prefs.kto.training import kto_losses
from torch import Tensor

from mmcli.api import Record, RecordError, TokenCache, Tokenizer, UserError, open_sources, register_kind, run_stage
from mmcli.testing import check_stage, tiny_corpus, tiny_model

REPLIES = [("the sky?", "It is blue.", True), ("a dog?", "I will not say, and that is that.", False)]


def trl_kto(
    logps_B: Tensor, lengths_B: Tensor, reference_B: Tensor, good_B: Tensor, kl_B2: Tensor, c: KtoConfig
) -> Any:
    """trl's `KTOTrainer._compute_loss`, given a model whose tokens have these log-probabilities.

    Args:
        kl_B2: log-probabilities of the mismatched replies under the model and the reference.
    """
    from trl.trainer.kto_trainer import KTOTrainer

    longest = int(lengths_B.max())
    replies_BT = (torch.arange(longest) < lengths_B[:, None]).long()
    token_logps_BT = logps_B[:, None] / lengths_B[:, None] * replies_BT
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x)
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=c.beta,
        desirable_weight=c.desirable_weight,
        undesirable_weight=c.undesirable_weight,
        _compute_kl_logps=lambda model, batch: kl_B2[:, 0],
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    ones_BT = torch.ones_like(token_logps_BT)
    outputs = SimpleNamespace(log_probs=token_logps_BT, entropy=ones_BT, mean_logits=ones_BT)
    mask_BT = F.pad(replies_BT, (1, 0))
    inputs = {
        "input_ids": torch.zeros_like(mask_BT),
        "attention_mask": torch.ones_like(mask_BT),
        "completion_mask": mask_BT,
        "label": good_B,
        "ref_logps": reference_B,
        "ref_KL_logps": kl_B2[:, 1],
    }
    return KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)


@pytest.mark.parametrize("config", [KtoConfig(), KtoConfig(beta=0.5, desirable_weight=1.5, undesirable_weight=0.5)])
@pytest.mark.parametrize("above", [3.0, -3.0])
def test_the_loss_and_its_gradient_equal_trl(config: KtoConfig, above: float) -> None:
    pytest.importorskip("trl")
    generator = torch.Generator().manual_seed(0)
    lengths_B = torch.randint(1, 40, (16,), generator=generator)
    reference_B = -lengths_B * (0.05 + 3.0 * torch.rand(16, generator=generator))
    logps_B = reference_B * (0.5 + torch.rand(16, generator=generator))
    mismatched_B2 = -100 * torch.rand(16, 2, generator=generator)
    mismatched_B2[:, 0] = mismatched_B2[:, 1] + above + torch.randn(16, generator=generator)  # below 0 it is clamped
    good_B = torch.rand(16, generator=generator) < 0.5
    ours, theirs = (logps_B.clone().requires_grad_() for _ in range(2))
    kl = (mismatched_B2[:, 0] - mismatched_B2[:, 1]).mean().clamp(min=0)
    mine = kto_losses(ours - reference_B, good_B, kl, config)[0].mean()
    other = trl_kto(theirs, lengths_B, reference_B, good_B, mismatched_B2, config)
    torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
    mine.backward()
    other.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)


def record(**value: Any) -> Record:
    return Record("replies.jsonl", 1, value)


@pytest.mark.parametrize("label", [True, False, 1, 0])
def test_a_labelled_reply_is_read(label: Any) -> None:
    for value in (
        {"prompt": "the sky?", "completion": "blue"},
        {"messages": [{"role": "user", "content": "the sky?"}, {"role": "assistant", "content": "blue"}]},
        {"prompt": [{"role": "user", "content": "the sky?"}], "completion": [{"role": "assistant", "content": "blue"}]},
    ):
        found = as_labelled(record(**value, label=label))
        assert (list(found.texts), found.good) == (["the sky?", "blue"], bool(label))


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b", "label": "yes"},
        {"prompt": "a", "completion": "b", "label": 2},
        {"text": "a", "label": True},
        {"prompt": "a", "chosen": "b", "rejected": "c", "label": True},
    ],
)
def test_what_is_no_labelled_reply(value: dict[str, Any]) -> None:
    assert not is_labelled(value)
    with pytest.raises(RecordError):
        as_labelled(record(**value))


def test_a_conversation_that_ends_without_a_reply_is_rejected() -> None:
    with pytest.raises(RecordError, match="does not end with a reply"):
        as_labelled(record(messages=[{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}], label=1))


def labelled_file(path: Path, count: int) -> Path:
    rows = [{"prompt": f"{i}: {p}", "completion": r, "label": good} for i in range(count) for p, r, good in REPLIES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("kto") / "model")


def cache_of(path: Path, kind: str, model: Path, folder: Path) -> TokenCache:
    register_kind(UNPAIRED)
    return TokenCache.build_or_open(folder, open_sources([str(path)], kind=kind), Tokenizer.load(model))


@pytest.mark.parametrize("kind", ["unpaired", "preference"])
def test_each_reply_lies_beside_its_prompt_with_that_of_another_record(kind: str, model: Path, tmp_path: Path) -> None:
    pairs = tiny_corpus(tmp_path / "corpus")["preference"]
    path = labelled_file(tmp_path / "replies.jsonl", 8) if kind == "unpaired" else pairs
    cache = cache_of(path, kind, model, tmp_path / "cache")
    if kind == "unpaired":
        assert cache.labels is not None and cache.labels.tolist() == [1.0, 0.0] * 8
    both, per = Mismatched(cache, seed=3), cache.sequences_per_record
    lenders = set()
    for i in range(len(cache)):
        own, other = 2 * i + OWN, 2 * i + MISMATCHED
        assert np.array_equal(both.ids(own), cache.ids(i)) and np.array_equal(both.trained(own), cache.trained(i))
        lender, prompt = int(both.lender_N[i]), int(np.flatnonzero(cache.trained(i))[0])
        lent = int(np.flatnonzero(cache.trained(lender))[0])
        assert lender // per != i // per and lender % per == i % per
        assert both.ids(other).tolist() == [*cache.ids(i)[:prompt], *cache.ids(lender)[lent:]]
        assert not both.trained(other)[:prompt].any() and both.trained(other)[prompt]
        assert both.lengths_of(np.array([own, other])).tolist() == [len(both.ids(own)), len(both.ids(other))]
        assert np.array_equal(both.ids(other, 2, 9), both.ids(other)[2:9])
        lenders.add(lender)
    assert len(lenders) == len(cache)  # a circle


def test_a_single_record_has_no_other(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b", "label": True}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="single record"):
        Mismatched(cache_of(path, "unpaired", model, tmp_path / "cache"), 0)


@pytest.mark.parametrize("values", [{"beta": 0.0}, {"desirable_weight": -1.0}, {"desirable_weight": 0.0}])
def test_values_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UserError):
        KtoConfig(**{"undesirable_weight": 0.0, **values})  # type: ignore[arg-type]  # numbers


def trained(model: Path, folder: Path, **values: Any) -> list[dict[str, Any]]:
    """The lines of metrics of a short run on labelled replies."""
    register_kind(UNPAIRED)
    data = labelled_file(folder / "replies.jsonl", 24)
    given = {"data.sources": [str(data)], "data.seq_len": 128, "train.start_from": str(model), "train.device": "cpu"}
    given |= {"train.precision": "fp32", "train.batch_size": 8, "train.steps": 4, "train.compile": "off"}
    run = run_stage("kto", {**given, **values}, runs_dir=folder / "runs")
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_the_loss_is_the_same_however_a_step_is_cut(model: Path, tmp_path: Path) -> None:
    one, two = (
        trained(model, tmp_path, **{"train.micro_batch": size, "optim.lr": 1e-2, "beta": 0.5}) for size in (8, 3)
    )
    assert max(line.get("kl", 0.0) for line in one) > 0.1  # else the test would say nothing
    for name in ("loss", "kl", "accuracy", "grad_norm", "val_loss"):
        values = [[line[name] for line in lines if name in line] for lines in (one, two)]
        assert values[0] == pytest.approx(values[1], rel=1e-4), name


@pytest.mark.slow
def test_it_learns_which_replies_are_wanted(model: Path, tmp_path: Path) -> None:
    lines = trained(model, tmp_path, **{"train.steps": 20, "optim.lr": 1e-2, "data.val_fraction": 0.3})
    assert lines[-1]["val_accuracy"] == 1.0 and lines[-1]["val_loss"] < 0.4  # 0.5 at first
    last = [line for line in lines if "good_reward" in line][-1]
    assert last["good_reward"] > 0 > last["bad_reward"]


@pytest.mark.slow
def test_it_does_what_every_stage_must(tmp_path: Path) -> None:
    assert KTO.name == "kto"
    assert [check for check in check_stage("kto", folder=tmp_path) if check.problem] == []
