"""Reference curves: what made them is still so, and how a run is laid beside one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mmcli.config import Layer, preset_layers, resolve, to_tables
from mmcli.data.sources.sources import open_sources
from mmcli.errors import UserError
from mmcli.inputs import flat
from mmcli.report.page import page
from mmcli.report.reference import find_reference, load_reference, plot_with_reference, reference_names
from mmcli.run import Run
from mmcli.stage import Metric
from mmcli.stages import PRETRAIN, PretrainConfig


def configuration(preset: str, given: dict[str, Any]) -> dict[str, Any]:
    layers = [PRETRAIN.layer, *preset_layers(preset, "pretrain", "cpu"), Layer("given", given)]
    return to_tables(resolve(PretrainConfig, layers).config)


def a_run(
    root: Path, preset: str = "tiny", *, tokenizer: str = "", data: str = "", factor: float = 1.1, **given: Any
) -> Run:
    """A run whose losses are those of the reference, times a factor."""
    reference = load_reference(preset)
    run = Run.create(root, "pretrain", "mine")
    metrics = [asdict(Metric("loss")), asdict(Metric("val_loss", label="val")), asdict(Metric("val_bits_per_byte"))]
    run.update(preset=preset, metrics=metrics, state="finished")
    tables = configuration(
        preset, {**reference.given, **{key.replace("__", "."): value for key, value in given.items()}}
    )
    run.write_config(tables)
    run.write_config({"model": tables["model"]}, "resolved.toml")
    keys = {"data": data or reference.data, "tokenizer": tokenizer or reference.tokenizer}
    inputs = {name: {"key": key, "parts": {}} for name, key in keys.items()}
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    (run.path / "inputs.json").write_text(json.dumps({"inputs": inputs, "sha256": digest}))
    scaled = ("loss", "val_loss", "val_bits_per_byte")
    lines = [{k: v * factor if k in scaled else v for k, v in line.items()} for line in reference.lines]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.mark.parametrize("preset", reference_names())
def test_a_curve_was_made_with_what_the_preset_says_today(preset: str) -> None:
    reference = load_reference(preset)
    today = flat(configuration(preset, dict(reference.given)))
    changed = {key: (value, today.get(key)) for key, value in reference.settings.items() if value != today.get(key)}
    assert changed == {}, f"python docs/curves/make.py {preset}"
    assert reference.data == open_sources(["demo"]).fingerprint, f"python docs/curves/make.py {preset}"


@pytest.mark.parametrize("preset", reference_names())
def test_a_curve_falls_over_tokens(preset: str) -> None:
    lines = load_reference(preset).lines
    tokens = [line["tokens"] for line in lines]
    assert len(lines) >= 20 and tokens == sorted(tokens) and tokens[0] < tokens[-1]
    for name in ("loss", "val_bits_per_byte"):
        values = [line[name] for line in lines if name in line]
        assert len(values) >= 4 and values[-1] < 0.97 * values[0]


def test_the_presets_that_people_begin_with_have_curves() -> None:
    assert set(reference_names()) == {"tiny", "small", "base", "moe"}


def test_the_same_data_and_tokenizer_are_compared_by_loss(tmp_path: Path) -> None:
    chart, notes = plot_with_reference(a_run(tmp_path, factor=1.1))
    below, own, _ = chart.curves
    assert below.label.startswith("reference tiny loss") and own.label.startswith("0001-pretrain-mine loss")
    assert chart.axis == "tokens" and below.x == own.x and below.series != own.series
    assert own.y[-1] == pytest.approx(1.1 * below.y[-1])
    assert notes == (f"after {below.x[-1]:,.0f} tokens: loss {own.y[-1]:.4g}, the reference's {below.y[-1]:.4g}",)


def test_another_tokenizer_is_compared_by_bits_per_byte(tmp_path: Path) -> None:
    chart, notes = plot_with_reference(a_run(tmp_path, tokenizer="other"))
    assert "val_bits_per_byte" in chart.curves[0].label and "val_bits_per_byte" in notes[0]
    assert "tokenizer" in notes[1]
    run = a_run(tmp_path, tokenizer="other")
    lines = [{"step": 0, "tokens": 5, "loss": 3.0}]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="no val_bits_per_byte"):
        plot_with_reference(run)


def test_other_text_is_said_to_be_other_text(tmp_path: Path) -> None:
    _, notes = plot_with_reference(a_run(tmp_path, data="other"))
    assert any("compare the shape" in note for note in notes)


def test_what_is_set_otherwise_and_another_rate_are_named(tmp_path: Path) -> None:
    run = a_run(tmp_path, optim__lr=1e-5, train__batch_size=64)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    run.metrics.write_text("".join(json.dumps({**line, "lr": line.get("lr", 0.0) / 100}) + "\n" for line in lines))
    _, notes = plot_with_reference(run)
    assert any("mean learning rate" in note for note in notes)
    assert "set otherwise than in the reference: optim.lr 1e-05 (0.004), train.batch_size 64 (8)" in notes


def test_a_run_of_no_such_preset_gets_the_one_nearest_in_size(tmp_path: Path) -> None:
    run = a_run(tmp_path, "small")
    run.update(preset=None)
    assert find_reference(run).preset == "small"
    run.write_config({"model": configuration("tiny", {"model.dim": 192})["model"]}, "resolved.toml")
    assert find_reference(run).preset == "tiny"


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reference curves are of pretrain"):
        plot_with_reference(Run.create(tmp_path, "sft", "x"))
    run = a_run(tmp_path)
    with pytest.raises(UserError, match="time"):
        plot_with_reference(run, axis="time")
    with pytest.raises(UserError, match='no metric "grad_norm"'):
        plot_with_reference(run, "grad_norm")


def test_the_page_has_the_chart_where_there_is_one(tmp_path: Path) -> None:
    assert "beside the reference of its preset" in page(a_run(tmp_path))
    run = a_run(tmp_path)
    run.update(preset="gpt2")
    assert "beside the reference" not in page(run)
