"""report.html: a run in one file, without network or scripts; what comes from data and configuration is escaped."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from mmcli.config import DEFAULT, Layer, resolve
from mmcli.errors import UserError
from mmcli.files import size, write_atomic
from mmcli.housekeeping import children, disk_bytes
from mmcli.inputs import flat
from mmcli.model.config import ModelConfig
from mmcli.model.count import count_parameters
from mmcli.report.curves import curve, is_number, last_values, metric_names, read_lines, smoothed
from mmcli.report.evaluations import describe_evaluation, read_evaluations
from mmcli.report.lineage import lineage
from mmcli.report.overview import shown_metrics
from mmcli.report.reference import plot_with_reference, reference_names
from mmcli.report.scale import Chart
from mmcli.report.style import CSS
from mmcli.report.svg import OF_PAGE, svg
from mmcli.run import RESOLVED, SAMPLES, Run

REPORT = "report.html"
SHOWN_SAMPLES = 24
MACHINE = ("device", "precision", "threads", "torch", "cpu_capability", "compile", "micro_batch")  # of resolved.toml
OTHERS = {"lr": "learning rate", "tokens_per_second": "tokens/s", "grad_norm": "gradient norm"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(run: Run, path: Path | None = None) -> Path:
    """Write the page of a run, by default as report.html in its folder; where it is.

    Raises:
        MmcliError: the file cannot be written.
    """
    path = path or run.path / REPORT
    write_atomic(path, page(run).encode())
    return path


def page(run: Run) -> str:
    """The page of a run, running or ended, as HTML."""
    info, lines = run.info(), read_lines(run.metrics)
    chosen = _tables(run, RESOLVED)
    parts = [
        _head(run, info, lines),
        _section("Curves", _curves(run, lines)),
        _section("Evaluations", _evaluations(run)),
        _section("Samples", _samples(read_lines(run.path / SAMPLES))),
        _section("Lineage", _lineage(run)),
        _section("Data", _data(info)),
        _section("Machine", _pairs((key, chosen[key]) for key in MACHINE if key in chosen)),
        _section("Configuration", _config(run, info, chosen)),
        _section("Exports", _exports(run)),
        _section("Changes", _changes(info)),
    ]
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    title = escape(run.name)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join(part for part in parts if part)
        + f"\n<footer>made by mmcli, {made}</footer>\n</main>\n</body>\n</html>\n"
    )


# Sections


def _head(run: Run, info: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    last = last_values(lines)
    figures = [
        (metric.label or metric.title, metric.number(last[metric.name]))
        for metric in shown_metrics(run)
        if is_number(last.get(metric.name))
    ]
    done, steps = info.get("steps_done"), info.get("steps")
    if (count := _parameters(run)) is not None:
        figures.append(("parameters", count))
    if done is not None:
        figures.append(("steps", f"{_text(done)} of {_text(steps)}" if steps and steps != done else _text(done)))
    if is_number(info.get("tokens")):
        figures.append(("tokens", f"{info['tokens']:,}"))
    seconds = info.get("elapsed_seconds", last.get("elapsed_seconds"))
    if is_number(seconds):
        figures.append(("time", _duration(float(seconds or 0))))
    figures.append(("on disk", size(disk_bytes(run.path))))
    state = _text(info.get("state"))
    reason = f'<p class="reason">{_html(info["reason"])}</p>' if info.get("reason") and state != "finished" else ""
    cells = "".join(f"<div><b>{_html(value)}</b><span>{_html(name)}</span></div>" for name, value in figures)
    began = _text(info.get("started"))[:16].replace("T", " ")
    preset = f", preset {_text(info['preset'])}" if info.get("preset") else ""
    command = info.get("command")
    words = " ".join(map(str, command)) if isinstance(command, list) else ""
    return (
        f'<header><h1>{_html(run.name)} <span class="state {escape(state)}">{_html(state)}</span></h1>'
        f"<p>{_html(run.stage)}{_html(preset)}, started {_html(began)}</p>{reason}"
        f'<div class="figures">{cells}</div>' + (f"<pre>{_html(words)}</pre>" if words else "") + "</header>"
    )


def _curves(run: Run, lines: Sequence[Mapping[str, Any]]) -> str:
    """A chart for each declared metric with its held-out values, then rate, speed and gradient norm."""
    names, declared = metric_names(lines), shown_metrics(run)
    charts = []
    for metric in declared:
        held = f"val_{metric.name}"
        if metric.held_out and metric.name.removeprefix("val_") in {each.name for each in declared}:
            continue  # drawn beside the other
        if metric.name not in names:
            continue
        raw = replace(curve(lines, metric.name, label="" if not metric.held_out else "held-out"), dots=metric.held_out)
        drawn = [raw]
        if not metric.held_out:
            drawn = [replace(raw, faint=True), replace(smoothed(raw), label="training, smoothed")]
        if held in names:
            drawn.append(replace(curve(lines, held, label="held-out"), series=1, dots=True))
        spec = metric.format if metric.format.endswith("%") else ""
        charts.append(Chart(tuple(drawn), title=metric.title, format=spec))
    if run.stage == "pretrain" and run.info().get("preset") in reference_names():
        with suppress(UserError):  # nothing that could be compared
            beside, _ = plot_with_reference(run)
            charts.append(replace(beside, title="beside the reference of its preset"))
    for name, title in OTHERS.items():
        if name in names:
            charts.append(Chart((curve(lines, name, label=""),), title=title))
    figures = [f"<figure>{svg(each, 440, 270, colours=OF_PAGE)}</figure>" for each in charts]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _evaluations(run: Run) -> str:
    """What `mmcli eval` measured, a row a suite."""
    found = [describe_evaluation(run, result) for result in read_evaluations(run)]
    rows = [[each[key] for key in ("name", "score", "families", "notes")] for each in found]
    return _table(("suite", "score (95 % interval)", "families", "measured"), rows) if rows else ""


def _samples(lines: Sequence[Mapping[str, Any]]) -> str:
    """Texts that the model wrote, by step; of many, evenly chosen ones with the first and the last."""
    if len(lines) > SHOWN_SAMPLES:
        lines = [lines[round(i * (len(lines) - 1) / (SHOWN_SAMPLES - 1))] for i in range(SHOWN_SAMPLES)]
    rows = [
        f'<tr><td class="number">{_html(line.get("step"))}</td>'
        f"<td><q>{_html(line.get('prompt'))}</q>{_html(line.get('text'))}</td></tr>"
        for line in lines
    ]
    head = "<tr><th>step</th><th>prompt and text</th></tr>"
    return f'<table class="samples">{head}{"".join(rows)}</table>' if rows else ""


def _lineage(run: Run) -> str:
    steps = []
    for each in lineage(run):
        name = _html(each.name)
        if each.run is not None and each.run.path != run.path and (each.run.path / REPORT).is_file():
            name = f'<a href="../{escape(each.run.path.name, quote=True)}/{REPORT}">{name}</a>'
        metrics, last = [], {}
        if each.run is not None:
            metrics, last = shown_metrics(each.run), last_values(read_lines(each.run.metrics))
        shown = [metric.text(last[metric.name]) for metric in metrics if is_number(last.get(metric.name))]
        here = ' class="here"' if each.run is not None and each.run.path == run.path else ""
        steps.append(f"<li{here}>{name}<span>{_html('  '.join(shown[:3]))}</span></li>")
    after = ", ".join(child.name for child in children(run))
    return f'<ol class="lineage">{"".join(steps)}</ol>' + (f"<p>started from it: {_html(after)}</p>" if after else "")


def _data(info: Mapping[str, Any]) -> str:
    data = info.get("data")
    if not isinstance(data, dict):
        return ""
    rejected = data.get("rejected")
    names = {"kept": "records kept", "rejected": "records dropped", "utilisation": "rows filled"}
    pairs = [(names.get(str(key), str(key)), value) for key, value in data.items() if key != "cache"]
    if rejected:
        pairs.append(("why", "see the quarantine file of the run, or: mmcli data check"))
    return _pairs(pairs)


def _config(run: Run, info: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """Every value with who set it: what was set first, the defaults folded away, then what was chosen automatically."""
    stored = info.get("sources")
    sources: dict[str, Any] = stored if isinstance(stored, dict) else {}
    rows = [(key, value, _text(sources.get(key))) for key, value in flat(_tables(run, "config.toml")).items()]
    given = [row for row in rows if row[2] != DEFAULT]
    rest = [row for row in rows if row[2] == DEFAULT]
    others = [(key, value, "automatic") for key, value in flat(chosen).items() if key not in MACHINE]
    parts = [_table(("key", "value", "set by"), given)] if given else []
    for title, part in (("defaults", rest), ("chosen automatically (resolved.toml)", others)):
        if part:
            folded = _table(("key", "value", "set by"), part)
            parts.append(f"<details><summary>{title}: {len(part)}</summary>{folded}</details>")
    return "".join(parts)


def _exports(run: Run) -> str:
    names = sorted(path.name for path in run.exports.glob("*") if path.is_dir() and not path.name.startswith("."))
    return _pairs((name, size(disk_bytes(run.exports / name))) for name in names)


def _changes(info: Mapping[str, Any]) -> str:
    changes = info.get("changes", [])
    return "".join(f"<p>{_html(', '.join(f'{key}: {value}' for key, value in each.items()))}</p>" for each in changes)


# Pieces


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_html(title)}</h2>{content}</section>" if content else ""


def _pairs(pairs: Iterable[tuple[str, Any]]) -> str:
    rows = [f"<tr><th>{_html(name)}</th><td>{_html(value)}</td></tr>" for name, value in pairs]
    return f'<table class="pairs">{"".join(rows)}</table>' if rows else ""


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{_html(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{_html(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _tables(run: Run, name: str) -> dict[str, Any]:
    """A TOML file of the run; nothing of a damaged one, which `mmcli runs verify` names."""
    try:
        return run.read_config(name)
    except UserError:
        return {}


def _text(value: Any) -> str:
    """A value in words."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _html(value: Any) -> str:
    return escape(_text(value), quote=True)


def _parameters(run: Run) -> str | None:
    """The exact size of the model: 25,829,888."""
    shape = _tables(run, RESOLVED).get("model")
    try:
        total = count_parameters(resolve(ModelConfig, [Layer(RESOLVED, shape)]).config).total if shape else 0
    except UserError:  # of another version
        return None
    return f"{total:,}" if total else None


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"
