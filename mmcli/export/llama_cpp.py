"""A GGUF file in llama.cpp, which the package xllamacpp brings: how fast it is, how well it predicts. No torch here."""

from __future__ import annotations

import importlib.util
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmcli.errors import MmcliError, UserError
from mmcli.evaluation.loss import TokenLosses
from mmcli.generate.bench import Speed, summarize

FORCED = 1e6  # added to the logit of a token that must be drawn
TIMEOUT = 600  # seconds, of one request


def can_run_gguf() -> bool:
    """Whether xllamacpp is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


class LlamaCpp:
    """llama.cpp over one GGUF file on the CPU, with its defaults and one sequence."""

    def __init__(self, path: Path, *, vocab_size: int, context: int, threads: int) -> None:
        """Load the file, with room for `context` tokens.

        Raises:
            UserError: xllamacpp is not installed.
            MmcliError: it does not take the file.
        """
        try:
            import xllamacpp
        except ImportError:
            raise UserError("llama.cpp needs the package xllamacpp", "install it: pip install xllamacpp") from None
        self._vocab_size = vocab_size
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity = context, 1, 0, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        try:
            self._server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            raise MmcliError(f"llama.cpp does not take {path}: {error}", "export it again: mmcli export gguf") from None

    def speed(self, prompt: Sequence[int], *, new_tokens: int, repeats: int, load_seconds: float) -> Speed:
        """Greedy decoding as `bench_decode` measures it, by llama.cpp's own clock."""
        found = [
            self._complete(prompt, new_tokens, ignore_eos=True, cache_prompt=False)["timings"]
            for _ in range(repeats + 1)
        ][1:]
        # Its clock of new tokens starts when the first is there.
        rates = [max(1, each["predicted_n"] - 1) / each["predicted_ms"] * 1000 for each in found]
        return summarize(rates, [each["prompt_ms"] / 1000 for each in found], load_seconds)

    def losses(self, documents: Sequence[Sequence[int]]) -> Iterator[TokenLosses]:
        """The losses of every token of each document but its first, read one by one.

        Each is made the only one that can be drawn; llama.cpp tells its probability from before that. Of a token that
        ends inside a character it tells nothing: then another is drawn, and this one looked for among all.
        """
        unknown: list[tuple[int, int]] = []  # (document, place) of those
        nats = [np.zeros(max(0, len(ids) - 1)) for ids in documents]
        whole: int | None = None
        for number, ids in enumerate(documents):
            for place in range(1, len(ids)):
                told = self._told(ids[:place], ids[place], 1)
                if told is None:
                    unknown.append((number, place))
                else:
                    nats[number][place - 1], whole = -float(told["logprob"]), ids[place]
        for number, place in unknown:
            ids = documents[number]
            told = None if whole is None else self._told(ids[:place], whole, self._vocab_size)
            found = [each for each in told["top_logprobs"] if each["id"] == ids[place]] if told is not None else []
            if not found:
                raise MmcliError(
                    f"llama.cpp tells no probability of token {ids[place]}", "leave it out of the comparison"
                )
            nats[number][place - 1] = -float(found[0]["logprob"])
        for ids, nats_N in zip(documents, nats, strict=True):
            yield TokenLosses(np.array(ids[1:], dtype=np.int64), nats_N)

    def _told(self, prompt: Sequence[int], forced: int, candidates: int) -> Any:
        """What is told of the token that is drawn after the prompt, and of so many likely ones; None for nothing."""
        options = {"logit_bias": [[forced, FORCED]], "n_probs": candidates, "cache_prompt": True}
        told = self._complete(prompt, 1, **options).get("completion_probabilities")
        if not told:
            return None
        assert told[0]["id"] == forced, f"{told[0]['id']} was drawn, not {forced}"
        return told[0]

    def _complete(self, prompt: Sequence[int], new_tokens: int, **options: Any) -> Any:
        body = {"prompt": list(prompt), "n_predict": new_tokens, "temperature": 0.0, "samplers": ["top_k"], "top_k": 1}
        asked = urllib.request.Request(
            f"{self._server.listening_address}/completion", json.dumps({**body, **options}).encode()
        )
        asked.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")
            raise MmcliError(f"llama.cpp refuses a prompt of {len(prompt)} tokens: {said}", "leave it out") from None
