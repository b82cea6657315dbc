"""One optimizer step: how often the host waits for the device in it, and what it reads then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmcli.data.pack.batches import Batch
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.stage import Silent
from mmcli.train import updates
from mmcli.train.config import OptimConfig
from mmcli.train.device import choose_accelerator
from mmcli.train.feed import Feed
from mmcli.train.lm import TokenBatch, language_model_loss
from mmcli.train.optim import build_optimizer
from mmcli.train.schedule import Horizon
from mmcli.train.task import Task
from mmcli.train.updates import Updates, on_host

SHAPE: dict[str, Any] = {"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 40, "max_seq_len": 16}
MODELS = {"dense": ModelConfig(**SHAPE), "experts": ModelConfig(**SHAPE, use_moe=True)}
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "is_nonzero"}


class Waits(TorchDispatchMode):
    """The operations, by name, for whose result the host would wait on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def steps_of(
    config: ModelConfig, optim: OptimConfig, *, poison: bool = False, trained: str = ""
) -> tuple[Updates, Transformer, Feed]:
    model = Transformer(config)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(trained in key)
    if poison:
        with torch.no_grad():
            model.model.norm.weight.fill_(float("inf"))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 40, (6, 17))
    zeros = np.zeros((2, 16), dtype=np.int64)
    batches = [
        TokenBatch.from_batch(
            Batch(ids[i : i + 2, :-1].copy(), ids[i : i + 2, 1:].copy(), zeros + np.arange(16), zeros), config
        )
        for i in (0, 2, 4)
    ]
    task = Task(
        model=model,
        accelerator=choose_accelerator("cpu", "fp32"),
        batches=lambda step: batches,
        loss=lambda model, batch: language_model_loss(model, batch, config),
        steps_per_epoch=1.0,
        flops_per_token=1.0,
        save_model=lambda folder: None,
    )
    feed = Feed(task, 0)
    return Updates(task, optim, build_optimizer(model, optim), feed, Silent(), seed=0), model, feed


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", MODELS)
def test_the_host_waits_once_in_a_step(name: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    def counted(tensors: Sequence[Tensor]) -> list[Any]:
        reads.append(len(tensors))
        return on_host(tensors)

    monkeypatch.setattr(updates, "on_host", counted)
    made, model, feed = steps_of(MODELS[name], OptimConfig(optimizer=optimizer))  # type: ignore[arg-type]
    before = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    with feed, Waits() as waits:
        result = made.step(0, Horizon(((0, 2),)))
    assert waits.found == [] and len(reads) == 1
    assert result.wrong is None and 3.0 < result.means["loss"] < 4.5 and 0.0 < result.norm < 100.0
    assert not torch.equal(before, model.model.layers[0].self_attn.q_proj.weight)


def test_a_step_that_is_not_finite_leaves_weights_and_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    made, model, feed = steps_of(MODELS["dense"], OptimConfig(), poison=True)
    before = [each.detach().clone() for each in model.parameters()]
    with feed:
        result = made.step(0, Horizon(((0, 2),)))
    assert result.wrong == "loss" and list(result.where) == [0, 1, 2]
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert not made._optimizer.state


@pytest.mark.parametrize("trained", ["q_proj", ""])
def test_gradients_stay_in_memory_where_few_weights_train(trained: str) -> None:
    made, model, feed = steps_of(MODELS["dense"], OptimConfig(lr=0.1), trained=trained)
    weights = [each for each in model.parameters() if each.requires_grad]
    places = [each.grad for each in weights]
    before = [each.detach().clone() for each in weights]
    with feed:
        made.step(0, Horizon(((0, 2),)))
        made.step(1, Horizon(((0, 2),)))
    assert not any(torch.equal(*each) for each in zip(before, weights, strict=True))
    for place, weight in zip(places, weights, strict=True):
        assert weight.grad is place
        assert (place is None) == (trained == "") and (place is None or not place.any())


def test_values_come_to_the_host_as_they_are() -> None:
    found = on_host([torch.tensor(0.1), torch.tensor([1.5, 2.5]), torch.tensor([[3.0], [4.0]]), torch.tensor(7)])
    assert found == [torch.tensor(0.1).item(), [1.5, 2.5], [[3.0], [4.0]], 7.0]
