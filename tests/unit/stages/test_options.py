"""The options of the built-in stages: every default has one home, and presets win over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmcli.config import DEFAULT, Layer, Resolved, leaves, resolve, to_tables
from mmcli.errors import UserError
from mmcli.run import Run
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


def rate(
    stage: Stage, *own: Layer, runs_dir: Path = Path("no such folder"), preset: str | None = None
) -> tuple[float, str]:
    """The learning rate that a command line gives, and where it comes from."""
    layers, _ = stage_layers(stage, own, runs_dir=runs_dir, preset=preset)
    resolved: Resolved[Any] = resolve(stage.config, layers)
    return resolved.config.optim.lr, resolved.sources["optim.lr"]


def test_a_model_of_another_width_has_its_rate_and_a_person_wins() -> None:
    wide = Layer("--set", {"model.dim": 256})
    assert rate(PRETRAIN) == (4e-3, "preset tiny")
    assert rate(PRETRAIN, wide) == (2e-3, "preset tiny at width 256")
    assert rate(PRETRAIN, wide, preset="small") == (5e-4, "preset small")  # narrower than the preset
    assert rate(PRETRAIN, wide, Layer("--lr", {"optim.lr": 3e-4})) == (3e-4, "--lr")
    assert rate(PRETRAIN, wide, Layer("--optimizer", {"optim.optimizer": "muon"})) == (4e-3, "preset tiny")


def test_a_stage_after_it_takes_the_width_of_the_model_it_starts_from(tmp_path: Path) -> None:
    for width in (128, 256):
        run = Run.create(tmp_path, "pretrain", "wide")
        run.update(preset="tiny", state="finished")
        run.choose("model", lambda width=width: {"dim": width})
        run.model.mkdir()
        for name in ("config.json", "tokenizer.json"):
            (run.model / name).write_text("{}")
    first, second = (Layer("--from", {"train.start_from": number}) for number in ("1", "2"))
    assert rate(SFT, first, runs_dir=tmp_path) == (2e-3, "preset tiny")
    assert rate(SFT, second, runs_dir=tmp_path) == (1e-3, "preset tiny at width 256")
    assert rate(DPO, second, runs_dir=tmp_path) == (1e-5, "preset tiny at width 256")
    (tmp_path / "0002-pretrain-wide" / "resolved.toml").write_text("[model]\ndim =")
    assert rate(SFT, second, runs_dir=tmp_path) == (2e-3, "preset tiny")  # the model itself can be whole
