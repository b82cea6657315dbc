"""Attack runs and print what held: `python tests/reliability/attack/report.py [KIND=COUNT ...]`, all kinds without."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attack import rows, trials
from attack.scene import Scene, make_scene
from attack.server import Server
from attack.trials import Counts, Trial

FULL = {"kills": 200, "flips": 100, "truncations": 100, "disks": 12, "signals": 40, "rows": 10_000}


def attack(scene: Scene, kind: str, count: int) -> Counts:
    """Make `count` trials of one kind."""
    return Counts(kind, tuple(_trials(scene, kind, count)))


def _trials(scene: Scene, kind: str, count: int) -> Iterator[Trial]:
    if kind == "disks":
        return trials.disks(scene, count)
    if kind == "rows":
        return rows.rows(scene.folder / "rows", count)
    return {"kills": trials.kills, "flips": trials.flips, "truncations": trials.truncations, "signals": trials.signals}[
        kind
    ](scene, count)


def main(argv: list[str]) -> int:
    """Make the trials that are asked for; 1 if any broke a promise."""
    asked = dict(each.split("=") for each in argv) if argv else FULL
    found = []
    with tempfile.TemporaryDirectory() as folder, Server() as server:
        started = time.perf_counter()
        scene = make_scene(Path(folder) / "scene", server)
        print(f"scene: {time.perf_counter() - started:.0f} s", flush=True)
        for kind, count in asked.items():
            started = time.perf_counter()
            made = []
            for trial in _trials(scene, kind, int(count)):
                made.append(trial)
                if trial.problem and kind != "rows":
                    print(f"  {kind}: {trial.fault}: {trial.problem}", flush=True)
            counts = Counts(kind, tuple(made))
            found.append(counts)
            outcomes = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.outcomes.items()))
            held = len(counts.trials) - len(counts.problems)
            seconds = time.perf_counter() - started
            unsaid = sorted({trial.fault.split(":")[0] for trial in made if trial.outcome == "same bytes"})
            if kind in ("flips", "truncations") and unsaid:
                print(f"  {kind}: not said, same bytes: {', '.join(unsaid)}", flush=True)
            print(f"{kind}: {held} of {len(counts.trials)} held ({outcomes}); {seconds:.0f} s", flush=True)
    return int(any(counts.problems for counts in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
