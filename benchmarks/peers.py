"""Who writes tokens beside mmcli: llama.cpp, onnxruntime-genai and transformers, over the same weights, taking turns.

A writer continues a prompt greedily by a number of tokens, and says when the first came and how fast the others did.
llama.cpp tells its own times, without its server; mmcli's are those of its Python loop, sampling included.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = 1024  # tokens that each makes room for
REST = 0.3  # seconds: ONNX Runtime's threads go on spinning for 30 ms, and would take a core from who comes next


@dataclass(frozen=True)
class Written:
    """What a writer wrote, and how fast."""

    ids: list[int]
    first_seconds: float  # from the prompt to the first token
    tokens_per_second: float  # of the tokens after the first; NaN if there is none


Writer = Callable[[list[int], int], Written]


def take_turns(
    writers: Mapping[str, Writer], prompt: list[int], new_tokens: int, repeats: int
) -> dict[str, list[Written]]:
    """What each wrote in each turn, every turn in another order; a turn before them warms up."""
    found: dict[str, list[Written]] = {name: [] for name in writers}
    names, shuffle = list(writers), random.Random(0).shuffle
    for turn in range(repeats + 1):
        shuffle(names)
        for name in names:
            time.sleep(REST)
            written = writers[name](prompt, new_tokens)
            if turn:
                found[name].append(written)
    return found


def random_prompt(tokens: int) -> list[int]:
    """Ids of ordinary tokens."""
    import numpy as np

    ids: list[int] = np.random.default_rng(0).integers(300, 6000, tokens).tolist()
    return ids


def make_model(folder: Path, config: Any) -> Path:
    """A model folder with random weights. Its logits are nearly alike, so int4 finds nothing to keep in 8 bits."""
    import dataclasses

    from mmcli.api import Transformer, save_model, train_tokenizer

    if not folder.exists():
        small = dataclasses.replace(config, init_std=config.init_std / 2)
        save_model(folder, Transformer(small), small, train_tokenizer(["any text"] * 9, vocab_size=300))
    return folder


def make_onnx(model: Path, dtype: Any) -> Path:
    """The ONNX export of the model, made beside it unless it is there."""
    from mmcli.api import export_onnx

    out = model.parent / f"{model.name}-{dtype}"
    return out if out.exists() else export_onnx(model, out=out, dtype=dtype).folder


def make_gguf(model: Path, dtype: Any) -> Path:
    """The GGUF export of the model, made beside it unless it is there."""
    from mmcli.api import export_gguf

    out = model.parent / f"{model.name}-{dtype}.gguf"
    return out if out.exists() else export_gguf(model, out=out, dtype=dtype).path


@contextlib.contextmanager
def open_place(asked: Path | None) -> Iterator[Path]:
    """The folder that was asked for, or one that is removed in the end."""
    if asked is not None:
        asked.mkdir(parents=True, exist_ok=True)
        yield asked
    else:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)


def onnx_writer(folder: Path, threads: int) -> Writer:
    """What `mmcli chat --backend onnx` does at temperature 0."""
    from mmcli.api import OnnxEngine, SamplingConfig, generate

    engine = OnnxEngine.load(folder, threads=threads, max_len=CONTEXT)
    greedy = SamplingConfig(temperature=0, repetition_penalty=1)

    def write(prompt: list[int], new_tokens: int) -> Written:
        reply = generate(engine, 0, prompt, greedy, max_new_tokens=new_tokens)
        ids = list(reply)
        return Written(ids, reply.prefill_seconds, reply.tokens_per_second or float("nan"))

    return write


def llama_writer(file: Path, threads: int) -> Writer:
    """llama.cpp with its defaults, as the package xllamacpp brings it."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity = CONTEXT, 1, 0, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    options = {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True, "cache_prompt": False}

    def write(prompt: list[int], new_tokens: int) -> Written:
        body = {"prompt": prompt, "n_predict": new_tokens, "return_tokens": True, **options}
        asked = urllib.request.Request(f"{server.listening_address}/completion", json.dumps(body).encode())
        asked.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(asked, timeout=600) as answer:
            reply = json.load(answer)
        times = reply["timings"]  # its clock of new tokens starts when the first is there
        seconds = times["predicted_ms"] / 1000
        return Written(reply["tokens"], times["prompt_ms"] / 1000, _rate(times["predicted_n"] - 1, seconds))

    return write


def genai_writer(folder: Path, threads: int) -> Writer:
    """onnxruntime-genai on the very export that mmcli runs."""
    import onnxruntime_genai as genai

    config = genai.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = genai.Model(config)

    def write(prompt: list[int], new_tokens: int) -> Written:
        params = genai.GeneratorParams(model)
        length = len(prompt) + new_tokens
        params.set_search_options(max_length=CONTEXT, min_length=length, do_sample=False)
        generator = genai.Generator(model, params)
        started = time.perf_counter()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
        seconds = time.perf_counter() - first
        ids = [int(id) for id in generator.get_sequence(0)[len(prompt) :]]
        return Written(ids, first - started, _rate(new_tokens - 1, seconds))

    return write


def transformers_writer(folder: Path, threads: int) -> Writer:
    """transformers' `generate` as its documentation calls it, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def write(prompt: list[int], new_tokens: int) -> Written:
        ids_BT = torch.tensor([prompt])
        clock = _Clock()
        options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
        started = time.perf_counter()
        out_BT = model.generate(
            ids_BT, attention_mask=torch.ones_like(ids_BT), eos_token_id=None, streamer=clock, **options
        )
        first, last = clock.times[1], clock.times[-1]  # the prompt comes before them
        ids = [int(id) for id in out_BT[0, len(prompt) :]]
        return Written(ids, first - started, _rate(new_tokens - 1, last - first))

    return write


class _Clock:
    """A streamer that keeps when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, ids: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if tokens else float("nan")


def verdict(name: str, ratios: Mapping[str, tuple[float, float]], *, at_most: bool = False) -> bool:
    """Print a line for each of (ratio, goal), and last the one that is furthest from its goal; True if all are met.

    Args:
        at_most: a ratio must not be above its goal, rather than not below.
    """
    for case, (ratio, goal) in ratios.items():
        print(f"{case:<40} ratio={ratio:.2f} goal={goal:g}")
    worst = max if at_most else min
    ratio, goal = worst(ratios.values(), key=lambda each: each[0] / each[1])
    print(f"{name} ratio={ratio:.2f} goal={goal:g}")
    return ratio <= goal if at_most else ratio >= goal


def median_of_turns(ones: list[float], others: list[float]) -> float:
    """Median over the turns of one / other."""
    return statistics.median(a / b for a, b in zip(ones, others, strict=True))
