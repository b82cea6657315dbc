"""The loss of distillation is the formula; the stage does what every stage must and refuses another tokenizer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcli_distill import DISTILL, DistillConfig, replies
from mmcli_distill import loss as distill
from mmcli_distill.loss import TaughtBatch, distill_loss, likeliest, table_loss, token_sums, top_sums
from mmcli_distill.table import SHARD_ROWS
from torch import Tensor

from mmcli.config import Layer, resolve
from mmcli.data.pack.batches import Batch
from mmcli.errors import UserError
from mmcli.generate.generate import Completion
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.runner import start
from mmcli.stage import Silent
from mmcli.testing import check_stage, tiny_corpus, tiny_model
from mmcli.text.tokenizer import Tokenizer
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
        ({"top_k": -1}, "top_k = -1 is below 0"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0 leaves nothing to write"),
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
@pytest.mark.parametrize(
    "values", [{"on": "text"}, {"on": "chat"}, {"on": "text", "top_k": 8}, {"on": "chat", "top_k": 8}]
)
def test_it_does_what_every_stage_must(values: dict[str, Any], tmp_path: Path) -> None:
    values = {"teacher": str(tiny_model(tmp_path / "teacher")), **values}
    assert [check for check in check_stage("distill", values, folder=tmp_path) if check.problem] == []


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("k", [1, 4, 10])
def test_with_k_tokens_the_others_are_one_outcome(k: int, temperature: float) -> None:
    student_NV, teacher_NV, labels_N = random_logits()
    cross_entropy, kl = top_sums(student_NV, *likeliest(teacher_NV, k, temperature), labels_N, temperature)
    whole_ce, whole_kl = token_sums(student_NV, teacher_NV, labels_N, temperature)
    expected = 0.0
    for student, teacher in zip(student_NV.tolist(), teacher_NV.tolist(), strict=True):
        q, p = ([math.exp(each / temperature) for each in logits] for logits in (student, teacher))
        q, p = [each / sum(q) for each in q], [each / sum(p) for each in p]
        top = sorted(range(len(p)), key=lambda id: -p[id])[:k]
        pairs = [(p[id], q[id]) for id in top] + [(1 - sum(p[id] for id in top), 1 - sum(q[id] for id in top))]
        expected += sum(a * math.log(a / b) for a, b in pairs)
    assert float(kl) == pytest.approx(expected, rel=1e-9)
    assert float(cross_entropy) == pytest.approx(float(whole_ce), rel=1e-12)
    assert float(kl) <= float(whole_kl) + 1e-12
    if k == 10:  # of 11: the others are one token, too
        assert float(kl) == pytest.approx(float(whole_kl), rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_is_that_of_trl(temperature: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd", reason="this trl has no GKD trainer")
    student_NV, teacher_NV, labels_N = random_logits()
    wanted = gkd.GKDTrainer.generalized_jsd_loss(
        student_NV[None], teacher_NV[None], beta=0.0, temperature=temperature, reduction="sum"
    )
    whole = token_sums(student_NV, teacher_NV, labels_N, temperature)[1]
    top = top_sums(student_NV, *likeliest(teacher_NV, 10, temperature), labels_N, temperature)[1]
    assert float(whole) == pytest.approx(float(wanted), rel=1e-6)
    assert float(top) == pytest.approx(float(wanted), rel=1e-6)


def test_a_table_of_nearly_all_tokens_gives_the_loss_and_the_gradient_of_the_teacher_itself() -> None:
    config = ModelConfig(**SMALL)
    model, teacher = Transformer(config, seed=1), Transformer(config, seed=2).eval()
    batch, settings = made_batch(config), configured(mix=0.7, top_k=96)
    with torch.no_grad():
        logits_NV = teacher.head(teacher(batch.ids_BT, batch.ctx)[0]).flatten(0, 1)[(batch.labels_BT >= 0).flatten()]
    taught = TaughtBatch(batch, *likeliest(logits_NV, 96, settings.temperature))
    found = []
    for out in (
        distill_loss(model, teacher, batch, config, settings),
        table_loss(model, taught.to(torch.device("cpu")), config, settings),
    ):
        model.zero_grad()
        out.terms["loss"].sum.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((out.terms["loss"].sum.detach(), out.metrics["kl"].sum.detach(), gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.fixture
def prepared(tmp_path: Path) -> dict[str, Any]:
    """Values of a training of three steps on a tiny corpus, with a tiny teacher."""
    text = tiny_corpus(tmp_path / "corpus")["text"]
    shape = {"model.dim": 16, "model.n_layers": 1, "model.n_heads": 2, "model.n_kv_heads": 1}
    return {
        "teacher": str(tiny_model(tmp_path / "teacher")),
        "data.sources": [str(text)],
        "data.seq_len": 64,
        "train.steps": 3,
        "train.batch_size": 2,
        "train.device": "cpu",
        "train.precision": "fp32",
        **shape,
    }


def trained(values: dict[str, Any], runs: Path, **more: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """(metrics of each step, what was said)."""
    said: list[str] = []

    class Told(Silent):
        def note(self, text: str) -> None:
            said.append(text)

        def warn(self, text: str) -> None:
            said.append(text)

        def progress(self, task: str, done: float, total: float | None, unit: str) -> None:
            if task in ("teacher", "replies"):
                said.append(f"{task} {done}/{total}")

    run = start(DISTILL, [Layer("test", {**values, **more})], runs_dir=runs, report=Told())
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines() if '"loss"' in line], said


def test_the_teacher_runs_once_for_all_students(prepared: dict[str, Any], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first, said = trained(prepared, runs, top_k=8)
    assert "teacher 1/1" in said
    again, said_again = trained(prepared, runs, top_k=8)
    assert not any(line.startswith("teacher ") for line in said_again)
    assert [each["loss"] for each in first] == [each["loss"] for each in again]
    assert len(list((runs / ".cache" / "teacher").glob("*/*"))) == 1
    for change in ({"temperature": 1.0}, {"top_k": 9}, {"data.seq_len": 32}, {"train.seed": 5}):
        _, said_other = trained({**prepared, "top_k": 8}, runs, **change)
        assert "teacher 1/1" in said_other, change


def test_a_damaged_shard_is_made_again(prepared: dict[str, Any], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first, _ = trained(prepared, runs, top_k=8)
    [file] = (runs / ".cache" / "teacher").rglob("logps.npy")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    again, said = trained(prepared, runs, top_k=8)
    assert any("are computed again" in line for line in said) and "teacher 1/1" in said
    assert [each["loss"] for each in first] == [each["loss"] for each in again]
    assert SHARD_ROWS == 256


def test_all_tokens_are_no_likeliest_ones(prepared: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"of a vocabulary of .* leaves nothing out"):
        trained(prepared, tmp_path / "runs", top_k=10**6)


def test_the_replies_of_the_teacher_become_what_is_learnt(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(prompts: Any) -> Any:
        for number, _ in enumerate(prompts):
            stop = None if number == 0 else 0
            yield Completion(number, 0, own.encode_text(f"Reply {number}."), "length" if stop is None else "stop", stop)

    own = Tokenizer.load(Path(prepared["teacher"]))
    monkeypatch.setattr(replies, "generate_batch", lambda engine, prompts, *_, **__: ends(prompts))
    chats = tmp_path / "chats.jsonl"
    asked = [[{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": "x"}] for n in range(12)]
    chats.write_text("".join(json.dumps({"messages": each}) + "\n" for each in [*asked, asked[3]]), encoding="utf-8")
    values = {**prepared, "on": "replies", "data.sources": [str(chats)]}
    metrics, said = trained(values, tmp_path / "runs", mix=0.0)
    assert "kl" not in metrics[0] and math.isfinite(metrics[-1]["loss"])
    assert any("1 repeated prompts" in line and "1 replies that did not end" in line for line in said)
    [file] = (tmp_path / "runs").glob("0001-*/replies/replies.jsonl")
    lines = [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert [each[-1]["content"] for each in lines] == [f"Reply {n}." for n in range(1, 12)]
    assert [each[0]["content"] for each in lines] == [f"Question {n}?" for n in range(1, 12)]
    metrics, _ = trained(values, tmp_path / "runs", top_k=4)
    assert metrics[0]["kl"] > 0


def test_replies_cross_from_one_tokenizer_to_another(prepared: dict[str, Any], tmp_path: Path) -> None:
    other = train_tokenizer(["another text, of other words"] * 20, vocab_size=300)
    config = ModelConfig(**{**SMALL, "vocab_size": other.vocab_size})
    save_model(tmp_path / "student", Transformer(config, seed=1), config, other)
    chat = tiny_corpus(tmp_path / "corpus")["chat"]
    values = {key: value for key, value in prepared.items() if not key.startswith("model.")}
    values |= {"on": "replies", "data.sources": [str(chat)], "train.start_from": str(tmp_path / "student")}
    values |= {"max_new_tokens": 1, "train.steps": 1}
    with pytest.raises(UserError) as caught:
        trained(values, tmp_path / "runs", mix=0.0)
    assert "no reply of" in caught.value.what  # a teacher of random weights ends no reply in a token
    with pytest.raises(UserError) as caught:
        trained({**values, "on": "chat"}, tmp_path / "runs")
    assert "--on replies --mix 0" in caught.value.fix
