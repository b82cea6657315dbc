"""How long the command line takes to start, against importing the libraries that it cannot do without.

Whole processes, in turn, medians: `mmcli --help` and `mmcli params count` against `python -c "import typer, rich"`, and
a short reply, `mmcli chat --backend onnx --prompt hi`, from an export of `tiny` with torch blocked, against
`python -c "import onnxruntime"`. The last line is `startup ratio=R goal=G`, of the one that is furthest from its goal.
(typer is kept below 0.29, whose parser imports pydantic: a third of `params count`.)
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import verdict

LIBRARIES = {"import typer, rich": 2.5, "import onnxruntime": 4.0}  # with how many times that a command may take
NO_TORCH = "import sys; sys.modules['torch'] = None; from mmcli.cli import main; main()"
COMMANDS = {
    "mmcli --help": ("import typer, rich", ["-m", "mmcli", "--help"]),
    "mmcli params count": ("import typer, rich", ["-m", "mmcli", "params", "count", "--preset", "small", "--json"]),
    "mmcli chat": ("import onnxruntime", ["-c", NO_TORCH, "chat", "EXPORT", "--backend", "onnx", "--prompt", "hi"]),
}
REPLY = ["--max-new-tokens", "20"]  # random weights find no end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument("--repeats", type=int, default=15)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        export = make_export(Path(name))
        runs = {library: ["-c", library] for library in LIBRARIES}
        for command, (_, arguments) in COMMANDS.items():
            runs[command] = [str(export) if each == "EXPORT" else each for each in arguments]
        runs["mmcli chat"] += REPLY
        environment = {**os.environ, "MMCLI_RUNS": str(Path(name) / "runs")}
        seconds: dict[str, list[float]] = {each: [] for each in runs}
        for _ in range(asked.repeats):
            for each, arguments in runs.items():
                started = time.perf_counter()
                subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
                seconds[each].append(time.perf_counter() - started)
    medians = {each: statistics.median(values) for each, values in seconds.items()}
    for each, median in medians.items():
        print(f"{each:>20}  {median:.3f} s")
    ratios = {
        f"{command} over {library}": (medians[command] / medians[library], LIBRARIES[library])
        for command, (library, _) in COMMANDS.items()
    }
    return 0 if verdict("startup", ratios, at_most=True) or not asked.check else 1


def make_export(place: Path) -> Path:
    """An fp32 export of `tiny` with random weights."""
    from mmcli.api import Transformer, export_onnx, model_config, save_model, train_tokenizer

    model = Transformer(model_config("tiny"))
    save_model(place / "model", model, model.config, train_tokenizer(["any text"] * 9, vocab_size=300))
    return export_onnx(place / "model", out=place / "onnx").folder


if __name__ == "__main__":
    sys.exit(main())
