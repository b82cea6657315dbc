"""The results of `mmcli eval` that a run keeps, as lines to show. No torch here.

`evaluations.json` holds `{"results": [...]}`: of each suite or data, with the same settings, the newest result.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mmcli.files import write_json
from mmcli.manifest import MANIFEST
from mmcli.report.curves import is_number
from mmcli.run import EVALUATIONS, Run

SETTINGS = ("suite", "data", "limit", "max_new_tokens", "backend", "seq_len")  # a result replaces one with the same


def read_evaluations(run: Run) -> list[dict[str, Any]]:
    """The results that a run keeps, by suite; of a damaged file none, which `mmcli runs verify` names."""
    try:
        stored: Any = json.loads((run.path / EVALUATIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    results = stored.get("results") if isinstance(stored, dict) else None
    found = [each for each in results if isinstance(each, dict)] if isinstance(results, list) else []
    return sorted(found, key=lambda each: (str(each.get("suite")), str(each.get("data")), str(each.get("limit"))))


def keep_evaluation(run: Run, result: Mapping[str, Any]) -> None:
    """Keep a result in a run, with the date and the weights that were measured.

    Raises:
        MmcliError: the file cannot be written.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    new = {"date": now, "weights": weights_digest(run), **result}
    others = [each for each in read_evaluations(run) if any(each.get(key) != new.get(key) for key in SETTINGS)]
    write_json(run.path / EVALUATIONS, {"results": [*others, new]})


def weights_digest(run: Run) -> str | None:
    """Twelve hex digits that change with the model of a run; None for one without checksums."""
    try:
        return hashlib.sha256((run.model / MANIFEST).read_bytes()).hexdigest()[:12]
    except OSError:
        return None


def describe_evaluation(run: Run, result: Mapping[str, Any]) -> dict[str, str]:
    """A result in words: name, score, by family, and how it was measured."""
    data = result.get("data")
    names = [str(each) for each in data] if isinstance(data, list) else []
    suite = str(result.get("suite") or "loss")
    version = result.get("version")
    notes = [str(result.get("date"))[:16].replace("T", " ")]
    notes += [f"at most {result['limit']} of a family"] if is_number(result.get("limit")) else []
    notes += ["asked as text"] if result.get("mode") == "continue" else []
    notes += ["ONNX Runtime"] if result.get("backend") == "onnx" else []
    notes += ["of earlier weights"] if result.get("weights") != weights_digest(run) else []
    measured = [each for each in result.get("figures") or [] if isinstance(each, dict)]
    parts = [f"{figure_name(each)} {figure_text(each)}" for each in measured]
    return {
        "name": " ".join([suite, *([f"v{version}"] if version else []), *names]),
        "score": parts[0] if parts else _figures(result),
        "families": ", ".join(parts[1:] or _families(result.get("family_scores"))),
        "notes": ", ".join(notes),
    }


def share_text(score: Any, interval: Any) -> str:
    """A share with its 95 % interval: `46.7% (30-64)`."""
    if not is_number(score):
        return ""
    both = isinstance(interval, list | tuple) and len(interval) == 2 and all(map(is_number, interval))
    return f"{score:.1%}" + (f" ({100 * interval[0]:.0f}-{100 * interval[1]:.0f})" if both else "")


def figure_name(figure: Mapping[str, Any]) -> str:
    """What a stored figure is: task and name."""
    return f"{figure.get('task') or ''} {figure.get('name') or ''}".strip()


def figure_text(figure: Mapping[str, Any]) -> str:
    """The value of a stored figure with its standard error: `41.2% ± 1.3%`."""
    value, error, spec = figure.get("value"), figure.get("error"), str(figure.get("format") or ".3f")
    if not is_number(value):
        return "not finite"
    try:
        return format(value, spec) + (f" ± {format(error, spec)}" if is_number(error) else "")
    except (TypeError, ValueError):
        return str(value)


def _figures(result: Mapping[str, Any]) -> str:
    if is_number(result.get("loss")):
        bits = result.get("bits_per_byte")
        return f"loss {result['loss']:.4f}" + (f", {bits:.4f} bits per byte" if is_number(bits) else "")
    text = share_text(result.get("score"), result.get("interval"))
    by_token = result.get("by_token")
    if isinstance(by_token, dict) and is_number(by_token.get("score")):
        return f"{text}, per token {share_text(by_token['score'], by_token.get('interval'))}"
    return text


def _families(families: Any) -> list[str]:
    if not isinstance(families, dict):
        return []
    scores = [(name, each["score"]) for name, each in families.items() if isinstance(each, dict) and "score" in each]
    return [f"{name} {score:.0%}" for name, score in scores if is_number(score)]
