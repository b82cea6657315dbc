"""What pinning inputs, checking files and comparing rendered templates cost a training's start, encoding included.

`mmcli sft --steps 1` on the built-in conversations, from a model of one step, with an empty token cache, under the
profiler, in a fresh process a turn. The share is what the functions of the checks take, each counted where other code
calls it, with all that they call. The profiler slows Python and not the hashing, so small functions look dearer than
they are. The last line is `checks ratio=R goal=1.03`: the whole over the whole without the checks.

    python benchmarks/checks.py --check          # exit 1 if the goal is missed
"""

from __future__ import annotations

import argparse
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GOAL = 1.03
FILES = ("stages/pins.py", "mmcli/inputs.py", "mmcli/manifest.py", "mmcli/verify.py")
FUNCTIONS = (("text/chat.py", "_compare"),)
TRAIN = ["--data", "demo", "--steps", "1", "--device", "cpu"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit 1 if the goal is missed")
    asked = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        for turn in range(asked.repeats):
            place = Path(name) / str(turn)
            place.mkdir()
            environment = {**os.environ, "MMCLI_RUNS": str(place / "runs")}
            run = [sys.executable, "-m", "mmcli", "pretrain", "--preset", "tiny", *TRAIN]
            subprocess.run(run, check=True, env=environment, cwd=place, capture_output=True)
            profiled = [sys.executable, "-m", "cProfile", "-o", str(place / "profile"), "-m", "mmcli", "sft", *TRAIN]
            subprocess.run(profiled, check=True, env=environment, cwd=place, capture_output=True)
            whole, checks = seconds_of(place / "profile")
            print(f"turn {turn + 1}: {whole:.2f} s under the profiler, of which checks {checks:.3f} s", flush=True)
            ratios.append(whole / (whole - checks))
    ratio = statistics.median(ratios)
    print(f"checks ratio={ratio:.3f} goal={GOAL:g}")
    return 1 if asked.check and ratio > GOAL else 0


def seconds_of(profile: Path) -> tuple[float, float]:
    """(all that was profiled, the checks)."""
    stats: Any = pstats.Stats(str(profile))
    found = {place for place in stats.stats if is_check(*place)}
    if not any(is_check(*place) for place in stats.stats if place[2] == "pin_inputs"):
        raise SystemExit(
            "the profile has no checks: the command failed (its profile exits 0), or their files have other names now"
        )
    checks = 0.0
    for place in found:
        callers = stats.stats[place][4]
        checks += sum(cumulative for caller, (_, _, _, cumulative) in callers.items() if caller not in found)
    return stats.total_tt, checks


def is_check(file: str, line: int, function: str) -> bool:
    """Whether a profiled function is one of a check; `line` is where it begins."""
    path = file.replace(os.sep, "/")
    if line == 1 and function == "<module>":
        return False
    return path.endswith(FILES) or any(path.endswith(end) and function == name for end, name in FUNCTIONS)


if __name__ == "__main__":
    sys.exit(main())
