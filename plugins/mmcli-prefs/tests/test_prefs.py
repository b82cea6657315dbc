"""The losses and gradients of trl, and the papers' formulas where trl has another."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmcli_prefs import PREFS, PrefsConfig
from mmcli_prefs.losses import pair_losses
from torch import Tensor

from mmcli.config import Layer, resolve
from mmcli.errors import UserError
from mmcli.runner import start
from mmcli.stages import PRETRAIN
from mmcli.testing import check_stage

BETAS = {"ipo": (0.05, 0.5), "orpo": (0.1, 1.0), "simpo": (2.0, 10.0), "cpo": (0.1, 0.5)}
CASES = [(loss, beta) for loss, betas in BETAS.items() for beta in betas]


def tensors(seed: int = 0, pairs: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of replies, their lengths, and log-probabilities under a reference."""
    generator = torch.Generator().manual_seed(seed)
    lengths_P2 = torch.randint(1, 40, (pairs, 2), generator=generator)
    reference_P2 = -lengths_P2 * (0.05 + 3.0 * torch.rand(pairs, 2, generator=generator))
    logps_P2 = reference_P2 * (0.5 + torch.rand(pairs, 2, generator=generator))
    return logps_P2, lengths_P2, reference_P2


def trl_ipo(logps_P2: Tensor, lengths_P2: Tensor, reference_P2: Tensor, beta: float) -> Tensor:
    """trl's `DPOTrainer._compute_loss`, given a model whose tokens have these log-probabilities."""
    from trl.trainer.dpo_trainer import DPOTrainer

    rows_B, lengths_B = torch.cat([logps_P2[:, 0], logps_P2[:, 1]]), torch.cat([lengths_P2[:, 0], lengths_P2[:, 1]])
    longest = int(lengths_B.max())
    replies_BT = (torch.arange(longest) < lengths_B[:, None]).long()
    token_logps_BT = rows_B[:, None] / lengths_B[:, None] * replies_BT
    accelerator = SimpleNamespace(
        device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=True, config=SimpleNamespace()),
        accelerator=accelerator,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["ipo"],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    ones_BT = torch.ones_like(token_logps_BT)
    outputs = SimpleNamespace(log_probs=token_logps_BT, entropy=ones_BT, mean_logits=ones_BT, is_top1=ones_BT.bool())
    mask_BT = F.pad(replies_BT, (1, 0))
    inputs = {
        "input_ids": torch.zeros_like(mask_BT),
        "attention_mask": torch.ones_like(mask_BT),
        "completion_mask": mask_BT,
        "ref_chosen_logps": reference_P2[:, 0],
        "ref_rejected_logps": reference_P2[:, 1],
    }
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)


def trl_cpo(chosen_P: Tensor, rejected_P: Tensor, beta: float, loss_type: str) -> Tensor:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"),
        **{"alpha": 0.0, "beta": beta, "label_smoothing": 0.0, "loss_type": loss_type, "simpo_gamma": 1.0},
    )
    return CPOTrainer.cpo_loss(trainer, chosen_P, rejected_P)[0].mean()


def trl_orpo(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Tensor:
    """trl's odds ratio loss, which it subtracts."""
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), beta=beta)
    return -ORPOTrainer.odds_ratio_loss(trainer, chosen_P, rejected_P)[0].mean()


def trl_loss(loss: str, beta: float, logps_P2: Tensor, lengths_P2: Tensor, reference_P2: Tensor) -> Tensor:
    pytest.importorskip("trl")
    if loss == "ipo":
        return trl_ipo(logps_P2, lengths_P2, reference_P2, beta)
    given_P2 = logps_P2 if loss == "cpo" else logps_P2 / lengths_P2
    if loss == "orpo":
        return trl_orpo(given_P2[:, 0], given_P2[:, 1], beta)
    return trl_cpo(given_P2[:, 0], given_P2[:, 1], beta, {"cpo": "sigmoid", "simpo": "simpo"}[loss])


@pytest.mark.parametrize(("loss", "beta"), CASES)
def test_the_loss_of_a_preference_and_its_gradient_equal_trl(loss: str, beta: float) -> None:
    logps_P2, lengths_P2, reference_P2 = tensors()
    ours, theirs = (logps_P2.clone().requires_grad_() for _ in range(2))
    config = PrefsConfig(loss=loss, beta=beta, nll=0.0)  # type: ignore[arg-type]  # one of the four
    mine = pair_losses(config, ours, lengths_P2, reference_P2)[0].mean()
    other = trl_loss(loss, beta, theirs, lengths_P2, reference_P2)
    torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
    mine.backward()
    other.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)


def formula(loss: str, chosen: float, rejected: float, lengths: tuple[int, int], reference: tuple[float, float]) -> Any:
    """The loss of one pair as its paper writes it, in fp64, with the defaults."""
    c, r = torch.tensor([chosen, rejected], dtype=torch.float64)
    (t, u), (c0, r0) = lengths, reference
    if loss == "ipo":
        return ((c - c0) / t - (r - r0) / u - 1 / (2 * 0.1)) ** 2
    if loss == "simpo":
        return -torch.log(torch.sigmoid(2.0 / t * c - 2.0 / u * r - 1.0))
    if loss == "cpo":
        return -torch.log(torch.sigmoid(0.1 * c - 0.1 * r)) - c / t
    p, q = torch.exp(c / t), torch.exp(r / u)
    return -c / t - 0.1 * torch.log(torch.sigmoid(torch.log((p / (1 - p)) / (q / (1 - q)))))


@pytest.mark.parametrize("loss", BETAS)
def test_the_whole_loss_is_the_paper_s(loss: str) -> None:
    logps_P2, lengths_P2, reference_P2 = tensors(seed=1)
    config = PrefsConfig(loss=loss)  # type: ignore[arg-type]  # one of the four
    loss_P, margin_P = pair_losses(config, logps_P2, lengths_P2, reference_P2)
    rows = zip(logps_P2.tolist(), lengths_P2.tolist(), reference_P2.tolist(), strict=True)
    expected = torch.stack([formula(loss, c, r, lengths, reference) for (c, r), lengths, reference in rows])
    torch.testing.assert_close(loss_P.double(), expected, atol=1e-5, rtol=1e-5)
    _, swapped_P = pair_losses(config, logps_P2.flip(1), lengths_P2.flip(1), reference_P2.flip(1))
    torch.testing.assert_close(swapped_P, -margin_P)  # whichever is called the chosen one


@pytest.mark.parametrize("loss", BETAS)
def test_a_certain_reply_has_a_finite_loss_and_gradient(loss: str) -> None:
    logps_P2 = torch.tensor([[0.0, -200.0], [-200.0, 0.0], [-1e-9, -1e-9]]).requires_grad_()
    config = PrefsConfig(loss=loss)  # type: ignore[arg-type]  # one of the four
    loss_P, margin_P = pair_losses(config, logps_P2, torch.full((3, 2), 10), torch.full((3, 2), -5.0))
    loss_P.sum().backward()
    assert loss_P.isfinite().all() and margin_P.isfinite().all()
    assert logps_P2.grad is not None and logps_P2.grad.isfinite().all()


def configured(**values: Any) -> PrefsConfig:
    config: PrefsConfig = resolve(PrefsConfig, [PREFS.layer, Layer("test", values)]).config
    return config


def test_the_defaults_of_each_loss() -> None:
    found = {each: configured(loss=each) for each in BETAS}
    assert {name: each.strength for name, each in found.items()} == {"ipo": 0.1, "orpo": 0.1, "simpo": 2.0, "cpo": 0.1}
    assert {name: each.nll_weight for name, each in found.items()} == {"ipo": 0, "orpo": 1, "simpo": 0, "cpo": 1}
    assert found["simpo"].target == 1.0
    assert configured(loss="cpo", nll=0.0, beta=0.3).nll_weight == 0.0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss": "dpo"}, "loss = "),
        ({"beta": 0.0}, "beta = 0.0 is not positive"),
        ({"beta": -0.1}, "beta = -0.1 is not positive"),
        ({"nll": -1.0}, "nll = -1.0 is negative"),
        ({"loss": "orpo", "gamma": 1.0}, "--gamma is for --loss simpo"),
        ({"loss": "cpo", "reference": "1"}, "--reference is for --loss ipo"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        configured(**values)
    assert said in caught.value.what


@pytest.mark.slow
@pytest.mark.parametrize("loss", BETAS)
def test_each_loss_does_what_every_stage_must(loss: str, tmp_path: Path) -> None:
    assert [check for check in check_stage("prefs", {"loss": loss}, folder=tmp_path) if check.problem] == []


@pytest.mark.slow
@pytest.mark.parametrize("loss", BETAS)
def test_it_learns_the_preference(loss: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    quick = {"train.batch_size": 8, "train.device": "cpu", "data.seq_len": 256, "train.precision": "fp32"}
    shape = {"dim": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 400}
    pairs = tmp_path / "pairs.jsonl"
    sides = {"chosen": "Yes, it is.", "rejected": "I will not say."}
    pairs.write_text("\n".join(json.dumps({"prompt": f"{i}?", **sides}) for i in range(64)), encoding="utf-8")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"It is {i}. I will not say no to {i}." for i in range(200)), encoding="utf-8")
    start(
        PRETRAIN,
        [Layer("test", {**quick, "model": shape, "train.steps": 2, "data.sources": [str(text)]})],
        runs_dir=runs,
    )
    values = {"loss": loss, "data.sources": [str(pairs)], "train.start_from": "latest:pretrain", "optim.lr": 1e-2}
    run = start(PREFS, [Layer("test", {**quick, **values, "train.steps": 20})], runs_dir=runs)
    assert run.info()["val_accuracy"] == 1.0
