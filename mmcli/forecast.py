"""What a training will take: a few of its real steps, done by the stage itself in a folder that is removed again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli import runner
from mmcli.config import Layer, Resolved, resolve
from mmcli.errors import Interrupted, MmcliError, UserError
from mmcli.lock import file_lock, is_locked
from mmcli.run import RESOLVED, Run
from mmcli.stage import Reporter, Stage, Trial

PART_BYTES = 16_000_000  # of a larger corpus, what is read of it
PART_FILES = 8
LOCK = "plan.lock"
PRICE = re.compile(r"\s*([^\d\s.]*)\s*(\d+(?:\.\d+)?)\s*([^\d/]*?)\s*/\s*h\s*")
PUBLISHED = {"small": "2.1 h and 2.73 yuan on one RTX 3090 (published by MiniMind, not measured here)"}


@dataclass(frozen=True)
class Tokenized:
    """What becomes of the data of a stage that predicts tokens, all of it: from the part of it that was encoded.

    Attributes:
        bytes: of its files; 0 where it has none.
        documents, tokens: of the token cache, whose files take `cache_bytes`.
        shards: in which it is shuffled and packed (docs/decisions/011-shards.md).
        rows: of `seq_len` tokens, of one epoch.
    """

    bytes: int
    documents: int
    tokens: int
    cache_bytes: int
    shards: int
    rows: int
    seq_len: int


@dataclass(frozen=True)
class Forecast:
    """What a training will take, from a few measured steps.

    Attributes:
        steps, step_tokens, step_seconds: optimizer steps in all; tokens and seconds of one.
        encode_seconds: until the data is encoded, from the part of it that was.
        other_seconds: evaluations and checkpoints, estimated.
        seconds: all of it; the budget, where there is one.
        peak_memory_bytes: measured: of the GPU on CUDA, else of the whole process; None where nobody tells.
        disk_bytes: checkpoints and model at most, and the token cache.
        micro_batch: units of a forward pass; None where the stage did not say.
        fits: False if the micro-batch had to be halved for memory.
        share: part of the data that was read, 0 to 1; below 1, what rests on the size of the data is an estimate.
            None: its size is not known before all is read.
        published: what the preset's authors say that their training took.
        data: None for stages whose data is not one sequence of tokens after the other, and for data of the hub.
    """

    stage: str
    preset: str | None
    parameters: int
    device: str
    precision: str
    steps: int
    epochs: float
    step_tokens: int
    step_seconds: float
    encode_seconds: float
    other_seconds: float
    seconds: float
    peak_memory_bytes: int | None
    disk_bytes: int
    disk_free_bytes: int
    micro_batch: int | None
    fits: bool
    share: float | None
    published: str | None
    data: Tokenized | None

    @property
    def tokens_per_second(self) -> float:
        return self.step_tokens / self.step_seconds


def forecast(
    stage: Stage,
    own: Sequence[Layer] = (),
    *,
    runs_dir: Path,
    preset: str | None = None,
    config_file: Path | None = None,
    report: Reporter | None = None,
) -> Forecast:
    """Measure a few steps of what `mmcli STAGE` would do with the same values. Nothing is kept of it.

    Of a large corpus only a part is read, so that it takes about a minute.

    Raises:
        UserError: a value, the data or a model cannot be used, or the stage has no training loop.
        MmcliError: the training fails, such as for memory.
    """
    layers, preset = runner.stage_layers(stage, own, runs_dir=runs_dir, preset=preset, config_file=config_file)
    resolved: Resolved[Any] = resolve(stage.config, layers)
    with _workplace(runs_dir) as folder:
        config, share, size = _with_part(resolved.config, folder)
        run = Run.create(folder / "runs", stage.name, preset or "plan")
        run.update(preset=preset)
        trial = Trial(share=share or 1.0)
        try:
            found = runner.measure(
                stage, Resolved(config, resolved.sources), run, runs_dir=runs_dir, trial=trial, report=report
            )
        except Interrupted as error:
            raise Interrupted("stopped before the steps were measured", "run it again", error.exit_code - 128) from None
        if "step_seconds" not in found:
            what = f"mmcli {stage.name} does not return the totals of a training loop: it cannot be planned"
            raise UserError(what, f"start it: mmcli {stage.name}")
        cache = sum(path.stat().st_size for path in (folder / "runs" / ".cache").rglob("*") if path.is_file())
        return _made(stage, preset, resolved.config, found, run.read_config(RESOLVED), cache, share, size)


def _made(
    stage: Stage,
    preset: str | None,
    config: Any,
    found: dict[str, Any],
    chosen: dict[str, Any],
    cache_bytes: int,
    share: float | None,
    data_bytes: int,
) -> Forecast:
    whole = share or 1.0
    encode_seconds = found.get("encode_seconds", 0.0) / whole
    seconds = found["steps"] * found["step_seconds"] + found["other_seconds"] + encode_seconds
    train = config.train
    micro_batch = chosen.get("micro_batch", train.micro_batch)
    return Forecast(
        stage=stage.name,
        preset=preset,
        parameters=found["parameters"],
        device=found["device"],
        precision=chosen["precision"],
        steps=found["steps"],
        epochs=found["steps"] / found["steps_per_epoch"],
        step_tokens=found["step_tokens"],
        step_seconds=found["step_seconds"],
        encode_seconds=encode_seconds,
        other_seconds=found["other_seconds"],
        seconds=seconds,
        peak_memory_bytes=found["peak_memory_bytes"],
        disk_bytes=found["disk_bytes"] + round(cache_bytes / whole),
        disk_free_bytes=found["disk_free_bytes"],
        micro_batch=micro_batch,
        fits=not found["halved"],
        share=share,
        published=PUBLISHED.get(preset or "") if stage.name == "pretrain" else None,
        data=None if share is None else _tokenized(config, found, cache_bytes, share, data_bytes),
    )


def _tokenized(config: Any, found: dict[str, Any], cache_bytes: int, share: float, data_bytes: int) -> Tokenized | None:
    from mmcli.data.pack.selection import shards_of

    data = found.get("data", {})
    if "tokens" not in data:
        return None
    documents = round(data["kept"] / share)
    return Tokenized(
        bytes=data_bytes,
        documents=documents,
        tokens=round(data["tokens"] / share),
        cache_bytes=round(cache_bytes / share),
        shards=shards_of(documents),
        rows=round(found["steps_per_epoch"] * config.train.batch_size),
        seq_len=config.data.seq_len,
    )


def parse_price(text: str) -> tuple[float, str]:
    """(amount an hour, the format of an amount) of a price such as `1.3/h`, `1.3元/h` or `$0.40/h`.

    Raises:
        UserError: it is not one.
    """
    match = PRICE.fullmatch(text)
    if match is None:
        raise UserError(f'--price "{text}" is not a price of an hour', "write it like 1.3/h, 1.3元/h or $0.40/h")
    before, amount, after = match.groups()
    gap = " " if after.isascii() and after else ""
    return float(amount), f"{_literal(before)}{{:,.2f}}{gap}{_literal(after)}"


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@contextlib.contextmanager
def _workplace(runs_dir: Path) -> Iterator[Path]:
    """A folder on the disk of the runs, removed at the end; those of killed processes are removed first."""
    parent = next((each for each in (runs_dir.absolute(), *runs_dir.absolute().parents) if each.is_dir()), Path("/"))
    for left in parent.glob(".plan-*"):
        if (left / LOCK).exists() and not is_locked(left / LOCK):
            shutil.rmtree(left, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".plan-", dir=parent))
    except OSError as error:
        raise UserError(f"cannot write into {parent}: {error.strerror}", "choose another --runs-dir") from None
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a file system without locks
                stack.enter_context(file_lock(folder / LOCK))
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _with_part(config: Any, folder: Path) -> tuple[Any, float | None, int]:
    """(the config with a part of its data, in `folder`, or all of it where it is small; the share of the whole; the
    bytes of all its files)."""
    from mmcli.data.config import DataConfig
    from mmcli.data.sources.sources import find_sources

    data = getattr(config, "data", None)
    if not isinstance(data, DataConfig):
        return config, 1.0, 0
    sources = find_sources(data.sources, data.columns or ())
    of_hub = any(each.hub is not None for each in sources.members)
    if not of_hub and sources.size <= PART_BYTES:
        return config, 1.0, sources.size
    names, read = [], 0
    for number, source in enumerate(sources.members):
        if source.demo:
            names.append(source.name if source.weight is None else f"{source.name}:{source.weight}")
            continue
        path = folder / f"part-{number}.jsonl"
        part = PART_BYTES * sum(file.size for file in source.files) / max(1, sources.size)
        read += _write_part(source, sources.columns, path, part or PART_BYTES)
        names.append(str(path) if source.weight is None else f"{path}:{source.weight}")
    data = dataclasses.replace(data, sources=tuple(names), columns=None)
    share = None if of_hub else min(1.0, read / sources.size)
    return dataclasses.replace(config, data=data), share, sources.size


def _write_part(source: Any, columns: Any, path: Path, part: float) -> int:
    """Write the records in about `part` bytes of a source, from several of its files, as JSON lines; these bytes."""
    from mmcli.data.formats.files import read_file
    from mmcli.data.record import Record
    from mmcli.data.records.kinds import is_known
    from mmcli.data.sources.columns import renamed

    files = source.files[:: max(1, len(source.files) // PART_FILES)][:PART_FILES]
    read = used = written = 0  # a block is used up when the next one is read

    def count(number: int) -> None:
        nonlocal read, used
        used, read = read, read + number

    streams = [read_file(file, is_known, count) for file in files] if files else [source.hub.records()]
    with path.open("w", encoding="utf-8") as file:
        for number, items in enumerate(streams, 1):
            limit = part * number / len(streams)
            for item in renamed(items, columns) if columns else items:
                if isinstance(item, Record):
                    written += file.write(json.dumps(item.value, ensure_ascii=False, default=str) + "\n")
                if (used if files else written) >= limit:
                    read = used
                    break
            used = read
    if not written:
        raise MmcliError(f"no record can be read at the beginning of {source.name}", "check it: mmcli data check")
    return used
