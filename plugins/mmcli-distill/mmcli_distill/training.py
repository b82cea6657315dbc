"""The work of `mmcli distill`: the task of predicting tokens, with the teacher's distributions in its loss.

Shapes: N labelled tokens, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmcli.api import (
    LossOutput,
    Metric,
    ModelConfig,
    StageContext,
    Term,
    TokenBatch,
    Tokenizer,
    UserError,
    choose_accelerator,
    find_reference,
    load_model,
    make_deterministic,
    open_data,
    open_rows,
    pin_model,
    prepare_start,
    token_task,
    train,
)
from mmcli_distill import DistillConfig

CHUNK_TOKENS = 2048  # whose logits, of both models, are in memory together
METRICS = (Metric("loss"), Metric("kl", label="KL"), Metric("cross_entropy", label="plain"))


def run(config: DistillConfig, context: StageContext) -> dict[str, Any]:
    """Train on data and teacher; the totals of the run.

    Raises:
        UserError: the data or a model cannot be used, or teacher and student have different tokenizers.
    """
    make_deterministic()
    accelerator = choose_accelerator(config.train.device, config.train.precision, context)
    data_config, named = config.data, find_reference(config.teacher, context)
    if config.train.start_from is None and data_config.tokenizer is None:
        data_config = replace(data_config, tokenizer=str(named.path))
    data = open_data(config.on, data_config)  # refuse what is not there before anything is made
    start = prepare_start(config.model, data, config.train, context, accelerator.device)
    pin_model("reference", named, context)
    if Tokenizer.load(named.path).fingerprint != start.tokenizer.fingerprint:
        what = (
            f"the teacher {named.label} has another tokenizer than the student: their distributions have other tokens"
        )
        raise UserError(what, "give a teacher with the same tokenizer, or leave --from and --tokenizer out")
    teacher = load_model(named.path, device=accelerator.device).eval().requires_grad_(False)
    if teacher.config.vocab_size != start.model.config.vocab_size:
        what = f"teacher and student have {teacher.config.vocab_size} and {start.model.config.vocab_size} logits"
        raise UserError(what, "give both the same model.vocab_size")
    rows = open_rows(data, config.train, start.tokenizer, context)
    task = token_task(start, rows, config.train, accelerator, context)
    held_out = tuple(metric for metric in task.metrics if metric.held_out)

    def loss(model: Any, batch: TokenBatch) -> LossOutput:
        return distill_loss(model, teacher, batch, start.model.config, config)

    return train(replace(task, loss=loss, metrics=(*METRICS, *held_out)), config.optim, config.train, context)


def distill_loss(
    model: Any, teacher: Any, batch: TokenBatch, model_config: ModelConfig, config: DistillConfig
) -> LossOutput:
    """Mean loss of the labelled tokens, plus alpha times the balance loss of the experts."""
    hidden_BTD, stats = model(batch.ids_BT, batch.ctx)
    with torch.no_grad():
        seen_BTD, _ = teacher(batch.ids_BT, batch.ctx)
    at_N = (batch.labels_BT >= 0).flatten().nonzero().squeeze(1)
    hidden_ND, seen_ND = hidden_BTD.flatten(0, 1)[at_N], seen_BTD.flatten(0, 1)[at_N]
    labels_N = batch.labels_BT.flatten()[at_N]

    def sums(part: slice) -> tuple[Tensor, Tensor]:
        logits_NV = F.linear(hidden_ND[part], model.head_weight, model.head_bias).float()
        with torch.no_grad():
            expected_NV = F.linear(seen_ND[part], teacher.head_weight, teacher.head_bias).float()
        return token_sums(logits_NV, expected_NV, labels_N[part], config.temperature)

    zero = hidden_BTD.sum() * 0.0  # a micro-batch may have no label
    cross_entropy, kl = zero, zero
    for first in range(0, len(at_N), CHUNK_TOKENS):
        part = slice(first, first + CHUNK_TOKENS)
        of_part = checkpoint(sums, part, use_reentrant=False)
        cross_entropy, kl = cross_entropy + of_part[0], kl + of_part[1]
    count = batch.counts["loss"]
    terms = {"loss": Term((1 - config.mix) * cross_entropy + config.mix * config.temperature**2 * kl, count)}
    if stats is not None:
        terms["balance"] = Term(stats.balance, batch.counts["balance"], model_config.aux_loss_alpha)
    return LossOutput(terms, {"kl": Term(kl, count), "cross_entropy": Term(cross_entropy, count)})


def token_sums(logits_NV: Tensor, expected_NV: Tensor, labels_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(cross-entropy, KL(teacher || student) at the temperature), each summed over the tokens.

    Args:
        logits_NV: of the student.
        expected_NV: of the teacher.
    """
    cross_entropy = F.cross_entropy(logits_NV, labels_N, reduction="sum")
    student_NV = F.log_softmax(logits_NV / temperature, dim=-1)
    teacher_NV = F.log_softmax(expected_NV / temperature, dim=-1)
    return cross_entropy, F.kl_div(student_NV, teacher_NV, reduction="sum", log_target=True)
