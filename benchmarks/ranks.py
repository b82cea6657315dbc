"""Two ranks of one thread against one process with two threads, on `mmcli pretrain` itself, in turn.

Last line: `ranks ratio=R goal=G`: tokens a second of the two ranks over those of the one process; higher is better.
Each run trains for some steps on the built-in corpus; the first ones are left out. A busy machine spoils it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

GOAL = 0.9
LEFT_OUT = 3  # steps that warm up
OPTIONS = ["--precision", "fp32", "--device", "cpu", "--set", "train.sample_every=100000", "--set",
           "train.eval_every=100000", "--set", "data.val_fraction=0"]  # fmt: skip


def tokens_per_second(runs: Path, ranks: int, steps: int, rest: list[str]) -> float:
    """The median over the steps of a run."""
    threads = "2" if ranks == 1 else "1"
    several = ["--nproc", str(ranks)] if ranks > 1 else []
    command = [sys.executable, "-m", "mmcli", "pretrain", "--steps", str(steps), "--runs-dir", str(runs)]
    done = subprocess.run(
        [*command, *OPTIONS, *rest, *several],
        env={**os.environ, "OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    run = max(path for path in runs.iterdir() if path.name[:4].isdigit())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "elapsed_seconds" in line][LEFT_OUT:]
    return statistics.median(
        (after["tokens"] - before["tokens"]) / max(1e-3, after["elapsed_seconds"] - before["elapsed_seconds"])
        for before, after in itertools.pairwise(lines)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 where the goal is missed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--seq-len", default="512")
    parser.add_argument("--batch-size", default="8")
    arguments = parser.parse_args()
    rest = ["--preset", arguments.preset, "--seq-len", arguments.seq_len, "--batch-size", arguments.batch_size]
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeats):
            for ranks in found:
                found[ranks].append(tokens_per_second(Path(folder), ranks, arguments.steps, rest))
    ratio = statistics.median(two / one for one, two in zip(found[1], found[2], strict=True))
    for ranks, rates in found.items():
        threads = "2 threads" if ranks == 1 else "1 thread each"
        print(f"{ranks} process{'es' if ranks > 1 else ''}, {threads}: {statistics.median(rates):,.0f} tokens/s")
    print(f"ranks ratio={ratio:.3f} goal={GOAL}")
    sys.exit(arguments.check and ratio < GOAL)


if __name__ == "__main__":
    main()
