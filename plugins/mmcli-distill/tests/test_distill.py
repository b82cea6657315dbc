"""The loss of distillation is the formula; the stage does what every stage must and refuses another tokenizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcli_distill import DISTILL, DistillConfig
from mmcli_distill import training as distill
from mmcli_distill.training import distill_loss, token_sums
from torch import Tensor

from mmcli.config import Layer, resolve
from mmcli.data.pack.batches import Batch
from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.runner import start
from mmcli.testing import check_stage, tiny_corpus, tiny_model
from mmcli.text.train import train_tokenizer
from mmcli.train.lm import TokenBatch, language_model_loss

SMALL: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 97, "init_std": 0.2}


def configured(**values: Any) -> DistillConfig:
    config: DistillConfig = resolve(DistillConfig, [DISTILL.layer, Layer("test", {"teacher": "1", **values})]).config
    return config


def random_logits(tokens: int = 7, vocabulary: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64) for _ in range(2)]
    return logits[0], logits[1], torch.arange(tokens) % vocabulary


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_both_sums_are_the_plain_formulas(temperature: float) -> None:
    student_NV, teacher_NV, labels_N = random_logits()
    cross_entropy, kl = token_sums(student_NV, teacher_NV, labels_N, temperature)
    expected_ce = expected_kl = 0.0
    for student, teacher, label in zip(student_NV.tolist(), teacher_NV.tolist(), labels_N.tolist(), strict=True):
        expected_ce -= student[label] - math.log(sum(map(math.exp, student)))
        q, p = ([math.exp(each / temperature) for each in logits] for logits in (student, teacher))
        expected_kl += sum(
            a / sum(p) * (math.log(a / sum(p)) - math.log(b / sum(q))) for a, b in zip(p, q, strict=True)
        )
    assert float(cross_entropy) == pytest.approx(expected_ce, rel=1e-9)
    assert float(kl) == pytest.approx(expected_kl, rel=1e-9)


def test_the_gradient_is_the_difference_of_the_distributions() -> None:
    student_NV, teacher_NV, labels_N = random_logits()
    student_NV.requires_grad_()
    (token_sums(student_NV, teacher_NV, labels_N, 2.0)[1] * 4.0).backward()
    expected_NV = 2.0 * ((student_NV / 2).softmax(dim=-1) - (teacher_NV / 2).softmax(dim=-1))
    torch.testing.assert_close(student_NV.grad, expected_NV.detach())


def made_batch(config: ModelConfig) -> TokenBatch:
    ids_BT = np.arange(48).reshape(3, 16) * 7 % 97
    labels_BT = np.roll(ids_BT, -1, axis=1)
    labels_BT[:, 10:] = -100
    positions_BT = np.tile(np.arange(16), (3, 1))
    made = Batch(ids_BT=ids_BT, labels_BT=labels_BT, positions_BT=positions_BT, segments_BT=positions_BT * 0)
    return TokenBatch.from_batch(made, config)


@pytest.mark.parametrize("moe", [False, True])
def test_without_the_teacher_it_is_the_plain_loss_whatever_the_chunks(
    moe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(**SMALL, use_moe=moe)
    model, teacher = Transformer(config, seed=1), Transformer(ModelConfig(**SMALL), seed=2).eval()
    batch = made_batch(config)
    plain = language_model_loss(model, batch, config)
    found = []
    for chunk in (4, 2048):
        monkeypatch.setattr(distill, "CHUNK_TOKENS", chunk)
        out = distill_loss(model, teacher, batch, config, configured(mix=0.0))
        torch.testing.assert_close(out.terms["loss"].sum, plain.terms["loss"].sum)
        assert out.terms.keys() == plain.terms.keys()
        model.zero_grad()
        distill_loss(model, teacher, batch, config, configured(mix=0.7)).terms["loss"].sum.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    assert all(each.grad is None for each in teacher.parameters())


def test_a_student_that_is_the_teacher_has_no_divergence() -> None:
    config = ModelConfig(**SMALL)
    model = Transformer(config, seed=1).eval()
    out = distill_loss(model, model, made_batch(config), config, configured())
    assert abs(float(out.metrics["kl"].sum.detach())) < 1e-4
    assert float(out.terms["loss"].sum.detach()) == pytest.approx(
        0.5 * float(out.metrics["cross_entropy"].sum.detach()), rel=1e-5
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"teacher": " "}, "needs a teacher"),
        ({"temperature": 0.0}, "temperature = 0.0 is not positive"),
        ({"mix": 1.5}, "mix = 1.5 is not in 0 to 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        configured(**values)
    assert said in caught.value.what


def test_a_student_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    teacher = tiny_model(tmp_path / "teacher")
    other = train_tokenizer(["another text, of other words"] * 20, vocab_size=300)
    config = ModelConfig(**{**SMALL, "vocab_size": other.vocab_size})
    save_model(tmp_path / "student", Transformer(config, seed=1), config, other)
    text = tiny_corpus(tmp_path / "corpus")["text"]
    values = {
        "teacher": str(teacher),
        "train.start_from": str(tmp_path / "student"),
        "train.steps": 1,
        "train.device": "cpu",
        "data.seq_len": 64,
        "data.sources": [str(text)],
    }
    with pytest.raises(UserError, match="has another tokenizer than the student"):
        start(DISTILL, [Layer("test", values)], runs_dir=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("0*"))


@pytest.mark.slow
@pytest.mark.parametrize("on", ["text", "chat"])
def test_it_does_what_every_stage_must(on: str, tmp_path: Path) -> None:
    values = {"teacher": str(tiny_model(tmp_path / "teacher")), "on": on}
    assert [check for check in check_stage("distill", values, folder=tmp_path) if check.problem] == []
