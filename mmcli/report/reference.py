"""Reference curves: how the loss of a preset fell in a training on the built-in corpus, to lay a run's own beside.

A curve is a file of JSON lines in `references/`: first what made it, then lines as in metrics.jsonl, each the mean of a
stretch of steps. docs/curves/make.py makes them.

A loss per token depends on the tokenizer and on the data, so it is compared only where both are those of the reference;
otherwise the held-out bits per byte are. Curves lie over the tokens that were trained on, not over steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmcli.config import Layer, resolve
from mmcli.errors import UserError, did_you_mean
from mmcli.inputs import flat, read_inputs
from mmcli.model.config import ModelConfig
from mmcli.model.count import count_parameters
from mmcli.report.curves import Axis, Curve, curve, metric_names, read_lines, smoothed
from mmcli.report.overview import plot_runs
from mmcli.report.scale import Chart
from mmcli.run import RESOLVED, Run

REFERENCES = Path(__file__).parent / "references"
STAGE = "pretrain"
LOSS, BITS = "loss", "val_bits_per_byte"
# The settings that a loss depends on; what else differs (device, intervals, names) leaves it as it is.
DECISIVE = ("model.", "optim.", "init", "data.seq_len", "data.val_", "train.batch_size", "train.epochs", "train.seed")
MINOR = ("model.max_seq_len", "model.flash_attn", "train.epochs", "train.seed", "data.val_fraction", "data.val_tokens")
SHOWN_SETTINGS = 4
OTHER_RATE = 1.5  # times another learning rate, from which that is said


@dataclass(frozen=True)
class Reference:
    """The curve of a preset.

    Attributes:
        data, tokenizer: keys of its inputs, as inputs.json has them.
        made: on what, with which torch; `steps`: those of the whole training, of which these may be the first ones.
        given: values by key that the preset has not.
        settings: what decides the loss, by key.
    """

    preset: str
    mmcli: str
    made: Mapping[str, Any]
    given: Mapping[str, Any]
    data: str
    tokenizer: str
    settings: Mapping[str, Any]
    lines: tuple[Mapping[str, Any], ...] = ()

    @property
    def parameters(self) -> int:
        shape = {key.removeprefix("model."): value for key, value in self.settings.items() if key.startswith("model.")}
        return _parameters(shape)


def reference_names() -> list[str]:
    """The presets that have a curve."""
    return sorted(path.stem for path in REFERENCES.glob("*.jsonl"))


def load_reference(preset: str) -> Reference:
    """The curve of a preset that has one."""
    head, *lines = read_lines(REFERENCES / f"{preset}.jsonl")
    return Reference(**head, lines=tuple(lines))


def settings(run: Run) -> dict[str, Any]:
    """What decides the loss of a run, by key, from its configuration."""
    return {key: value for key, value in flat(run.read_config()).items() if key.startswith(DECISIVE)}


def find_reference(run: Run) -> Reference:
    """The curve of a run's preset; without one, of the preset nearest in size.

    Raises:
        UserError: the run is no pretraining.
    """
    if run.stage != STAGE:
        what = f"{run.name} is a run of {run.stage}: reference curves are of {STAGE}"
        raise UserError(what, "name a run of pretrain, such as latest:pretrain")
    preset = run.info().get("preset")
    if preset in reference_names():
        return load_reference(str(preset))
    size = _parameters(run.read_config(RESOLVED).get("model", {}))
    every = [load_reference(name) for name in reference_names()]
    return min(every, key=lambda each: abs(each.parameters - size) / each.parameters)


def _parameters(shape: Mapping[str, Any]) -> int:
    return count_parameters(resolve(ModelConfig, [Layer(RESOLVED, shape)]).config).total


def plot_with_reference(run: Run, metric: str | None = None, axis: Axis = "tokens") -> tuple[Chart, tuple[str, ...]]:
    """The chart of a run over the curve of its preset, and notes for the person: both values after the same number of
    tokens, and what the two differ in.

    Args:
        metric: what is compared; by default the loss where data and tokenizer are the same, else bits per byte.

    Raises:
        UserError: the run is no pretraining; it or the reference has no such value; the axis is time, which tells of
            machines.
    """
    if axis == "time":
        raise UserError("--x time tells of the machine, not of the loss", "compare over --x tokens or --x steps")
    reference = find_reference(run)
    lines, inputs = read_lines(run.metrics), read_inputs(run)
    same_data = "data" in inputs and inputs["data"].key == reference.data
    same_tokenizer = "tokenizer" in inputs and inputs["tokenizer"].key == reference.tokenizer
    chosen = metric or (LOSS if same_data and same_tokenizer else BITS)
    if chosen not in metric_names(reference.lines):
        what = f'the reference has no metric "{chosen}"'
        raise UserError(what, did_you_mean(chosen, metric_names(reference.lines)))
    if chosen not in metric_names(lines):
        hold_out = "hold data out: --val FILE, or --set data.val_fraction=0.01"
        fix = hold_out if chosen == BITS else "name a run that was trained"
        raise UserError(f"{run.name} has no {chosen} to compare with the reference", fix)
    notes = []
    if not same_data:
        notes.append("the reference learned the built-in corpus: on other text compare the shape, not the height")
    elif not same_tokenizer:
        notes.append("another tokenizer than the reference's")
    notes = _values(lines, reference, chosen, axis) + notes + _settings(run, reference)
    drawn = smoothed(curve(reference.lines, chosen, axis))
    drawn = replace(drawn, label=f"reference {reference.preset} {chosen} {drawn.y[-1]:.4g}")
    return plot_runs([run], None if chosen == LOSS else chosen, axis, below=[drawn]), tuple(notes)


def _values(lines: Sequence[Mapping[str, Any]], reference: Reference, metric: str, axis: Axis) -> list[str]:
    """Both values as far as both curves go, and both learning rates up to there where these differ."""
    own, other = (smoothed(curve(each, metric, axis)) for each in (lines, reference.lines))
    place = min(own.x[-1], other.x[-1])
    if place < max(own.x[0], other.x[0]):
        return []
    values = [_at(each, place) for each in (own, other)]
    unit = "tokens" if axis == "tokens" else "steps"
    found = [f"after {place:,.0f} {unit}: {metric} {values[0]:.4g}, the reference's {values[1]:.4g}"]
    rates = [_mean_until(curve(each, "lr", axis), place) for each in (lines, reference.lines)]
    if all(rates) and max(rates) > OTHER_RATE * min(rates):
        found.append(f"mean learning rate up to there: {rates[0]:.1e}, the reference's {rates[1]:.1e}")
    return found


def _at(curve: Curve, place: float) -> float:
    """The value of a curve at a place within it."""
    after = next(i for i, x in enumerate(curve.x) if x >= place)
    if after == 0 or curve.x[after] == place:
        return curve.y[after]
    before = after - 1
    part = (place - curve.x[before]) / (curve.x[after] - curve.x[before])
    return curve.y[before] + part * (curve.y[after] - curve.y[before])


def _mean_until(curve: Curve, place: float) -> float:
    """The mean of the values up to a place; 0 without any."""
    values = [y for x, y in zip(curve.x, curve.y, strict=True) if x <= place]
    return sum(values) / len(values) if values else 0.0


def _settings(run: Run, reference: Reference) -> list[str]:
    """What the configurations differ in, as far as that decides the loss."""
    own = settings(run)
    differing = [
        f"{key} {_word(own[key])} ({_word(value)})"
        for key, value in reference.settings.items()
        if key in own and own[key] != value and key not in MINOR
    ]
    if not differing:
        return []
    more = f" and {len(differing) - SHOWN_SETTINGS} more" if len(differing) > SHOWN_SETTINGS else ""
    return [f"set otherwise than in the reference: {', '.join(differing[:SHOWN_SETTINGS])}{more}"]


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
