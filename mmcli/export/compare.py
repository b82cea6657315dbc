"""A model in every engine and format that it has, measured one after the other, each in a process of its own.

A process of its own has its own memory and threads: what one engine holds does not count for the next. No torch here
before an engine of torch is measured.
"""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from mmcli.errors import MmcliError, UserError
from mmcli.evaluation.engines import load_engine
from mmcli.evaluation.loss import engine_losses, sum_losses
from mmcli.export.held_out import held_out_ids
from mmcli.export.llama_cpp import LlamaCpp, can_run_gguf
from mmcli.export.locate import Dtype, default_gguf_file, find_export, read_record
from mmcli.generate.bench import Speed, bench_decode, load_timed, random_ids
from mmcli.generate.onnx_growing import load_onnx_engine
from mmcli.generate.onnx_session import GRAPH_FILE
from mmcli.generate.profile import Operator, profile_decode
from mmcli.model.formats.hf_config import read_model_config
from mmcli.run import ModelRef
from mmcli.stage import Reporter
from mmcli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mmcli.export.gguf import GgufDtype

EXPORTED: tuple[Dtype, ...] = ("fp32", "int8", "int4")  # what `export_missing` makes,
GGUF_PEERS: tuple[GgufDtype, ...] = ("f32", "q8_0", "q4_0")  # and the same for llama.cpp


@dataclass(frozen=True)
class Contestant:
    """An engine with the weights that it runs."""

    engine: Literal["torch", "onnx", "llama.cpp"]
    dtype: str
    path: Path  # a model folder, an export or a GGUF file

    @property
    def name(self) -> str:
        return f"{self.engine} {self.dtype}"

    @property
    def size_bytes(self) -> int:
        """Of its weights, with the graph where there is one."""
        if self.engine == "llama.cpp":
            return self.path.stat().st_size
        pattern = "*.safetensors" if self.engine == "torch" else GRAPH_FILE + "*"
        return sum(each.stat().st_size for each in self.path.glob(pattern))


@dataclass(frozen=True)
class Measured:
    """What was measured of a contestant."""

    size_bytes: int
    perplexity: float  # on built-in documents, token by token
    speed: Speed
    operators: list[Operator]  # of decoding; empty unless they were asked for


@dataclass(frozen=True)
class Workload:
    """What each contestant does."""

    prompt_tokens: int
    new_tokens: int
    repeats: int
    threads: int
    device: str  # of torch
    profile: bool

    @property
    def length(self) -> int:
        return self.prompt_tokens + self.new_tokens


def find_contestants(ref: ModelRef) -> list[Contestant]:
    """torch, and every export of the model's weights at its default place; the folder alone if it is an export.

    GGUF files count where xllamacpp is installed.
    """
    if (ref.path / GRAPH_FILE).is_file():
        return [Contestant("onnx", _dtype_of(ref.path), ref.path)]
    found = [Contestant("torch", "fp32", ref.path)]
    folders = {dtype: find_export(ref, dtype) for dtype in get_args(Dtype)}
    found += [Contestant("onnx", dtype, folder) for dtype, folder in folders.items() if folder is not None]
    return [*found, *_find_ggufs(ref)] if can_run_gguf() else found


def _find_ggufs(ref: ModelRef) -> list[Contestant]:
    """The GGUF exports of these weights at their default places."""
    from mmcli.export.gguf import FILE_TYPES, is_export_of

    files = {dtype: default_gguf_file(ref, dtype) for dtype in FILE_TYPES}
    return [Contestant("llama.cpp", dtype, file) for dtype, file in files.items() if is_export_of(file, ref.path)]


def _dtype_of(folder: Path) -> str:
    """The format of an ONNX export, as its record has it."""
    proof = read_record(folder).get("proof")
    return str(proof.get("dtype", "?")) if isinstance(proof, dict) else "?"


def export_missing(ref: ModelRef, found: Sequence[Contestant], place: Path, report: Reporter) -> list[Contestant]:
    """The contestants with exports added, made in the folder `place`; what is refused is left out, with a warning.

    Raises:
        UserError: `ref` is an export itself.
    """
    if not any(each.engine == "torch" for each in found):
        raise UserError(
            f"{ref.label} is an ONNX export: nothing can be exported from it", "name its model, or omit --export"
        )
    from mmcli.export.gguf import export_gguf
    from mmcli.export.onnx_export import export_onnx

    have = {(each.engine, each.dtype) for each in found}
    made: list[Contestant] = []

    def attempt(contestant: Contestant, export: Callable[[], object]) -> None:
        if (contestant.engine, contestant.dtype) in have:
            return
        report.note(f"exporting {contestant.name}")
        try:
            export()
        except MmcliError as error:
            report.warn(f"{contestant.name} is left out: {error.what}")
        else:
            made.append(contestant)

    for dtype in EXPORTED:
        one = Contestant("onnx", dtype, place / dtype)
        attempt(one, functools.partial(export_onnx, ref.path, one.path, dtype=dtype))
    if can_run_gguf():
        for kind in GGUF_PEERS:
            one = Contestant("llama.cpp", kind, place / f"{kind}.gguf")
            attempt(one, functools.partial(export_gguf, ref.path, one.path, dtype=kind))
    order = [("torch", "fp32"), *(("onnx", each) for each in get_args(Dtype))]
    order += [("llama.cpp", each) for each in ("f32", "f16", "bf16", "q8_0", "q4_0")]
    return sorted([*found, *made], key=lambda each: order.index((each.engine, each.dtype)))


def measure_alone(contestant: Contestant, model: Path, work: Workload) -> Measured:
    """`measure` in a new process.

    Raises:
        MmcliError: what `measure` raises, or the process ended without an answer.
    """
    command = [sys.executable, "-c", f"from {__name__} import answer; answer()"]
    done = subprocess.run(command, input=pickle.dumps((contestant, model, work)), stdout=subprocess.PIPE)
    if not done.stdout:
        what = f"the process that ran {contestant.name} ended without an answer"
        raise MmcliError(what, "see what it printed; if nothing, free some memory: it was killed")
    found: Measured | tuple[str, str] = pickle.loads(done.stdout)
    if isinstance(found, Measured):
        return found
    raise MmcliError(*found)


def answer() -> None:
    """The process of `measure_alone`: what was measured, or (what, fix) of an error, on stdout, which is its alone."""
    contestant, model, work = pickle.load(sys.stdin.buffer)
    out = os.dup(1)
    os.dup2(2, 1)
    found: Measured | tuple[str, str]
    try:
        found = measure(contestant, model, work)
    except MmcliError as error:
        found = (error.what, str(error.fix))
    with open(out, "wb") as stream:
        pickle.dump(found, stream)


def measure(contestant: Contestant, model: Path, work: Workload) -> Measured:
    """Perplexity, speed and memory of a contestant in this process.

    Args:
        model: the folder with the tokenizer and the configuration.

    Raises:
        UserError, MmcliError: it cannot be opened or run.
    """
    config = read_model_config(model)
    documents = held_out_ids(Tokenizer.load(model), config.max_seq_len - 1)  # llama.cpp fills no context to its end
    longest = max(work.length, *(len(ids) - 1 for ids in documents))
    if contestant.engine == "llama.cpp":
        started = time.perf_counter()
        llama = LlamaCpp(contestant.path, vocab_size=config.vocab_size, context=longest + 1, threads=work.threads)
        seconds = time.perf_counter() - started
        prompt = random_ids(config.vocab_size, work.prompt_tokens)
        speed = llama.speed(prompt, new_tokens=work.new_tokens, repeats=work.repeats, load_seconds=seconds)
        return Measured(contestant.size_bytes, sum_losses(llama.losses(documents)).perplexity, speed, [])
    ref, device = ModelRef(contestant.path, None), work.device if contestant.engine == "torch" else "cpu"
    engine, seconds = load_timed(
        lambda: load_engine(ref, contestant.engine, device=device, threads=work.threads, max_len=longest)
    )
    sizes = {"prompt_tokens": work.prompt_tokens, "new_tokens": work.new_tokens}
    speed = bench_decode(engine, repeats=work.repeats, load_seconds=seconds, **sizes)
    perplexity = sum_losses(engine_losses(engine, documents)).perplexity
    if not work.profile:
        return Measured(contestant.size_bytes, perplexity, speed, [])
    operators = profile_decode(
        engine,
        lambda prefix: load_onnx_engine(contestant.path, max_len=longest, threads=work.threads, profile=prefix),
        **sizes,
    )
    return Measured(contestant.size_bytes, perplexity, speed, operators)
