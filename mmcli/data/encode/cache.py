"""The token cache: every sequence of the data as ids in memory-mapped files, made once for each content.

A cache lies in `<cache_dir>/<key>/`; the key is a SHA-256 over the content of the data, the tokenizer, the kind, the
options and the format. Names and times of files are not part of it: edited text is encoded anew, touched text is not.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from mmcli.data.encode.cache_writer import (
    HASHES,
    META,
    OFFSETS,
    REJECTED,
    TOKENS,
    TRAINED,
    CacheWriter,
    building,
    publish,
)
from mmcli.data.encode.encoders import ENCODERS, Encode, EncodedRecord
from mmcli.data.encode.workers import EncoderPool, Results, usable_cores
from mmcli.data.formats.lines import reject
from mmcli.data.records.accounting import Intake, Tally, refused_by_strict
from mmcli.data.records.kinds import Record
from mmcli.data.sources.hashes import FileHashes
from mmcli.data.sources.sources import Sources
from mmcli.stage import Reporter, Silent
from mmcli.text.tokenizer import Tokenizer

FORMAT = 3
HASHES_OF_FILES = "files.json"  # beside the caches
BATCH_RECORDS = 1024  # records encoded together, or fewer once this many bytes of files were read:
BATCH_BYTES = 4 * 2**20
ALONE_SECONDS = 1.0  # of encoding before other processes are started for it


class DamagedCacheError(Exception):
    """A cache folder whose files are missing or of another size than its description says."""


class TokenCache:
    """Sequences of token ids, read through memory maps.

    Attributes:
        lengths: [N] int64, tokens of each sequence.
        hashes: [N] uint64, a hash of each sequence's ids: equal for duplicates.
        masked: some tokens are not trained (chat); else `trained` is all ones.
        sequences_per_record: sequences i*s to i*s+s-1 belong to record i.
        tokens, text_bytes: totals; `text_bytes` counts UTF-8 bytes of the text behind the tokens.
        pad_id: what fills rows.
        tally: how many records were kept and rejected when the cache was made.
        parts: [P] int64, sequences of each part of the sources (each `--data`), in order.
        mixture: (name, share of the tokens) of each part, where weights were given. Not part of the key.
    """

    def __init__(self, folder: Path) -> None:
        """Open a finished cache.

        Raises:
            DamagedCacheError: a file is missing or has another size than it should.
        """
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            sizes = {name: (folder / name).stat().st_size for name in meta["sizes"]}
        except (OSError, ValueError, KeyError) as error:
            raise DamagedCacheError(f"{folder}: {error}") from None
        if sizes != meta["sizes"]:
            raise DamagedCacheError(f"{folder}: sizes are {sizes}, not {meta['sizes']}")
        self.folder = folder
        self.key: str = meta["key"]
        self.kind: str = meta["kind"]
        self.masked: bool = meta["masked"]
        self.sequences_per_record: int = meta["sequences_per_record"]
        self.tokens: int = meta["tokens"]
        self.text_bytes: int = meta["text_bytes"]
        self.pad_id: int = meta["pad_id"]
        self.tally = Tally(**meta["tally"])
        self.parts: np.ndarray = np.array(meta["parts"], dtype=np.int64)
        self.mixture: tuple[tuple[str, float], ...] | None = None
        self._ids = np.memmap(folder / TOKENS, dtype=meta["dtype"], mode="r")
        self._trained = np.memmap(folder / TRAINED, dtype=np.uint8, mode="r") if self.masked else None
        self._offsets = np.memmap(folder / OFFSETS, dtype=np.int64, mode="r")
        self.hashes: np.ndarray = np.memmap(folder / HASHES, dtype=np.uint64, mode="r")
        self.lengths: np.ndarray = np.diff(self._offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens `start` to `stop` of sequence `i`, as stored (uint16 or uint32)."""
        return self._ids[self._slice(i, start, stop)]

    def trained(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """uint8, 1 for each of those tokens that the model learns to write."""
        where = self._slice(i, start, stop)
        if self._trained is None:
            return np.ones(where.stop - where.start, dtype=np.uint8)
        return self._trained[where]

    def _slice(self, i: int, start: int, stop: int | None) -> slice:
        first, length = int(self._offsets[i]), int(self.lengths[i])
        stop = length if stop is None else min(stop, length)
        return slice(first + min(start, stop), first + stop)

    @classmethod
    def build_or_open(
        cls,
        cache_dir: Path,
        sources: Sources,
        tokenizer: Tokenizer,
        *,
        encode: Encode | None = None,
        options: Mapping[str, Any] | None = None,
        report: Reporter | None = None,
        quarantine: Path | None = None,
    ) -> TokenCache:
        """The cache of `sources` under `tokenizer`: opened if it is there, else built.

        Args:
            cache_dir: holds the caches, a folder each.
            encode: how records become ids; by default the encoder of `sources.kind`.
            options: what `encode` is given; JSON values, part of the key.
            quarantine: where the list of rejected records goes, if there are any.

        Raises:
            UserError: no usable record; with `sources.strict`, a rejected one; data that changed while it was read.
        """
        report = report or Silent()
        encode, options = encode or ENCODERS[sources.kind], dict(options or {})
        ingredients = {
            "format": FORMAT,
            "data": sources.fingerprint_by(FileHashes(cache_dir / HASHES_OF_FILES)),
            "tokenizer": tokenizer.fingerprint,
            "kind": sources.kind,
            "encode": f"{encode.__module__}.{encode.__qualname__}",
            "options": options,
        }
        key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()
        place = cache_dir / key
        cache = _open(place, report)
        if cache is None:
            with building(cache_dir) as folder:
                try:
                    _build(folder, sources, tokenizer, encode, options, {"key": key, **ingredients}, report)
                finally:
                    _copy_rejected(folder, quarantine)
                publish(folder, place)
            cache = cls(place)
        _copy_rejected(place, quarantine)
        if sources.strict and cache.tally.rejected:
            raise refused_by_strict(cache.tally.first[0])
        cache.mixture = sources.mixture
        return cache


def _open(place: Path, report: Reporter) -> TokenCache | None:
    if not place.is_dir():
        return None
    try:
        return TokenCache(place)
    except DamagedCacheError as error:
        report.warn(f"the token cache is damaged and is made anew ({error})")
    aside = place.with_name(f"damaged-{secrets.token_hex(4)}")
    try:
        place.rename(aside)
    except FileNotFoundError:  # another process moved it first
        return None
    shutil.rmtree(aside, ignore_errors=True)
    return None


def _copy_rejected(folder: Path, quarantine: Path | None) -> None:
    if quarantine is not None and (folder / REJECTED).exists():
        quarantine.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / REJECTED, quarantine)


def _build(
    folder: Path,
    sources: Sources,
    tokenizer: Tokenizer,
    encode: Encode,
    options: Mapping[str, Any],
    meta: dict[str, Any],
    report: Reporter,
) -> None:
    """Encode everything into `folder`; flat in memory, since a few batches of records are held for each core."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    writer: CacheWriter | None = None
    text_bytes, per_record = 0, 1
    parts = [0] * len(sources.parts)
    total = sources.total
    try:
        with Intake(folder / REJECTED, strict=sources.strict) as intake:
            batches = record_batches(sources, intake)
            for part, batch, done, results in _encoded(batches, tokenizer, encode, options):
                for record, result in zip(batch, results, strict=True):
                    reason = refusal(result)
                    if reason is not None or not isinstance(result, EncodedRecord):
                        raw = json.dumps(record.value, ensure_ascii=False)
                        intake.reject(reject(record.file, record.line, reason or "", raw))
                        continue
                    if writer is None:
                        writer = CacheWriter(folder, dtype, masked=result.trained is not None)
                        per_record = len(result.ids)
                    masks = result.trained if result.trained is not None else [None] * per_record
                    for ids, trained in zip(result.ids, masks, strict=True):
                        writer.append(ids, trained)
                    parts[part] += per_record
                    text_bytes += result.text_bytes
                    intake.keep(record.file)
                if total is None:
                    report.progress("encode", intake.tally.total, None, "records")
                elif done != total:  # the end is told once all is written
                    report.progress("encode", done, total, "B")
            intake.check(sources.named)
        sources.check_unchanged()
        assert writer is not None  # `check` refuses data with nothing kept
        end, unit = (total, "B") if total is not None else (intake.tally.total, "records")
        report.progress("encode", end, end, unit)
        rest = {
            "dtype": dtype.name,
            "masked": (folder / TRAINED).exists(),
            "sequences_per_record": per_record,
            "sequences": writer.sequences,
            "tokens": writer.tokens,
            "text_bytes": text_bytes,
            "pad_id": tokenizer.pad_id,
            "parts": parts,
            "tally": intake.tally.to_json(),
        }
        writer.finish({**meta, **rest})
    finally:
        if writer is not None:
            writer.close()


def _encoded(
    batches: Iterator[tuple[int, list[Record], float]], tokenizer: Tokenizer, encode: Encode, options: Mapping[str, Any]
) -> Iterator[tuple[int, list[Record], float, Results]]:
    """Each batch with its results, in order: encoded here at first, by a process a core once that takes a while."""
    kind = next((kind for kind, known in ENCODERS.items() if known is encode), None)
    cores = usable_cores()
    started = time.perf_counter()
    for part, batch, done in batches:
        yield part, batch, done, encode(tokenizer, batch, options)
        if kind is not None and cores > 1 and time.perf_counter() - started > ALONE_SECONDS:
            yield from _encoded_by_workers(batches, EncoderPool(kind, tokenizer, options, workers=cores))


def _encoded_by_workers(
    batches: Iterator[tuple[int, list[Record], float]], pool: EncoderPool
) -> Iterator[tuple[int, list[Record], float, Results]]:
    with pool:
        ahead: deque[tuple[int, list[Record], float, Future[Results]]] = deque()
        for item in itertools.chain(batches, [None]):
            if item is not None:
                ahead.append((*item, pool.submit(item[1])))
            while len(ahead) > (pool.workers + 1 if item is not None else 0):
                part, batch, done, results = ahead.popleft()
                yield part, batch, done, results.result()


def refusal(result: object) -> str | None:
    """Why an encoded record cannot be used, or None."""
    if not isinstance(result, EncodedRecord):
        return str(result)
    if not all(len(ids) > 1 for ids in result.ids):
        return "fewer than two tokens: there is nothing to predict"
    if result.trained is not None and not all(any(trained[1:]) for trained in result.trained):
        return "no token to train on"
    return None


def record_batches(sources: Sources, intake: Intake) -> Iterator[tuple[int, list[Record], float]]:
    """(part, readable records of it, bytes of files read so far), batch by batch; other records go to `intake`."""
    read, start, current = 0, 0, 0

    def on_bytes(count: int) -> None:
        nonlocal read
        read += count

    batch: list[Record] = []
    for part, item in sources.numbered(on_bytes):
        if batch and (part != current or len(batch) >= BATCH_RECORDS or read - start >= BATCH_BYTES):
            yield current, batch, float(read)
            batch, start = [], read
        current = part
        if isinstance(item, Record):
            batch.append(item)
        else:
            intake.reject(item)
    if batch:
        yield current, batch, float(read)
