"""What checking every file costs: processes that start on a model folder with a manifest, and on one without.

Whole processes, in turn, medians of their processor time: each loads the preset `small` (103 MB in fp32) and reads a
prompt of 1,024 tokens, which is less than what a training does before its first step. The last line is
`integrity ratio=R goal=1.03`.

    python benchmarks/integrity.py --check          # exit 1 if the goal is missed
"""

from __future__ import annotations

import argparse
import itertools
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

GOAL = 1.03
LOAD = """
import sys
from pathlib import Path
from mmcli.api import Tokenizer, TorchEngine, load_model
folder = Path(sys.argv[1])
Tokenizer.load(folder)
TorchEngine(load_model(folder), max_len=1024).prefill(0, list(range(1024)))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--check", action="store_true", help="exit 1 if the goal is missed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        checked, plain = make_folders(Path(name))
        seconds: dict[Path, list[float]] = {plain: [], checked: []}
        for _ in range(asked.repeats):
            for folder, each in seconds.items():
                before = processor_seconds()
                subprocess.run([sys.executable, "-c", LOAD, str(folder)], check=True)
                each.append(processor_seconds() - before)
    medians = [statistics.median(each) for each in seconds.values()]
    print(f"without a manifest {medians[0]:.3f} s, with one {medians[1]:.3f} s")
    ratio = medians[1] / medians[0]
    print(f"integrity ratio={ratio:.3f} goal={GOAL:g}")
    return 1 if asked.check and ratio > GOAL else 0


def processor_seconds() -> float:
    """Of the processes that ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_folders(place: Path) -> tuple[Path, Path]:
    """(a model folder with a manifest, the same without)."""
    from mmcli.api import ModelConfig, Record, Transformer, export_hf, open_sources, save_model, train_tokenizer

    records = itertools.islice(open_sources(["demo"]).records(), 2000)
    tokenizer = train_tokenizer([r.value["text"] for r in records if isinstance(r, Record)], vocab_size=6400)
    config = ModelConfig()
    save_model(place / "model", Transformer(config, seed=0), config, tokenizer)
    export_hf(place / "model", place / "checked")
    shutil.copytree(place / "checked", place / "plain", ignore=shutil.ignore_patterns("manifest.json"))
    return place / "checked", place / "plain"


if __name__ == "__main__":
    sys.exit(main())
