"""Large data of several files, encoded into a token cache a part at a time, by several ranks together.

A part is some of the files of a source. It is encoded into a folder of its own (`parts-*/NUMBER/`, beside the caches),
which stays until all are there and are joined: a build that is interrupted goes on with the parts that it has. Several
ranks encode a part each at a time. The joined cache is byte for byte what encoding at once gives.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmcli.data.encode.cache import (
    BUFFER,
    LABELS,
    OFFSETS,
    REJECTED,
    TRAINED,
    CacheWriter,
    Written,
    build_at_once,
    encode_into,
    id_type,
)
from mmcli.data.encode.stored import DamagedCacheError, building, check_files, publish, read_meta, seal
from mmcli.data.formats.files import DataFile
from mmcli.data.records.account import RecordAccount
from mmcli.data.sources.source import Source
from mmcli.data.sources.sources import Sources
from mmcli.errors import MmcliError, UserError
from mmcli.lock import Locked, file_lock, is_locked
from mmcli.ranks import Ranks
from mmcli.stage import Reporter, Silent
from mmcli.text.definition import Definition
from mmcli.text.tokenizer import Tokenizer
from mmcli.threads import cores_among

PART = 2**30  # bytes of files that are encoded together
PARTS_KEPT_SECONDS = 7 * 86_400.0  # those of another build, since its last part
WAIT_SECONDS = 0.5


def build_in_parts(
    folder: Path,
    sources: Sources,
    tokenizer: Tokenizer,
    meta: Mapping[str, Any],
    options: Mapping[str, Any],
    report: Reporter,
    *,
    ranks: Ranks,
) -> None:
    """`build_at_once`, a part at a time, each of which is kept until the cache is whole.

    Raises:
        UserError: see there.
    """
    _remove_old_parts(folder.parent)
    parts = cut(sources)
    if len(parts) == 1:
        build_at_once(folder, sources, tokenizer, meta, options, report)
        return
    with _parts_folder(folder.parent, meta["key"], parts, report) as place:
        if (folder.parent / meta["key"]).is_dir():  # another process was at it, and is done
            return
        job = Job(place, parts, _missing(place, len(parts)), tokenizer.definition, dict(options))
        with_others = ranks.order({"encode": base64.b85encode(pickle.dumps(job)).decode("ascii")})
        _encode_parts(job, tokenizer, ranks if with_others else Ranks(), report)
        _join(job, folder, sources, tokenizer, meta)
        shutil.rmtree(place)


@dataclass(frozen=True)
class Part:
    """Some files of a source, or a source that has none: its number in the data, and itself as data."""

    source: int
    data: Sources


@dataclass(frozen=True)
class Job:
    """Parts to encode, as another rank is told.

    Attributes:
        place: holds a folder for each part, under its number.
        parts: in the order of the data.
        missing: numbers of those that are not there yet, ascending: the first bad record is told first.
    """

    place: Path
    parts: tuple[Part, ...]
    missing: tuple[int, ...]
    tokenizer: Definition
    options: dict[str, Any]


def cut(sources: Sources) -> tuple[Part, ...]:
    """Data in parts of about `PART` bytes, whole files of one source each."""
    return tuple(
        Part(number, replace(sources, members=(replace(source, files=files, weight=None),)))
        for number, source in enumerate(sources.members)
        for files in _groups(source)
    )


def _groups(source: Source) -> Iterator[tuple[DataFile, ...]]:
    group: list[DataFile] = []
    size = 0
    for file in source.files:
        if group and size + file.size > PART:
            yield tuple(group)
            group, size = [], 0
        group.append(file)
        size += file.size
    yield tuple(group)  # empty for what has no files


def assist(order: str, ranks: Ranks) -> None:
    """Encode this rank's parts of what rank 0 has ordered; a refusal is told by that one."""
    job: Job = pickle.loads(base64.b85decode(order))
    try:
        _encode_parts(job, Tokenizer(job.tokenizer), ranks, Silent())
    except UserError:
        return


def _encode_parts(job: Job, tokenizer: Tokenizer, ranks: Ranks, report: Reporter) -> None:
    """Encode the parts that are missing, one of each rank at a time.

    Raises:
        UserError: with `strict`, the first rejected record of a part; data that changed while it was read.
    """
    sizes = [part.data.size for part in job.parts]
    total, workers = sum(sizes), cores_among(ranks.local_world)
    done = total - sum(sizes[number] for number in job.missing)
    for first in range(0, len(job.missing), ranks.world):
        together = job.missing[first : first + ranks.world]
        refused: list[Any] | None = None
        if ranks.rank < len(together):
            number = together[ranks.rank]
            try:
                _encode_part(job, number, tokenizer, _PartOf(report, done, total), workers)
            except UserError as error:
                refused = [number, error.what, error.fix]
        refusals = sorted(each for each in ranks.gather(refused) if each is not None)
        if refusals:
            _, what, fix = refusals[0]
            raise UserError(what, fix)
        done += sum(sizes[number] for number in together)
        report.progress("encode", done, total, "B")


class _PartOf(Silent):
    """Tells the progress of a part as that of the whole, whose size is that of its files."""

    def __init__(self, report: Reporter, before: int, total: int) -> None:
        self._report, self._before, self._total = report, before, total

    def progress(self, task: str, done: float, total: float | None, unit: str) -> None:
        if unit == "B" and self._before + done < self._total:
            self._report.progress(task, self._before + done, self._total, unit)


def _encode_part(job: Job, number: int, tokenizer: Tokenizer, report: Reporter, workers: int) -> None:
    part = job.parts[number].data
    with building(job.place) as folder:
        with RecordAccount(folder / REJECTED, strict=part.strict) as account:
            written = encode_into(folder, part, tokenizer, account, options=job.options, report=report, workers=workers)
        part.check_unchanged()
        meta = {
            "sequences_per_record": written.sequences_per_record,
            "text_bytes": written.text_bytes,
            "account": account.to_json(),
        }
        if written.writer is not None:
            written.writer.finish(meta)
        else:  # all of it was rejected
            seal(folder, [REJECTED], meta)
        publish(folder, job.place / str(number))


def _missing(place: Path, count: int) -> tuple[int, ...]:
    """The numbers of the parts that are not there; those that are damaged are removed."""
    there = {path.name for path in place.iterdir()}  # no name is looked up, which a network file system would remember
    found = []
    for number in range(count):
        if str(number) in there:
            part = place / str(number)
            try:
                check_files(part, read_meta(part))
                continue
            except DamagedCacheError:
                shutil.rmtree(part)
        found.append(number)
    return tuple(found)


def _join(job: Job, folder: Path, sources: Sources, tokenizer: Tokenizer, meta: Mapping[str, Any]) -> None:
    """One cache of all parts, each of which is removed as soon as it was copied: the disk never holds both whole."""
    folders = [job.place / str(number) for number in range(len(job.parts))]
    try:
        described = [read_meta(each) for each in folders]
    except DamagedCacheError as error:  # where a file system has no locks
        what = f"another process took a part of the token cache: {error}"
        raise MmcliError(what, "start again, and let one process at a time encode this data") from None
    account = RecordAccount()
    for own, each in zip(folders, described, strict=True):
        account.add(each["account"])
        if REJECTED in each["sizes"]:
            with (own / REJECTED).open("rb") as file, (folder / REJECTED).open("ab") as rejected:
                shutil.copyfileobj(file, rejected, BUFFER)
    account.check(sources.named)
    written = Written([0] * len(sources.members))
    try:
        for part, own, each in zip(job.parts, folders, described, strict=True):
            if OFFSETS in each["sizes"]:
                if written.writer is None:
                    masked, labelled = TRAINED in each["sizes"], LABELS in each["sizes"]
                    written.writer = CacheWriter(folder, id_type(tokenizer), masked=masked, labelled=labelled)
                    written.sequences_per_record = each["sequences_per_record"]
                before = written.writer.sequences
                written.writer.extend(own)
                written.sequences_by_source[part.source] += written.writer.sequences - before
                written.text_bytes += each["text_bytes"]
            shutil.rmtree(own)
        written.finish(meta, tokenizer, account)
    finally:
        if written.writer is not None:
            written.writer.close()


@contextmanager
def _parts_folder(cache_dir: Path, key: str, parts: Sequence[Part], report: Reporter) -> Iterator[Path]:
    """The folder of the parts of a cache, for this process alone; another one that builds that cache is waited for."""
    cuts = [[part.source, [file.size for file in part.data.files]] for part in parts]
    place = cache_dir.absolute() / f"parts-{hashlib.sha256(json.dumps([key, cuts]).encode()).hexdigest()[:32]}"
    with ExitStack() as stack:
        told = False
        while True:
            try:
                stack.enter_context(file_lock(place.with_suffix(".lock")))
                break
            except Locked:
                if not told:
                    report.note("another process encodes this data: waiting for it")
                told = True
                time.sleep(WAIT_SECONDS)
        place.mkdir(exist_ok=True)
        yield place


def _remove_old_parts(cache_dir: Path) -> None:
    """Remove the parts of builds that nobody went on with."""
    for place in cache_dir.glob("parts-*/"):
        with suppress(OSError):
            if time.time() - place.stat().st_mtime > PARTS_KEPT_SECONDS and not is_locked(place.with_suffix(".lock")):
                shutil.rmtree(place, ignore_errors=True)
