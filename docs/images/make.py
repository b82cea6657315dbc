"""demo.svg, the picture in the README: what `mmcli demo` showed in the end, from what it kept (demo.json here).

After a new demo: python docs/images/make.py RUNS_DIR; without RUNS_DIR the picture is drawn again from demo.json.
"""

from __future__ import annotations

import html
import io
import json
import re
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.cells import cell_len
from rich.console import Console

from mmcli.cli.demo_view import Facts, draw
from mmcli.find import find_run
from mmcli.report.curves import Curve, thinned
from mmcli.report.overview import plot_runs
from mmcli.report.scale import Chart

HERE = Path(__file__).parent
KEPT, PICTURE = HERE / "demo.json", HERE / "demo.svg"
COLUMNS = 80
FONTS = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)  # they would come from the network
LENGTHS = re.compile(r'textLength="([0-9.]+)"([^>]*)>([^<]+)<')


def keep(runs_dir: Path) -> None:
    """Take what a demo showed, and the curve of its pretraining."""
    value = json.loads((runs_dir / "demo.json").read_text(encoding="utf-8"))
    curves = [thinned(each, 160) for each in plot_runs([find_run(value["runs"]["pretrain"], runs_dir)]).curves]
    value["curves"] = [
        {"label": each.label, "x": each.x, "y": [round(y, 4) for y in each.y], "dots": each.dots} for each in curves
    ]
    KEPT.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def picture() -> str:
    """The SVG of what is kept."""
    value = json.loads(KEPT.read_text(encoding="utf-8"))
    curves = [
        Curve(each["label"], tuple(each["x"]), tuple(each["y"]), dots=each["dots"]) for each in value.pop("curves")
    ]
    value.pop("limit")
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
    draw(console, Facts.from_json(value), Chart(tuple(curves)))
    drawn = console.export_svg(title="mmcli demo", code_format=FONTS.sub("", CONSOLE_SVG_FORMAT), unique_id="demo")
    return LENGTHS.sub(_widened, drawn)


def _widened(match: re.Match[str]) -> str:
    """A text whose length counts wide characters as two: rich counts each as one."""
    length, between, text = match.groups()
    plain = html.unescape(text)
    return f'textLength="{float(length) * cell_len(plain) / len(plain):g}"{between}>{text}<'


if __name__ == "__main__":
    if len(sys.argv) > 1:
        keep(Path(sys.argv[1]))
    PICTURE.write_text(picture(), encoding="utf-8")
