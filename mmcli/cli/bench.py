"""`mmcli bench`: the speed of prefill, decode and training on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AsJson, Backend, Model, RunsDir
from mmcli.errors import UserError

if TYPE_CHECKING:
    from mmcli.generate.engine import Engine
    from mmcli.model.transformer import Transformer
    from mmcli.run import ModelRef

app = App()
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: the backend's choice.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Repeats = Annotated[int, typer.Option(help="Timed runs; the median is shown.")]


@app.callback()
def bench() -> None:
    """Tokens per second, time to first token, load time and memory of a model."""


@app.command()
def decode(
    model: Model = "latest",
    backend: Backend = "torch",
    threads: Threads = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens before the first new one.")] = 32,
    new_tokens: Annotated[int, typer.Option(help="Tokens to write.")] = 128,
    repeats: Repeats = 5,
    device: Device = "auto",
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Speed of decoding, one sequence at a time.

    Example: mmcli bench decode --backend onnx --threads 2
    """
    from mmcli.generate.bench import bench_decode

    if new_tokens < 1:
        raise UserError(f"--new-tokens {new_tokens} leaves nothing to write", "give 1 or more")
    found, backend, engine, load_seconds = _open(model, backend, threads, device, prompt_tokens + new_tokens, runs_dir)
    speed = bench_decode(
        engine, prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats, load_seconds=load_seconds
    )
    asked = {"backend": backend, "threads": threads, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    _show({"bench": "decode", "model": found.label, **asked, **asdict(speed)}, json)


@app.command()
def prefill(
    model: Model = "latest",
    backend: Backend = "torch",
    threads: Threads = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens to read.")] = 512,
    repeats: Repeats = 5,
    device: Device = "auto",
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Speed of prefill: reading a prompt.

    Example: mmcli bench prefill 7 --prompt-tokens 1024
    """
    from mmcli.generate.bench import bench_prefill

    found, backend, engine, load_seconds = _open(model, backend, threads, device, prompt_tokens, runs_dir)
    speed = bench_prefill(engine, prompt_tokens=prompt_tokens, repeats=repeats, load_seconds=load_seconds)
    asked = {"backend": backend, "threads": threads, "prompt_tokens": prompt_tokens}
    _show({"bench": "prefill", "model": found.label, **asked, **asdict(speed)}, json)


@app.command()
def train(
    model: Annotated[str | None, typer.Argument(help="A trained model, instead of --preset.")] = None,
    preset: Annotated[str | None, typer.Option(help="Model shape with new weights; default: small.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows at once.")] = 8,
    seq_len: Annotated[int, typer.Option(help="Tokens in a row.")] = 512,
    threads: Threads = None,
    repeats: Repeats = 3,
    device: Device = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="auto: bf16 where it is measured to be quick.")
    ] = "auto",
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Speed of training: forward and backward, not compiled, without data and optimizer.

    Example: mmcli bench train --preset tiny --batch-size 4
    """
    if model is not None and preset is not None:
        raise UserError(f"both the model {model} and --preset {preset}", "give one of them")
    _check_threads(threads)
    label, made = _to_train(model, preset or "small", runs_dir)
    import torch

    from mmcli.train.bench import bench_train
    from mmcli.train.device import choose_accelerator

    if threads is not None:
        torch.set_num_threads(threads)
    accelerator = choose_accelerator(device, precision, width=made.config.dim)
    speed = bench_train(made, accelerator, batch_size=batch_size, seq_len=seq_len, repeats=repeats)
    where = {"device": str(accelerator.device), "precision": accelerator.precision, "threads": threads}
    asked = {**where, "batch_size": batch_size, "seq_len": seq_len}
    _show({"bench": "train", "model": label, **asked, **asdict(speed)}, json)


def _open(
    model: str, backend: str, threads: int | None, device: str, length: int, runs_dir: Path
) -> tuple[ModelRef, str, Engine, float]:
    """(model, backend, engine, seconds that loading took).

    An ONNX export must be there: making one would count as memory.
    """
    from mmcli.evaluation.engines import choose_backend, load_engine
    from mmcli.find import find_model
    from mmcli.generate.bench import load_timed
    from mmcli.model.formats.hf_config import read_model_config
    from mmcli.run import ModelRef

    _check_threads(threads)
    found = find_model(model, runs_dir)
    longest = read_model_config(found.path).max_seq_len
    if not 1 <= length <= longest:
        raise UserError(f"{length:,} tokens, the context of {found.label} holds {longest:,}", "ask for fewer")
    source, backend = found, choose_backend(found, backend)
    if backend == "onnx":
        from mmcli.export.locate import find_export

        folder = find_export(found)
        if folder is None:
            raise UserError(f"{found.label} has no ONNX export of its weights", f"make it: mmcli export onnx {model}")
        source = ModelRef(folder, None)
    engine, seconds = load_timed(lambda: load_engine(source, backend, device=device, threads=threads, max_len=length))
    return found, backend, engine, seconds


def _check_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise UserError(f"--threads {threads} can do no work", "give 1 or more")


def _to_train(model: str | None, preset: str, runs_dir: Path) -> tuple[str, Transformer]:
    """(its name, the model)."""
    if model is None:
        from mmcli.cli.params import resolve_model
        from mmcli.model.transformer import Transformer

        return preset, Transformer(resolve_model(preset).config.model)
    from mmcli.find import find_model
    from mmcli.model.formats.hf_folder import load_model

    found = find_model(model, runs_dir)
    return found.label, load_model(found.path)


UNITS = {
    "tokens_per_second": lambda value: f"{value:,.1f}",
    "slowest": lambda value: f"{value:,.1f}",
    "fastest": lambda value: f"{value:,.1f}",
    "first_token_seconds": lambda value: f"{value * 1000:.1f} ms",
    "step_seconds": lambda value: f"{value * 1000:.1f} ms",
    "load_seconds": lambda value: f"{value:.2f} s",
    "peak_memory_bytes": lambda value: f"{value / 1e6:,.0f} MB",
    "loss": lambda value: f"{value:.3f}",
}
NAMES = {"first_token_seconds": "first token", "step_seconds": "step", "load_seconds": "load"}


def _show(result: dict[str, Any], as_json: bool) -> None:
    from mmcli.cli.console import print_json

    if as_json:
        print_json(result)
        return
    for key, value in result.items():
        if value is not None:
            name = NAMES.get(key, key.removesuffix("_bytes").replace("_", " "))
            typer.echo(f"{name:<18} {UNITS[key](value) if key in UNITS else value}")
