"""The options of the built-in stages: every default has one home, and presets win over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmcli.config import DEFAULT, Layer, Resolved, leaves, resolve, to_tables
from mmcli.errors import UserError
from mmcli.runner import stage_layers
from mmcli.stage import Stage
from mmcli.stages import DPO, PRETRAIN, SFT
from mmcli.train.config import OptimConfig, TrainConfig

STAGES = (PRETRAIN, SFT, DPO)


def filled(stage: Stage, *own: Layer, preset: str | None = None) -> Resolved[object]:
    layers, _ = stage_layers(stage, own, runs_dir=Path("no such folder"), preset=preset)
    return resolve(stage.config, layers)


@pytest.mark.parametrize(
    ("stage", "start_from", "lr", "weight_decay"),
    [(SFT, "latest:pretrain", 1e-4, 0.1), (DPO, "latest:sft", 5e-6, 0.0)],
    ids=["sft", "dpo"],
)
def test_the_defaults_of_a_stage_are_a_layer(stage: Stage, start_from: str, lr: float, weight_decay: float) -> None:
    resolved = filled(stage)
    tables = to_tables(resolved.config)
    assert tables["train"]["start_from"] == start_from
    assert (tables["optim"]["lr"], tables["optim"]["weight_decay"]) == (lr, weight_decay)
    assert resolved.sources["optim.lr"] == resolved.sources["train.start_from"] == f"stage {stage.name}"
    assert not resolved.chosen("optim.lr")
    assert resolved.sources["optim.beta1"] == DEFAULT


def test_a_preset_wins_over_the_stage_and_a_person_over_both() -> None:
    of_preset = filled(SFT, preset="tiny")
    assert (to_tables(of_preset.config)["optim"]["lr"], of_preset.sources["optim.lr"]) == (2e-3, "preset tiny")
    of_person = filled(SFT, Layer("--lr", {"optim.lr": 3e-4}), preset="tiny")
    assert (to_tables(of_person.config)["optim"]["lr"], of_person.sources["optim.lr"]) == (3e-4, "--lr")
    assert of_person.chosen("optim.lr")


def test_every_stage_trains_with_the_same_plain_parts() -> None:
    for stage in STAGES:
        config = filled(stage).config
        assert type(getattr(config, "optim")) is OptimConfig  # noqa: B009
        assert type(getattr(config, "train")) is TrainConfig  # noqa: B009


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stored_configuration_fills_the_same_one_again_without_other_layers(stage: Stage) -> None:
    first = filled(stage, Layer("--set", {"train.steps": 7}))
    assert resolve(stage.config, [Layer("config.toml", to_tables(first.config))]).config == first.config


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_option_says_what_it_is(stage: Stage) -> None:
    for leaf in leaves(stage.config):
        assert leaf.doc, leaf.key
    flags = [leaf.flag for leaf in leaves(stage.config) if leaf.flag]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("beta", 0.0, "beta = 0.0 is not positive"), ("label_smoothing", 0.5, "label_smoothing = 0.5 is not in 0 to 0.5")],
)
def test_dpo_refuses_what_has_no_meaning(key: str, value: float, said: str) -> None:
    with pytest.raises(UserError) as caught:
        filled(DPO, Layer("--set", {key: value}))
    assert said in caught.value.what and "(from --set)" in caught.value.what
