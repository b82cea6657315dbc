"""`mmcli plan STAGE`: time, memory, disk and cost of a training, from a few of its real steps."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.config import StageGroup
from mmcli.cli.help import App
from mmcli.config import Layer, parse_set
from mmcli.stage import Stage

if TYPE_CHECKING:
    from mmcli.forecast import Forecast

Price = Annotated[str | None, typer.Option(help="Price of an hour, such as 1.3/h or 1.3元/h.", metavar="TEXT")]


class PlanGroup(StageGroup):
    """A group with one command for each stage, taking that stage's own options and a price."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        from mmcli.cli.stages import options_app
        from mmcli.runner import load_stage

        stage = load_stage(args[0])
        text = f"Measure a few steps of `mmcli {stage.name}` and say what all of it will take; nothing is kept."
        example = f"mmcli plan {stage.name} --price 1.3/h"
        extra = [inspect.Parameter("price", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Price)]
        made = options_app(stage, f"{text}\n\nExample: {example}", plan_stage, with_run=False, extra=extra)
        command = typer.main.get_command(made)
        command.name = args[0]
        return args[0], command, args[1:]


app = App(cls=PlanGroup)


@app.callback()
def plan() -> None:
    """Say what a training will take: time, memory, disk, cost.

    It takes the options of the stage and does a few of its steps, in about a minute. Of a large corpus a part is read.

    Example: mmcli plan pretrain --preset small --data books/ --price 1.3/h
    """


def plan_stage(
    stage: Stage,
    *,
    flags: Sequence[Layer],
    config: Path | None,
    set: Sequence[str] | None,
    json: bool,
    runs_dir: Path,
    price: str | None,
    preset: str | None = None,
) -> None:
    """Print the forecast of the training that this command line would start."""
    from mmcli.cli.console import escape_control, out, print_json, reporter
    from mmcli.forecast import forecast, parse_price

    amount, shape = parse_price(price) if price is not None else (None, "")
    own = [parse_set(set or []), *flags]
    found = forecast(stage, own, runs_dir=runs_dir, preset=preset, config_file=config, report=reporter())
    cost = None if amount is None else amount * found.seconds / 3600
    if json:
        values = {**dataclasses.asdict(found), "tokens_per_second": found.tokens_per_second}
        print_json({**values, "cost": cost, "price": price})
        return
    from rich.table import Table
    from rich.text import Text

    rows = _rows(found)
    if cost is not None:
        rows.append(("cost", f"{shape.format(cost)} at {price}"))
    if found.published is not None:
        rows.append(("reference", found.published))
    grid = Table.grid(padding=(0, 2))
    for _ in range(2):
        grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(name, Text(escape_control(text)))
    out().print(grid)


def _data_rows(found: Forecast, about: str) -> list[tuple[str, str]]:
    """What the data becomes, where the stage predicts tokens."""
    from mmcli.files import size
    from mmcli.train.config import duration

    data = found.data
    if data is None:
        return []
    in_shards = f" in {data.shards:,} shards" if data.shards > 1 else ""
    files = f"{size(data.bytes)}: " if data.bytes else ""
    rate = f" at {data.bytes / found.encode_seconds / 1e6:.2g} MB/s" if found.share != 1.0 else ""
    return [
        ("data", f"{about}{files}{data.documents:,} documents, {data.tokens:,} tokens"),
        ("rows", f"{about}{data.rows:,} of {data.seq_len:,} tokens{in_shards}"),
        ("tokenize", f"{about}{duration(found.encode_seconds)}{rate}, once, to {size(data.cache_bytes)} of disk"),
    ]


def _rows(found: Forecast) -> list[tuple[str, str]]:
    """The lines of a forecast."""
    from mmcli.train.config import duration

    about = "about " if found.share != 1.0 else ""
    parts = f"with {duration(found.encode_seconds)} to tokenize, {duration(found.other_seconds)} to validate and save"
    rows = [
        *_data_rows(found, about),
        ("model", f"{found.preset or 'as given'}, {found.parameters / 1e6:.1f}M parameters"),
        ("device", f"{found.device}, {found.precision}"),
        ("steps", f"{about}{found.steps:,} of {found.step_tokens:,} tokens, {found.epochs:.2g} epochs"),
        ("speed", f"{found.tokens_per_second:,.0f} tokens/s, {found.step_seconds:.3g} s a step (measured, eager)"),
        ("time", f"{about}{duration(found.seconds)}, {parts}"),
    ]
    if found.peak_memory_bytes is not None:
        rows.append(("memory", f"{found.peak_memory_bytes / 1e9:.1f} GB at most (measured)"))
    size = "as asked or chosen: fits" if found.fits else "the largest that fits into memory"
    if found.micro_batch is not None:
        rows.append(("micro-batch", f"{found.micro_batch}, {size}"))
    lacks = "" if found.disk_bytes <= found.disk_free_bytes else ": too little"
    disk = f"{found.disk_bytes / 1e9:.2f} GB at most, {found.disk_free_bytes / 1e9:,.0f} GB free{lacks}"
    rows.append(("disk", disk))
    if found.share is None:
        rows.append(("estimate", "the size of hub data is not known; steps and time are of the part that was read"))
    elif found.share < 1.0:
        rows.append(("estimate", f"{found.share:.2%} of the data was read; the rest is taken to be like it"))
    return rows
