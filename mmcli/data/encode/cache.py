"""The token cache: every sequence of the data as ids in memory-mapped files, made once for each content.

A cache lies in `<cache_dir>/<key>/`; the key is a SHA-256 over the content of the data, the tokenizer, the kind, the
options and the format. Names and times of files are not part of it: edited text is encoded again, touched text is not.

Every block of a cache has a checksum, and all of them are compared whenever a cache is opened, at about the speed of
reading it: what is damaged is made again. `stored.py` has the life of the folder; large data is encoded in parts
(`parts.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mmcli.data.encode.encoders import encode_records
from mmcli.data.encode.stored import META, DamagedCacheError, building, check_files, publish, read_meta, seal
from mmcli.data.formats.files import FileHashes
from mmcli.data.records.account import RecordAccount, Tally, refused_by_strict
from mmcli.data.records.kinds import Encode, find_kind
from mmcli.data.sources.sources import Sources
from mmcli.stage import Reporter, Silent
from mmcli.text.tokenizer import Tokenizer

FORMAT = 4
CHECKED_SINCE = 4  # the first format with checksums
TOKEN_CACHES = ".cache/tokens"  # the caches of a runs folder; safe to delete
HASHES_OF_FILES = "files.json"  # beside the caches
TOKENS, TRAINED, OFFSETS, HASHES = "tokens.bin", "trained.bin", "offsets.bin", "hashes.bin"
LABELS = "labels.bin"  # of kinds whose records have a label
REJECTED = "rejected.jsonl"
BUFFER = 2**20  # bytes
OFFSETS_AT_ONCE = 2**18

Build = Callable[[Path, Sources, Tokenizer, Mapping[str, Any], Mapping[str, Any], Reporter], None]  # as `build_at_once`


class TokenCache:
    """Sequences of token ids, read through memory maps.

    Attributes:
        hashes: [N] uint64, a hash of each sequence's ids: equal for duplicates.
        labels: [N] float32, the label of each sequence's record; None where records have none.
        masked: some tokens are not trained (chat); else `trained` is all ones.
        sequences_per_record: sequences i*s to i*s+s-1 belong to record i.
        tokens, text_bytes: totals; `text_bytes` counts UTF-8 bytes of the text behind the tokens.
        pad_id: what fills rows.
        tally: how many records were kept and rejected when the cache was made.
        sequences_by_source: [N] int64, sequences of each source (each `--data`), in order.
        mixture: (name, share of the tokens) of each source, where weights were given. Not part of the key.
        course: (share at the first step, share at the last) of each source, where shares change. Neither.
    """

    def __init__(self, folder: Path, *, check: bool = True) -> None:
        """Open a finished cache, all of which is read and compared with its checksums.

        Args:
            check: False where another process has just done that.

        Raises:
            DamagedCacheError: a file is missing, or differs from what was written.
        """
        meta = read_meta(folder)
        if check:
            check_files(folder, meta)
        self.folder = folder
        self.key: str = meta["key"]
        self.kind: str = meta["kind"]
        self.masked: bool = meta["masked"]
        self.sequences_per_record: int = meta["sequences_per_record"]
        self.tokens: int = meta["tokens"]
        self.text_bytes: int = meta["text_bytes"]
        self.pad_id: int = meta["pad_id"]
        self.tally = Tally(**meta["tally"])
        self.sequences_by_source: np.ndarray = np.array(meta["parts"], dtype=np.int64)
        self.mixture: tuple[tuple[str, float], ...] | None = None
        self.course: tuple[tuple[float, float], ...] | None = None
        self._ids = np.memmap(folder / TOKENS, dtype=meta["dtype"], mode="r")
        self._trained = np.memmap(folder / TRAINED, dtype=np.uint8, mode="r") if self.masked else None
        self._offsets = np.memmap(folder / OFFSETS, dtype=np.int64, mode="r")
        self.hashes: np.ndarray = np.memmap(folder / HASHES, dtype=np.uint64, mode="r")
        labelled = LABELS in meta["sizes"]
        self.labels: np.ndarray | None = np.fromfile(folder / LABELS, dtype=np.float32) if labelled else None
        offsets = self._offsets
        if offsets[0] != 0 or offsets[-1] != self.tokens or not _ascending(offsets):
            raise DamagedCacheError(f"{folder / OFFSETS} does not cut {self.tokens:,} tokens into sequences")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64, tokens of each sequence, computed anew: nothing of the size of the data stays in memory."""
        return np.diff(self._offsets)

    def lengths_of(self, which_M: np.ndarray) -> np.ndarray:
        """[M] int64, tokens of these sequences."""
        return np.asarray(self._offsets[which_M + 1] - self._offsets[which_M])

    def tokens_between(self, first: int, last: int) -> int:
        """Tokens of sequences `first` to `last - 1`."""
        return int(self._offsets[last] - self._offsets[first])

    def ids(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens `start` to `stop` of sequence `i`, as stored (uint16 or uint32)."""
        return self._ids[self._slice(i, start, stop)]

    def trained(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """uint8, 1 for each of those tokens that the model learns to write."""
        where = self._slice(i, start, stop)
        if self._trained is None:
            return np.ones(where.stop - where.start, dtype=np.uint8)
        return self._trained[where]

    def cuttable(self, which_M: np.ndarray) -> np.ndarray:
        """[M] bool, the sequences that are text: trained from their first token on, so that they may be cut anywhere.

        Conversations and pairs begin with what is not trained, and are kept whole.
        """
        if self._trained is None:
            return np.ones(len(which_M), dtype=bool)
        return np.asarray(self._trained[self._offsets[which_M]] != 0)

    def _slice(self, i: int, start: int, stop: int | None) -> slice:
        first = int(self._offsets[i])
        length = int(self._offsets[i + 1]) - first
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
        build: Build | None = None,
        check: bool = True,
    ) -> TokenCache:
        """The cache of `sources` under `tokenizer`: opened if it is there, else built.

        Args:
            cache_dir: holds the caches, a folder each.
            encode: how records become ids; by default the encoder of `sources.kind`.
            options: what `encode` is given; JSON values, part of the key.
            quarantine: where the list of rejected records goes, if there are any.
            build: fills the folder of a cache that is not there, with the encoder of `sources.kind`; by default all is
                encoded at once.
            check: see `TokenCache`.

        Raises:
            UserError: no usable record; with `sources.strict`, a rejected one; data that changed while it was read.
        """
        assert build is None or encode is None, "a build of its own has the encoder of the kind"
        report = report or Silent()
        options = dict(options or {})
        function = encode or find_kind(sources.kind).encoder
        ingredients = {
            "format": FORMAT,
            "data": sources.fingerprint_by(FileHashes(cache_dir / HASHES_OF_FILES)),
            "tokenizer": tokenizer.fingerprint,
            "kind": sources.kind,
            "encode": f"{function.__module__}.{function.__qualname__}",
            "options": options,
        }
        key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()
        place = cache_dir / key
        cache = _open(place, report, check=check)
        if cache is None:
            with building(cache_dir) as folder:
                try:
                    meta = {"key": key, **ingredients}
                    if build is None:
                        build_at_once(folder, sources, tokenizer, meta, options, report, encode=encode)
                    else:
                        build(folder, sources, tokenizer, meta, options, report)
                finally:
                    _copy_rejected(folder, quarantine)
                publish(folder, place)
            cache = cls(place)
        _copy_rejected(place, quarantine)
        if sources.strict and cache.tally.rejected:
            raise refused_by_strict(cache.tally.first[0])
        cache.mixture, cache.course = sources.mixture, sources.course
        return cache


def _ascending(offsets: np.ndarray) -> bool:
    """True if no offset is below the one before it; looked at in parts, so that memory stays flat."""
    starts = range(0, len(offsets) - 1, OFFSETS_AT_ONCE)
    parts = (np.asarray(offsets[first : first + OFFSETS_AT_ONCE + 1]) for first in starts)
    return all(bool((part[1:] >= part[:-1]).all()) for part in parts)


def is_outdated(folder: Path) -> bool:
    """True of a cache of an older format, which had no checksums; nothing opens it any more."""
    try:
        meta = json.loads((folder / META).read_bytes())
        return bool(meta["format"] < CHECKED_SINCE and "checksums" not in meta)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _open(place: Path, report: Reporter, *, check: bool) -> TokenCache | None:
    if not place.is_dir():
        return None
    try:
        return TokenCache(place, check=check)
    except DamagedCacheError as error:
        report.warn(f"the token cache is damaged and is rebuilt ({error})")
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


def build_at_once(
    folder: Path,
    sources: Sources,
    tokenizer: Tokenizer,
    meta: Mapping[str, Any],
    options: Mapping[str, Any],
    report: Reporter,
    *,
    encode: Encode | None = None,
) -> None:
    """Encode everything into `folder`, which lies beside its place.

    Args:
        meta: what identifies the cache, the first entries of its description.

    Raises:
        UserError: no usable record; with `sources.strict`, a rejected one; data that changed while it was read.
    """
    with RecordAccount(folder / REJECTED, strict=sources.strict) as account:
        written = encode_into(folder, sources, tokenizer, account, encode=encode, options=options, report=report)
        account.check(sources.named)
    sources.check_unchanged()
    written.finish(meta, tokenizer, account)


@dataclass
class Written:
    """What was written into a folder.

    Attributes:
        sequences_by_source: of each source of the data.
        writer: of the files; None until a record is kept.
    """

    sequences_by_source: list[int]
    writer: CacheWriter | None = None
    sequences_per_record: int = 1
    text_bytes: int = 0

    def finish(self, meta: Mapping[str, Any], tokenizer: Tokenizer, account: RecordAccount) -> None:
        """Flush everything, and describe it in `meta.json`."""
        assert self.writer is not None  # `RecordAccount.check` refuses data with nothing kept
        rest = {
            "dtype": id_type(tokenizer).name,
            "masked": (self.writer.folder / TRAINED).exists(),
            "sequences_per_record": self.sequences_per_record,
            "sequences": self.writer.sequences,
            "tokens": self.writer.tokens,
            "text_bytes": self.text_bytes,
            "pad_id": tokenizer.pad_id,
            "parts": self.sequences_by_source,
            "tally": account.tally.to_json(),
        }
        self.writer.finish({**meta, **rest})


def id_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """What holds an id: two bytes where the vocabulary fits into them, else four."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def encode_into(
    folder: Path,
    sources: Sources,
    tokenizer: Tokenizer,
    account: RecordAccount,
    *,
    encode: Encode | None = None,
    options: Mapping[str, Any],
    report: Reporter,
    workers: int | None = None,
) -> Written:
    """Encode all records of some data into the files of a folder, which are closed where that fails."""
    found = Written([0] * len(sources.members))
    try:
        batches = encode_records(
            sources, tokenizer, account, encode=encode, options=options, workers=workers, report=report
        )
        for batch in batches:
            for _, record in batch.kept:
                if found.writer is None:
                    masked, labelled = record.trained is not None, record.label is not None
                    found.writer = CacheWriter(folder, id_type(tokenizer), masked=masked, labelled=labelled)
                    found.sequences_per_record = len(record.ids)
                masks = record.trained if record.trained is not None else [None] * len(record.ids)
                for ids, trained in zip(record.ids, masks, strict=True):
                    found.writer.append(ids, trained, record.label)
                found.text_bytes += record.text_bytes
            found.sequences_by_source[batch.source] += found.sequences_per_record * len(batch.kept)
    except BaseException:
        if found.writer is not None:
            found.writer.close()
        raise
    return found


class CacheWriter:
    """Appends sequences to the files of a cache folder."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], *, masked: bool, labelled: bool = False) -> None:
        self._dtype = dtype
        names = [TOKENS, OFFSETS, HASHES, *([TRAINED] if masked else []), *([LABELS] if labelled else [])]
        self.folder = folder
        self._files: dict[str, IO[bytes]] = {name: (folder / name).open("wb", buffering=BUFFER) for name in names}
        self._files[OFFSETS].write(np.int64(0).tobytes())
        self.sequences = 0
        self.tokens = 0

    def append(self, ids: Sequence[int], trained: Sequence[bool] | None, label: float | None = None) -> None:
        """Add one sequence; `trained` where and only where the cache is masked, `label` where it is labelled."""
        data = np.asarray(ids, dtype=self._dtype).tobytes()
        self.sequences += 1
        self.tokens += len(ids)
        self._files[TOKENS].write(data)
        self._files[OFFSETS].write(np.int64(self.tokens).tobytes())
        self._files[HASHES].write(hashlib.blake2b(data, digest_size=8).digest())
        if TRAINED in self._files:
            assert trained is not None and len(trained) == len(ids)
            self._files[TRAINED].write(np.asarray(trained, dtype=np.uint8).tobytes())
        if LABELS in self._files:
            assert label is not None
            self._files[LABELS].write(np.float32(label).tobytes())

    def extend(self, part: Path) -> None:
        """Add every sequence of another cache folder, whose files are the same."""
        offsets = np.fromfile(part / OFFSETS, dtype=np.int64)[1:]
        self._files[OFFSETS].write((offsets + self.tokens).tobytes())
        self.sequences += len(offsets)
        self.tokens += int(offsets[-1])
        for name in self._files.keys() - {OFFSETS}:
            with (part / name).open("rb") as file:
                shutil.copyfileobj(file, self._files[name], BUFFER)

    def finish(self, meta: dict[str, Any]) -> None:
        """Flush everything to the disk, the description of the cache last, with a checksum of each block (CRC-32)."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.close()
        seal(self.folder, (*self._files, REJECTED), meta)

    def close(self) -> None:
        """Close the files; a cache that is not finished stays unusable."""
        for file in self._files.values():
            file.close()
