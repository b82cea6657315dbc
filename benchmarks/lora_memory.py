"""Peak memory of `mmcli dpo --adapter lora` against `mmcli dpo`: preset `base`, steps of 2 pairs x 256 tokens, fp32.

Each is the whole command in a process of its own, from its start until the model is saved; what counts is the peak of
its resident memory, less that of a process which only loads the libraries (both have these, whatever they train). The
ratio with them is printed beside it. Neither holds a second model: the reference is a table. The weights are random,
which take as much memory as any. Needs mmcli-lora. The last line is `lora_memory ratio=R goal=G`; lower is better.

    python benchmarks/lora_memory.py --check          # exit 1 if the goal is missed
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

GOAL = 0.6
PAIRS, TOKENS = 2, 256
LIBRARIES = "import mmcli.cli, mmcli.stages.dpo, safetensors.torch, tokenizers"


def prepare(place: Path, preset: str) -> None:
    """A model of random weights, and pairs of which every side is longer than a row.

    In a process of its own: what a process held before it starts another counts as the peak of that, too.
    """
    from mmcli.api import Transformer, model_config, save_model, train_tokenizer

    config = model_config(preset)
    tokenizer = train_tokenizer(["The rain falls on the hills of the north."] * 9, vocab_size=config.vocab_size)
    save_model(place / "model", Transformer(config), config, tokenizer)
    sides = {side: f"{side} " + "The hills are dry. " * 2 * TOKENS for side in ("chosen", "rejected")}
    lines = (json.dumps({"prompt": f"How is {number}?", **sides}) + "\n" for number in range(4 * PAIRS))
    (place / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")


def peak_of(command: list[str]) -> int:
    """The largest resident size of a process, in bytes."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(said)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help="exit 1 if the goal is missed")
    asked = parser.parse_args()
    if asked.prepare:
        prepare(asked.prepare, asked.preset)
        return 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        this = [sys.executable, __file__, "--prepare", str(place), "--preset", asked.preset]
        subprocess.run(this, check=True)
        training = [sys.executable, "-m", "mmcli", "dpo", "--from", str(place / "model"), "--device", "cpu"]
        training += ["--data", str(place / "pairs.jsonl"), "--precision", "fp32", "--set", "data.val_fraction=0"]
        training += ["--batch-size", str(PAIRS), "--micro-batch", str(PAIRS), "--seq-len", str(TOKENS)]
        training += ["--steps", str(asked.steps), "--runs-dir", str(place / "runs")]
        libraries = peak_of([sys.executable, "-c", LIBRARIES])
        full = peak_of(training)
        lora = peak_of([*training, "--adapter", "lora"])
    print(f"libraries alone {libraries / 1e9:.2f} GB, full {full / 1e9:.2f} GB, LoRA {lora / 1e9:.2f} GB")
    print(f"with the libraries: {lora / full:.3f}")
    ratio = (lora - libraries) / (full - libraries)
    print(f"lora_memory ratio={ratio:.3f} goal={GOAL:g}")
    return 1 if asked.check and ratio > GOAL else 0


if __name__ == "__main__":
    sys.exit(main())
