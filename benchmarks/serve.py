"""`mmcli serve` under many clients against one client: `small`, random weights, fp32, CPU.

Every client keeps asking for continuations of prompts of its own, each with other ids, over HTTP as a stream. Tokens a
second of 16 clients together are held against those of one client; the 95th percentile of the time to the first token
at 4 clients against that of one. Tokens count as they arrive, once the clients have all begun, each at a moment of its
own in a lead-in that counts for nothing; those of replies that are cut off at the end count too. The numbers of clients
take turns, so that a busy machine slows all; the first ratio is a median over the turns, and percentiles are those of
all turns together. The clients run in a process of their own, on the same cores as the server. With `--peer`,
llama.cpp's server (the package xllamacpp) takes turns with ours on the same weights in F32, and is told beside it. The
last line is `serve ratio=R goal=5`.

    python benchmarks/serve.py --check          # exit 1 if either goal is missed
    python benchmarks/serve.py --backend onnx --peer
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

GOAL = 5.0
FIRST_TOKEN_GOAL = 2.0
VOCAB = 6000
MODEL = "random"
LEAD_IN = 2.0  # seconds in which the clients begin
LENGTHS = (32, 96)  # new tokens of a reply, drawn evenly, so that clients do not keep step with each other


@dataclass(frozen=True)
class Load:
    """What a number of clients got."""

    tokens_per_second: float
    first_tokens: list[float]  # seconds


def late(first_tokens: list[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(first_tokens, n=20, method="inclusive")[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each number of clients in each turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="llama.cpp's server in turn with ours")
    parser.add_argument("--be-peer", type=Path, metavar="GGUF", help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal is missed")
    asked = parser.parse_args()
    if asked.be_peer is not None:
        return be_peer(asked.be_peer)
    ratios: list[float] = []
    firsts: dict[int, list[float]] = {1: [], 4: [], 16: []}
    over_peer: dict[int, list[tuple[float, float]]] = {1: [], 4: [], 16: []}  # tokens a second, time to the first token
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as servers:
        port = servers.enter_context(listening(our_server(Path(place), asked.preset, asked.backend)))
        ports = {"mmcli": port}
        if asked.peer:
            ports["llama.cpp"] = servers.enter_context(listening(peer_server(Path(place))))
        for each in ports.values():
            run(each, 1, asked.prompt_tokens, 2.0, seed=-1)  # warms up
        for turn in range(asked.repeats):
            loads: dict[str, dict[int, Load]] = {name: {} for name in ports}
            for clients in firsts:
                for name, each in ports.items():
                    loads[name][clients] = load = run(each, clients, asked.prompt_tokens, asked.seconds, seed=turn)
                    first = f"first token {statistics.median(load.first_tokens) * 1e3:.0f} ms"
                    rate = f"{load.tokens_per_second:7.1f} tokens/s"
                    print(f"turn {turn + 1}: {name}, {clients:2} clients {rate}, {first}", flush=True)
                ours = loads["mmcli"][clients]
                firsts[clients] += ours.first_tokens
                if asked.peer:
                    theirs = loads["llama.cpp"][clients]
                    faster = ours.tokens_per_second / theirs.tokens_per_second
                    later = statistics.median(ours.first_tokens) / statistics.median(theirs.first_tokens)
                    over_peer[clients].append((faster, later))
            ratios.append(loads["mmcli"][16].tokens_per_second / loads["mmcli"][1].tokens_per_second)
    for clients, seconds in firsts.items():
        print(f"{clients:2} clients: first token p95 {late(seconds) * 1e3:.0f} ms of {len(seconds)} replies")
    for clients, pairs in over_peer.items():
        if pairs:
            faster, later = (statistics.median(each) for each in zip(*pairs, strict=True))
            print(f"{clients:2} clients over llama.cpp: tokens/s {faster:.2f}, time to the first token {later:.2f}")
    ratio, lateness = statistics.median(ratios), late(firsts[4]) / late(firsts[1])
    print(f"first token, p95: 4 clients over one = {lateness:.2f}, goal at most {FIRST_TOKEN_GOAL:g}")
    print(f"serve ratio={ratio:.2f} goal={GOAL:g}")
    return 1 if asked.check and (ratio < GOAL or lateness > FIRST_TOKEN_GOAL) else 0


@contextlib.contextmanager
def listening(command: Sequence[str]) -> Iterator[int]:
    """The port of a server, which runs until the end; it prints its address when it is ready."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise SystemExit("the server did not start")
        try:
            yield int(address.rpartition(":")[2])
        finally:
            process.terminate()


def our_server(place: Path, preset: str, backend: str) -> list[str]:
    """The command that serves a model with random weights, which is made here."""
    from mmcli.api import Transformer, model_config, save_model, train_tokenizer

    model = Transformer(model_config(preset))
    draw = random.Random(0)  # a token of text for every id of the model, so that each is seen as it comes
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 8))) for _ in range(20_000)]
    tokenizer = train_tokenizer(words, vocab_size=model.config.vocab_size)
    save_model(place / MODEL, model, model.config, tokenizer)
    command = [sys.executable, "-m", "mmcli", "serve", str(place / MODEL), "--port", "0", "--slots", "16"]
    return [*command, "--max-len", "1024", "--backend", backend, "--device", "cpu"]


def peer_server(place: Path) -> list[str]:
    """The command that serves the same weights with llama.cpp."""
    from peers import make_gguf

    return [sys.executable, __file__, "--be-peer", str(make_gguf(place / MODEL, "f32"))]


def be_peer(file: Path) -> int:
    """Be llama.cpp's server until a signal: as many slots as ours, of as many tokens."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel, params.n_ctx, params.n_gpu_layers, params.verbosity = 16, 16 * 1024, 0, -1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()
    return 0


def run(port: int, clients: int, prompt_tokens: int, seconds: float, *, seed: int) -> Load:
    """Let so many clients ask, for so long after the lead-in."""
    tokens: list[int] = []
    firsts: list[float] = []
    begins = time.perf_counter() + LEAD_IN
    ends = begins + seconds

    def client(number: int) -> None:
        draw = random.Random(f"{seed} {clients} {number}")
        time.sleep(draw.uniform(0, LEAD_IN / 2))
        while (start := time.perf_counter()) < ends:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
                times = ask(connection, draw, prompt_tokens, ends)
            tokens.append(sum(begins <= each < ends for each in times))
            if start >= begins and times:
                firsts.append(times[0] - start)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not firsts:
        raise SystemExit(f"no reply of {clients} clients began within {seconds:g} s; give --seconds more")
    return Load(sum(tokens) / seconds, firsts)


def ask(connection: http.client.HTTPConnection, draw: random.Random, prompt_tokens: int, ends: float) -> list[float]:
    """When each token of one reply came; the client goes away at `ends`."""
    body = {
        "model": MODEL,
        "prompt": [draw.randrange(VOCAB) for _ in range(prompt_tokens)],
        "max_tokens": draw.randint(*LENGTHS),
        "seed": draw.randrange(2**32),
        "stream": True,
    }
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"the server answered {answer.status}: {answer.read().decode()}")
    times: list[float] = []
    while line := answer.readline():
        if line.startswith(b"data: {") and b'"finish_reason":null' in line:
            times.append(time.perf_counter())
        if time.perf_counter() >= ends:
            break
    return times


if __name__ == "__main__":
    sys.exit(main())
