"""How long the command line takes to start, against importing the libraries it shows itself with.

Whole processes, in turn, medians. Last line: `startup ratio=R goal=G`: the time of the slower of `mmcli --help` and
`mmcli params count` over that of `python -c "import typer, rich"`. (typer is kept below 0.29, whose parser imports
pydantic: a third of `params count`.)
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

GOAL = 2.5
COMMANDS = {
    "import typer, rich": [sys.executable, "-c", "import typer, rich"],
    "mmcli --help": [sys.executable, "-m", "mmcli", "--help"],
    "mmcli params count": [sys.executable, "-m", "mmcli", "params", "count", "--preset", "small", "--json"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 where the goal is missed")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.repeats):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = medians["import typer, rich"]
    for name, median in medians.items():
        print(f"{name:>20}  {median:.3f} s  {median / base:.2f}")
    ratio = max(median for name, median in medians.items() if name.startswith("mmcli")) / base
    print(f"startup ratio={ratio:.2f} goal={GOAL}")
    sys.exit(1 if arguments.check and ratio > GOAL else 0)


if __name__ == "__main__":
    main()
