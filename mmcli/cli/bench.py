"""`mmcli bench`: a model's engines and formats side by side; the speed of prefill, decode and training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmcli.cli.bench_view import print_comparison, show, to_document
from mmcli.cli.help import HELP, App, Group
from mmcli.cli.options import AsJson, Backend, Model, RunsDir
from mmcli.errors import MmcliError, UserError

if TYPE_CHECKING:
    from mmcli.generate.engine import Engine
    from mmcli.generate.onnx_session import SessionEngine
    from mmcli.model.transformer import Transformer
    from mmcli.run import ModelRef


class BenchGroup(Group):
    """`mmcli bench [MODEL]` is `mmcli bench compare [MODEL]`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = (*self.list_commands(ctx), *HELP["help_option_names"])
        return super().parse_args(ctx, args if args and args[0] in known else ["compare", *args])


app = App(cls=BenchGroup)
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: the backend's choice.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Repeats = Annotated[int, typer.Option(help="Timed runs; the median is shown.")]
PromptTokens = Annotated[int, typer.Option(help="Tokens before the first new one.")]
NewTokens = Annotated[int, typer.Option(help="Tokens to write.")]
Profile = Annotated[bool, typer.Option("--profile", help="Show which operators take the time.")]


@app.callback()
def bench() -> None:
    """Tokens per second, time to first token, load time and memory of a model.

    `mmcli bench [MODEL]` is `mmcli bench compare [MODEL]`.
    """


@app.command()
def compare(
    model: Model = "latest",
    export: Annotated[
        bool, typer.Option("--export", help="Make what is not exported yet, in a temporary folder.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: one a core.")] = None,
    prompt_tokens: PromptTokens = 32,
    new_tokens: NewTokens = 128,
    repeats: Repeats = 3,
    device: Annotated[str, typer.Option(help="Of torch: auto, cpu, cuda or mps.")] = "auto",
    profile: Profile = False,
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """All engines and formats of a model side by side: size, perplexity, speed, memory.

    torch, the ONNX exports, and GGUF files in llama.cpp where xllamacpp is installed; each in a process of its own,
    one after the other. The perplexity is that of built-in documents.

    Example: mmcli bench compare latest --export
    """
    import tempfile

    from mmcli.cli.console import print_json, reporter
    from mmcli.export.compare import Workload, export_missing, find_contestants, measure_alone
    from mmcli.find import find_language_model
    from mmcli.generate.bench import check_repeats
    from mmcli.threads import usable_threads

    _check_threads(threads)
    _check_new_tokens(new_tokens)
    check_repeats(repeats)
    found = find_language_model(model, runs_dir)
    work = Workload(prompt_tokens, new_tokens, repeats, threads or usable_threads(), device, profile)
    _check_length(found, prompt_tokens, new_tokens)
    report = reporter()
    measured, refused = {}, {}
    with tempfile.TemporaryDirectory(prefix="mmcli-bench-") as place:
        contestants = find_contestants(found)
        if export:
            contestants = export_missing(found, contestants, Path(place), report)
        for each in contestants:
            report.note(f"measuring {each.name}")
            try:
                measured[each] = measure_alone(each, found.path, work)
            except MmcliError as error:
                refused[each] = error
        if not measured:
            raise next(iter(refused.values()))
        if json:
            print_json(to_document(found.label, work, measured, refused))
        else:
            print_comparison(found.label, work, measured)
    for each, reason in refused.items():
        report.warn(f"{each.name} is left out: {reason.what}")
    if [each.engine for each in contestants] == ["torch"] and not export:
        report.note(f"it has no exports; make them for this: mmcli bench {model} --export")


@app.command()
def decode(
    model: Model = "latest",
    backend: Backend = "torch",
    threads: Threads = None,
    prompt_tokens: PromptTokens = 32,
    new_tokens: NewTokens = 128,
    repeats: Repeats = 5,
    device: Device = "auto",
    profile: Profile = False,
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Speed of decoding, one sequence at a time.

    Example: mmcli bench decode --backend onnx --threads 2
    """
    from mmcli.generate.bench import bench_decode
    from mmcli.generate.profile import profile_decode

    _check_new_tokens(new_tokens)
    opened = _open(model, backend, threads, device, prompt_tokens, new_tokens, runs_dir)
    sizes = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    speed = bench_decode(opened.engine, repeats=repeats, load_seconds=opened.load_seconds, **sizes)
    operators = profile_decode(opened.engine, opened.profiled, **sizes) if profile else None
    asked = {"backend": opened.backend, "threads": opened.threads, **sizes}
    show({"bench": "decode", "model": opened.label, **asked, **asdict(speed)}, json, operators, "a token")


@app.command()
def prefill(
    model: Model = "latest",
    backend: Backend = "torch",
    threads: Threads = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens to read.")] = 512,
    repeats: Repeats = 5,
    device: Device = "auto",
    profile: Profile = False,
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Speed of prefill: reading a prompt.

    Example: mmcli bench prefill 7 --prompt-tokens 1024
    """
    from mmcli.generate.bench import bench_prefill
    from mmcli.generate.profile import profile_prefill

    opened = _open(model, backend, threads, device, prompt_tokens, 0, runs_dir)
    speed = bench_prefill(opened.engine, prompt_tokens=prompt_tokens, repeats=repeats, load_seconds=opened.load_seconds)
    operators = profile_prefill(opened.engine, opened.profiled, prompt_tokens=prompt_tokens) if profile else None
    asked = {"backend": opened.backend, "threads": opened.threads, "prompt_tokens": prompt_tokens}
    show({"bench": "prefill", "model": opened.label, **asked, **asdict(speed)}, json, operators, "a prompt")


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
    show({"bench": "train", "model": label, **asked, **asdict(speed)}, json)


@dataclass(frozen=True)
class Opened:
    """An engine that is measured."""

    label: str
    backend: str
    threads: int | None  # None: the backend chose
    engine: Engine
    load_seconds: float
    profiled: Callable[[Path], SessionEngine]  # opens it once more; see `profile_decode`


def _open(
    model: str,
    backend: str,
    threads: int | None,
    device: str,
    prompt_tokens: int,
    new_tokens: int,
    runs_dir: Path,
) -> Opened:
    """The engine. An ONNX export must be there: making one would count as memory."""
    from mmcli.evaluation.engines import choose_backend, load_engine
    from mmcli.find import find_model
    from mmcli.generate.bench import load_timed
    from mmcli.run import ModelRef

    _check_threads(threads)
    found = find_model(model, runs_dir)
    _check_length(found, prompt_tokens, new_tokens)
    length = prompt_tokens + new_tokens
    source, backend = found, choose_backend(found, backend)
    if backend == "onnx":
        from mmcli.export.locate import find_export

        folder = find_export(found)
        if folder is None:
            raise UserError(f"{found.label} has no ONNX export of its weights", f"make it: mmcli export onnx {model}")
        from mmcli.generate.onnx_growing import load_onnx_engine
        from mmcli.generate.onnx_threads import choose_threads

        source = ModelRef(folder, None)
        threads = threads or choose_threads(folder, lambda n: load_onnx_engine(folder, max_len=length, threads=n))
    engine, seconds = load_timed(lambda: load_engine(source, backend, device=device, threads=threads, max_len=length))

    def profiled(prefix: Path) -> SessionEngine:
        from mmcli.generate.onnx_growing import load_onnx_engine

        return load_onnx_engine(source.path, max_len=length, threads=threads, profile=prefix)

    return Opened(found.label, backend, threads, engine, seconds, profiled)


def _check_length(found: ModelRef, prompt_tokens: int, new_tokens: int) -> None:
    from mmcli.model.formats.hf_config import read_model_config

    longest, length = read_model_config(found.path).max_seq_len, prompt_tokens + new_tokens
    if not 1 <= length <= longest:
        raise UserError(f"{length:,} tokens, the context of {found.label} holds {longest:,}", "ask for fewer")


def _check_new_tokens(new_tokens: int) -> None:
    if new_tokens < 1:
        raise UserError(f"--new-tokens {new_tokens} leaves nothing to write", "give 1 or more")


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
