"""`--adapter`: found by name, filled from `--adapter-set`, applied to a model that trains and resumes with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmcli.config import Resolved
from mmcli.errors import UserError
from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.count import training_flops_per_token
from mmcli.model.transformer import Transformer
from mmcli.run import Run
from mmcli.stage import Silent, StageContext
from mmcli.train.adapters import adapt, build_transform, training_flops
from mmcli.train.checkpoint import Progress, load_newest, save_checkpoint
from mmcli.train.config import OptimConfig
from mmcli.train.optim import build_optimizer

CONFIG = ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=50)


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def context(real: Any, see: Callable[[Any], None], tmp_path: Path) -> StageContext:
    see(real)
    return StageContext(Run.create(tmp_path, "sft", "test"), Notes(), Resolved(None, {}))


def step(model: Transformer, optimizer: torch.optim.Optimizer) -> None:
    ids_BT = torch.arange(24).reshape(2, 12)
    positions_BT = torch.arange(12).expand(2, 12).numpy().copy()
    ctx = AttnContext.from_batch(positions_BT, positions_BT * 0, torch.device("cpu"))
    model.head(model(ids_BT, ctx)[0]).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_it_says_what_trains(context: StageContext) -> None:
    model = Transformer(CONFIG)
    adapt(model, "lora", ["rank=2", "targets=q"], seed=0, context=context)
    assert context.report.said == [
        f"adapter: lora, {2 * (16 + 16)} of {sum(p.numel() for p in model.parameters()):,} parameters train"
    ]


def test_training_goes_on_from_a_checkpoint_of_the_additions_alone(context: StageContext) -> None:
    model = Transformer(CONFIG)
    base = {name: each.clone() for name, each in model.named_parameters()}
    adapt(model, "lora", [], seed=5, context=context)
    optimizer = build_optimizer(model, OptimConfig())
    step(model, optimizer)
    path = save_checkpoint(context.run.checkpoints, model, optimizer, Progress(step=1), keep=1)
    assert all(".lora_" in name for name in load_file(path / "weights.safetensors"))
    step(model, optimizer)

    resumed = Transformer(CONFIG)
    adapt(resumed, "lora", [], seed=5, context=context)
    optimizer = build_optimizer(resumed, OptimConfig())
    assert load_newest(context.run.checkpoints, resumed, optimizer, context.report) == Progress(step=1)
    step(resumed, optimizer)
    after = dict(resumed.named_parameters())
    for name, each in model.named_parameters():
        assert torch.equal(after[name], each), name
    assert all(torch.equal(after[name], each) for name, each in base.items())


@pytest.mark.parametrize(
    ("name", "settings", "what", "fix"),
    [
        ("lorra", [], 'there is no adapter "lorra"', 'did you mean "lora"?'),
        ("lora", ["rnk=4"], 'unknown key "rnk" (from --adapter-set)', 'did you mean "rank"?'),
        (
            "lora",
            ["rank=x"],
            "rank = 'x' is not a whole number or \"none\" (from --adapter-set)",
            "give rank a whole number",
        ),
        ("lora", ["rank"], '--adapter-set "rank" is not key=value', "--adapter-set rank=16"),
    ],
)
def test_wrong_names_and_settings_are_refused(
    context: StageContext, name: str, settings: list[str], what: str, fix: str
) -> None:
    with pytest.raises(UserError) as caught:
        build_transform(name, settings)
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_without_any_adapter_a_package_is_named() -> None:
    with pytest.raises(UserError, match='no adapter "lora"') as caught:
        build_transform("lora", [])
    assert "pip install ./plugins/mmcli-lora" in caught.value.fix


def test_frozen_weights_take_one_pass_less(context: StageContext) -> None:
    model = Transformer(CONFIG)
    assert training_flops(model, 64) == training_flops_per_token(CONFIG, 64)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2)  # the tied embedding is the head
    adapt(model, "lora", ["rank=2", "targets=q"], seed=0, context=context)
    assert training_flops(model, 64) == training_flops_per_token(CONFIG, 64) - 2 * matrices + 6 * 2 * (16 + 16)


def test_a_token_meets_the_additions_of_its_own_experts_alone(context: StageContext) -> None:
    config = dataclasses.replace(CONFIG, use_moe=True, n_routed_experts=4, num_experts_per_tok=2)

    def flops(targets: str) -> int:
        model = Transformer(config)
        adapt(model, "lora", ["rank=2", f"targets={targets}"], seed=0, context=context)
        return training_flops(model, 64)

    of_an_expert = 2 * (config.dim + config.ffn_dim)
    q = 2 * (16 + 16)
    assert flops("q,up") - flops("q") == 6 * (2 + config.n_shared) * of_an_expert
    assert flops("q,up") - flops("up") == 6 * q
