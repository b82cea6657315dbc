"""`mmcli params`: exact parameters, memory and FLOPs of a model shape, before training. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmcli.cli.console import print_json
from mmcli.cli.help import App
from mmcli.cli.options import AsJson
from mmcli.config import Layer, Resolved, option, parse_set, preset_about, preset_layers, read_toml, resolve
from mmcli.errors import UserError
from mmcli.model.config import ModelConfig

if TYPE_CHECKING:
    from mmcli.model.count import Textbook

app = App(help="Count a model's parameters, memory and FLOPs exactly.")

COMPONENT_NAMES = {
    "embedding": "embedding",
    "position": "positions",
    "attention": "attention",
    "ffn": "FFN",
    "experts": "routed experts",
    "shared_experts": "shared experts",
    "router": "router",
    "norms": "norms",
    "head": "output head",
}
COMPARED = {
    "small": "MiniMind2-Small",
    "base": "MiniMind2",
    "moe": "MiniMind2-MoE",
    "base-1024": "MiniMind2*",
    "moe-1024": "MiniMind2-MoE*",
    "gpt2": "GPT-2 Small",
    "llama-7b": "LLaMA-1 7B",
    "phi-1.5": "Phi-1.5",
}
CARD_NOTE = """\
"stated" is the size that the authors give.
* The shape that the MiniMind2 model card writes beside 104M and 145M. It cannot
  have those counts; the released weights are the shapes of the rows without *."""


@dataclass(frozen=True)
class ModelOnly:
    """The config tree of commands that need a model shape and nothing else."""

    model: ModelConfig = option(ModelConfig, "the model")


def resolve_model(preset: str, config_file: Path | None = None, assignments: Sequence[str] = ()) -> Resolved[ModelOnly]:
    """The model of a preset, overridden by the [model] table of a TOML file (other tables are ignored) and by `--set`.

    Raises:
        UserError: an unknown preset or key, a wrong value, a file that is not TOML or has no [model].
    """
    layers = preset_layers(preset)
    if config_file is not None:
        tables = read_toml(config_file)
        if not isinstance(tables.get("model"), dict):
            raise UserError(f"{config_file} has no [model] table", "add one: [model], then dim = 512, ...")
        layers.append(Layer(str(config_file), {"model": tables["model"]}))
    if assignments:
        layers.append(parse_set(assignments))
    return resolve(ModelOnly, layers)


@app.command()
def count(
    preset: Annotated[str, typer.Option(help="Model shape; `mmcli presets list` shows all.", metavar="NAME")] = "small",
    config: Annotated[
        Path | None, typer.Option(help="TOML file whose [model] table changes the preset.", metavar="FILE")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Model value, such as model.dim=640; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    seq_len: Annotated[int, typer.Option(help="Sequence length in tokens, for FLOPs and training memory.")] = 512,
    micro_batch: Annotated[int, typer.Option(help="Sequences per forward pass, for training memory.")] = 1,
    optimizer: Annotated[Literal["adamw", "muon"], typer.Option(help="Optimizer, for training memory.")] = "adamw",
    as_json: AsJson = False,
) -> None:
    """Count the parameters, bytes and FLOPs of a model exactly, without building it.

    Example: mmcli params count --preset small; mmcli params count --preset moe --set model.n_routed_experts=8
    """
    model = resolve_model(preset, config, sets or ()).config.model
    if not 1 <= seq_len <= model.max_seq_len:
        what = f"--seq-len {seq_len} is not in 1 to model.max_seq_len = {model.max_seq_len}"
        raise UserError(what, "give a length in that range, or raise the limit with --set model.max_seq_len=...")
    if micro_batch < 1:
        raise UserError(f"--micro-batch {micro_batch} is not positive", "give 1 or more")
    figures = _figures(model, seq_len, micro_batch, optimizer)
    changed = bool(config or sets)
    about = {} if changed else preset_about(preset)
    shown = {"preset": preset, "changed": changed, "documented": about.get("documented"), **figures}
    if about.get("note"):
        shown["note"] = about["note"]
    if as_json:
        print_json(shown)
    else:
        typer.echo("\n".join(_report(shown, model)))


def _figures(model: ModelConfig, seq_len: int, micro_batch: int, optimizer: Literal["adamw", "muon"]) -> dict[str, Any]:
    """Every figure of `params count`, as `--json` prints them."""
    from mmcli.model import count as counting

    counted = counting.count_parameters(model)
    memory = counting.training_memory_bytes(model, seq_len * micro_batch, optimizer=optimizer)
    textbook = counting.textbook_count(model)
    return {
        "total": counted.total,
        "active": counted.active,
        "components": counted.components,
        "weight_bytes": {kind: counting.weight_bytes(model, kind) for kind in ("fp32", "bf16", "int8", "int4")},
        "training_memory_bytes": {
            "weights": memory.weights,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "optimizer_name": optimizer,
            "activations_estimate": memory.activations,
            "total": memory.total,
            "tokens_per_micro_batch": seq_len * micro_batch,
        },
        "kv_cache_bytes_per_1000_tokens": {
            "fp32": counting.kv_cache_bytes_per_1000_tokens(model, 4),
            "bf16": counting.kv_cache_bytes_per_1000_tokens(model, 2),
        },
        "flops_per_token": {
            "seq_len": seq_len,
            "forward": counting.forward_flops_per_token(model, seq_len),
            "training": counting.training_flops_per_token(model, seq_len),
        },
        "textbook": _textbook_json(textbook),
    }


def _textbook_json(textbook: Textbook) -> dict[str, Any]:
    return {
        "formula": "layers * (4*dim^2 + 2*dim*hidden), hidden = 4*dim",
        "total": textbook.total,
        "differences": [
            {"name": each.name, "parameters": each.parameters, "why": each.why} for each in textbook.differences
        ],
    }


def _report(shown: dict[str, Any], model: ModelConfig) -> list[str]:
    """The text output of `params count`, at most 80 columns wide."""
    total, active = shown["total"], shown["active"]
    name = shown["preset"] + (" (changed)" if shown["changed"] else "")
    lines = [f"{name}: {model.dim} x {model.n_layers} layers, {model.n_heads} heads, {model.n_kv_heads} kv, "
             f"FFN {model.ffn_dim:,}, vocabulary {model.vocab_size:,}", ""]  # fmt: skip
    lines.append(_row("parameters", f"{total:,}", f'stated "{shown["documented"]}"' if shown["documented"] else ""))
    if active != total:
        lines.append(_row("  active", f"{active:,}", f"{active / total:.1%} used per token"))
    for key, parameters in shown["components"].items():
        if parameters:
            lines.append(_row(f"  {COMPONENT_NAMES[key]}", f"{parameters:,}", f"{parameters / total:6.1%}"))
    lines += ["", *_memory_lines(shown), "", *_textbook_lines(shown)]
    if shown.get("note"):
        lines += ["", *_wrap(shown["note"], "")]
    return lines


def _memory_lines(shown: dict[str, Any]) -> list[str]:
    weights, memory, cache = (
        shown[key] for key in ("weight_bytes", "training_memory_bytes", "kv_cache_bytes_per_1000_tokens")
    )
    flops = shown["flops_per_token"]
    optimizer = {"adamw": "AdamW", "muon": "Muon with AdamW"}[memory["optimizer_name"]]
    exact = memory["total"] - memory["activations_estimate"]
    return [
        _row("weights", _bytes(weights["fp32"]), f"fp32; bf16 {_bytes(weights['bf16'])}"),
        _row("", _bytes(weights["int8"]), f"int8; int4 {_bytes(weights['int4'])}, with scales"),
        _row(
            "training memory",
            _bytes(memory["total"]),
            f"fp32, micro-batch of {memory['tokens_per_micro_batch']:,} tokens",
        ),
        _row("  exact", _bytes(exact), f"weights, gradients and {optimizer}"),
        _row("  estimated", _bytes(memory["activations_estimate"]), "activations"),
        _row("KV cache, 1,000 tokens", _bytes(cache["fp32"]), f"fp32; bf16 {_bytes(cache['bf16'])}"),
        _row("FLOPs/token, forward", _flops(flops["forward"]), f"sequences of {flops['seq_len']:,} tokens, causal"),
        _row("FLOPs/token, training", _flops(flops["training"]), "three times the forward pass"),
    ]


def _textbook_lines(shown: dict[str, Any]) -> list[str]:
    textbook = shown["textbook"]
    lines = [_row("textbook formula", f"{textbook['total']:,}", "layers * (4*dim^2 + 2*dim*4*dim)")]
    for each in textbook["differences"]:
        first, *more = _wrap(each["why"], "", 80 - _TEXT_AT)
        lines.append(_row("", f"{each['parameters']:+,}", first))
        lines += [" " * _TEXT_AT + line for line in more]
    return [*lines, _row("exact", f"{shown['total']:,}", "")]


_LABEL, _VALUE = 23, 16
_TEXT_AT = _LABEL + 1 + _VALUE + 2


def _row(label: str, value: str, text: str) -> str:
    return f"{label:<{_LABEL}} {value:>{_VALUE}}  {text}".rstrip()


def _wrap(text: str, indent: str, width: int = 80) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)


def _bytes(number: int) -> str:
    """Bytes in decimal units: 813 kB, 103.3 MB, 27.0 GB."""
    for limit, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return f"{number} B"


def _flops(number: int) -> str:
    for limit, unit in ((10**12, "TFLOP"), (10**9, "GFLOP"), (10**6, "MFLOP")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return f"{number:,} FLOP"


@app.command()
def compare(as_json: AsJson = False) -> None:
    """Compare MiniMind2 with GPT-2, LLaMA and Phi: stated size, exact count, shape.

    Example: mmcli params compare
    """
    rows = [_compared(preset, name) for preset, name in COMPARED.items()]
    if as_json:
        print_json({"models": rows, "note": " ".join(CARD_NOTE.split())})
        return
    template = "{:<15} {:>6} {:>13} {:>13} {:>5} {:>6} {:>5} {:>3} {:>6}"
    lines = [template.format("name", "stated", "exact", "active", "width", "layers", "heads", "kv", "vocab")]
    for row in rows:
        counts = f"{row['total']:,}", f"{row['active']:,}"
        shape = (row[key] for key in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size"))
        lines.append(template.format(row["name"], row["documented"], *counts, *shape))
    typer.echo("\n".join([*lines, "", CARD_NOTE]))


def _compared(preset: str, name: str) -> dict[str, Any]:
    from mmcli.model.count import count_parameters

    model = resolve_model(preset).config.model
    counted = count_parameters(model)
    shape = {key: getattr(model, key) for key in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size")}
    documented = preset_about(preset)["documented"]
    totals = {"total": counted.total, "active": counted.active}
    return {"name": name, "preset": preset, "documented": documented, **totals, **shape}
