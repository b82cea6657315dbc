"""Records to token ids: the encoder of each built-in kind, and `encode_records`, through which all data is encoded.

A record is one sequence, a preference two. Whatever reads data (the token cache, `mmcli data`, tokenizers) takes its
records from `keep_records`, so that all of them keep and reject the same ones for the same reasons.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from mmcli.data.encode.workers import EncoderPool, Results
from mmcli.data.record import EncodedRecord, Record, RecordError, Rejected, reject
from mmcli.data.records.account import RecordAccount
from mmcli.data.records.conversations import Message, as_chat, split_reasoning
from mmcli.data.records.kinds import Encode, as_text, dump_kinds, find_kind, is_chat
from mmcli.data.records.preferences import Preference, as_preference
from mmcli.data.sources.sources import Sources
from mmcli.errors import UserError
from mmcli.stage import Reporter, Silent
from mmcli.text.chat import Encoded, encode_chat, shows_reasoning
from mmcli.text.tokenizer import Tokenizer
from mmcli.threads import usable_cores

BATCH_RECORDS = 1024  # records encoded together, or fewer once this many bytes of files were read:
BATCH_BYTES = 4 * 2**20
ALONE_SECONDS = 1.0  # of encoding before other processes are started for it

T = TypeVar("T")


@dataclass(frozen=True)
class RecordBatch:
    """Readable records of one source: its number, and the bytes of all files read so far."""

    source: int
    records: list[Record]
    bytes_read: int


@dataclass(frozen=True)
class KeptBatch(RecordBatch, Generic[T]):
    """A batch, with what those of its records became that are kept."""

    kept: list[tuple[Record, T]]


Converted = Iterator[tuple[RecordBatch, Sequence[T | RecordError]]]


def encode_records(
    sources: Sources,
    tokenizer: Tokenizer,
    account: RecordAccount,
    *,
    encode: Encode | None = None,
    options: Mapping[str, Any] | None = None,
    batch_records: int | None = None,
    workers: int | None = None,
    report: Reporter | None = None,
    task: str = "encode",
) -> Iterator[KeptBatch[EncodedRecord]]:
    """Every record as token ids, batch by batch in order; what is kept and rejected is counted in `account`.

    Flat in memory: a few batches are held for each core.

    Args:
        encode: how records become ids; by default the encoder of `sources.kind`, which also other processes run.
        options: what the encoder is given.
        batch_records: records encoded together, at most.
        workers: processes that encode, once that takes a while; by default one a core.
        report, task: the reporter of the progress, and the name of the task.

    Raises:
        UserError: the tokenizer has no usable chat template where one is needed; with `account` strict, a rejected
            record.
    """
    options = dict(options or {})
    kind = sources.kind if encode is None else None
    function = encode or find_kind(sources.kind).encoder

    def convert(batches: Iterator[RecordBatch]) -> Converted[EncodedRecord]:
        for batch, results in _encoded(batches, kind, tokenizer, function, options, workers):
            yield batch, [_usable(result) for result in results]

    yield from keep_records(sources, account, convert, batch_records=batch_records, report=report, task=task)


def keep_records(
    sources: Sources,
    account: RecordAccount,
    convert: Callable[[Iterator[RecordBatch]], Converted[T]],
    *,
    batch_records: int | None = None,
    report: Reporter | None = None,
    task: str = "read",
) -> Iterator[KeptBatch[T]]:
    """Every record as what `convert` makes of it, kept or rejected: kept + rejected = all records.

    Args:
        convert: from batches to each batch with one result a record, a RecordError for one that cannot be used.
        batch_records: records of a batch, at most.
        report, task: the reporter of the progress, and the name of the task.

    Raises:
        UserError: with `account` strict, a rejected record.
    """
    report, total = report or Silent(), sources.total
    for batch, results in convert(_batches(sources, account, batch_records or BATCH_RECORDS)):
        kept: list[tuple[Record, T]] = []
        for record, result in zip(batch.records, results, strict=True):
            if isinstance(result, RecordError):
                raw = json.dumps(record.value, ensure_ascii=False)
                account.reject(reject(record.file, record.line, str(result), raw))
            else:
                account.keep(record.file)
                kept.append((record, result))
        yield KeptBatch(batch.source, batch.records, batch.bytes_read, kept)
        if total is None:
            report.progress(task, account.tally.total, None, "records")
        elif batch.bytes_read < total:  # the end is told once
            report.progress(task, batch.bytes_read, total, "B")
    end, unit = (total, "B") if total is not None else (account.tally.total, "records")
    report.progress(task, end, end, unit)


def _batches(sources: Sources, account: RecordAccount, batch_records: int) -> Iterator[RecordBatch]:
    """The readable records of one source after the other; unreadable ones go to `account`."""
    read, start, current = 0, 0, 0

    def on_bytes(count: int) -> None:
        nonlocal read
        read += count

    records: list[Record] = []
    for source, item in sources.numbered(on_bytes):
        if records and source != current:
            yield RecordBatch(current, records, read)
            records, start = [], read
        current = source
        if isinstance(item, Rejected):
            account.reject(item)
            continue
        records.append(item)
        if len(records) >= batch_records or read - start >= BATCH_BYTES:
            yield RecordBatch(current, records, read)
            records, start = [], read
    if records:
        yield RecordBatch(current, records, read)


def _encoded(
    batches: Iterator[RecordBatch],
    kind: str | None,
    tokenizer: Tokenizer,
    encode: Encode,
    options: Mapping[str, Any],
    workers: int | None,
) -> Iterator[tuple[RecordBatch, Results]]:
    """Each batch with its results, in order: encoded here at first, by a process a core once that takes a while."""
    started = time.perf_counter()
    for batch in batches:
        yield batch, encode(tokenizer, batch.records, options)
        if kind is not None and time.perf_counter() - started > ALONE_SECONDS:
            break
    else:
        return
    workers = usable_cores() if workers is None else workers
    kinds = dump_kinds() if workers > 1 else None
    if kinds is None:  # one core, or a kind of record that other processes cannot know
        yield from ((batch, encode(tokenizer, batch.records, options)) for batch in batches)
        return
    with EncoderPool(kind, kinds, tokenizer, options, workers=workers) as pool:
        yield from _encoded_by_workers(batches, pool)


def _encoded_by_workers(batches: Iterator[RecordBatch], pool: EncoderPool) -> Iterator[tuple[RecordBatch, Results]]:
    ahead: deque[tuple[RecordBatch, Future[Results]]] = deque()
    for batch in itertools.chain(batches, [None]):
        if batch is not None:
            ahead.append((batch, pool.submit(batch.records)))
        while len(ahead) > (pool.workers + 1 if batch is not None else 0):
            done, results = ahead.popleft()
            yield done, results.result()


def _usable(result: EncodedRecord | RecordError) -> EncodedRecord | RecordError:
    """The same, or the reason why there is nothing to learn from it."""
    if isinstance(result, RecordError):
        return result
    if not all(len(ids) > 1 for ids in result.ids):
        return RecordError("fewer than two tokens: there is nothing to predict")
    if result.trained is not None and not all(any(trained[1:]) for trained in result.trained):
        return RecordError("no token to train on")
    return result


# The encoders of the built-in kinds


def encode_documents(
    tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]
) -> list[EncodedRecord | RecordError]:
    """Text records as bos + text + eos, the texts of a call encoded together over the machine's cores."""
    results: list[EncodedRecord | RecordError] = []
    texts: dict[int, str] = {}
    for index, record in enumerate(records):
        try:
            texts[index] = as_text(record)
        except RecordError as error:
            results.append(error)
        else:
            results.append(RecordError("no token in its text"))
    for (index, text), ids in zip(texts.items(), tokenizer.encode_texts(list(texts.values())), strict=True):
        if ids:
            results[index] = EncodedRecord([tokenizer.frame(ids)], None, len(text.encode()))
    return results


def encode_conversations(
    tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]
) -> list[EncodedRecord | RecordError]:
    """Chat records through the chat template; only what the assistant writes is trained.

    Args:
        options: `train_on`: "all" replies of a conversation (the default) or the "last" one. `train_reasoning`:
            whether the reasoning before a reply is trained too (the default). `mask_prompts`: False to train all
            tokens but the first, which is how a conversation is told from text that may be cut.

    Raises:
        UserError: the tokenizer has no usable chat template.
    """
    as_shown = _as_shown(tokenizer)  # a bad template is one error, not one for each record
    train_on, train_reasoning = options.get("train_on", "all"), options.get("train_reasoning", True)
    masked = options.get("mask_prompts", True)

    def encode(record: Record) -> EncodedRecord:
        chat = as_chat(record)
        messages = as_shown(chat.messages)
        encoded = encode_chat(tokenizer, messages, tools=chat.tools, train_on=train_on, train_reasoning=train_reasoning)
        trained = encoded.trained if masked else [False] + [True] * (len(encoded.ids) - 1)
        return EncodedRecord([encoded.ids], [trained], _text_bytes(messages))

    return encode_each(encode, records)


def encode_mixed(
    tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]
) -> list[EncodedRecord | RecordError]:
    """Each record as `encode_documents` or as `encode_conversations` has it, whose options these are.

    Raises:
        UserError: the tokenizer has no usable chat template.
    """
    is_conversation = [is_chat(record.value) for record in records]
    texts = [record for record, chat in zip(records, is_conversation, strict=True) if not chat]
    chats = [record for record, chat in zip(records, is_conversation, strict=True) if chat]
    documents = (_trained_whole(each) for each in encode_documents(tokenizer, texts, {}))
    conversations = iter(encode_conversations(tokenizer, chats, options))
    return [next(conversations if chat else documents) for chat in is_conversation]


def _trained_whole(result: EncodedRecord | RecordError) -> EncodedRecord | RecordError:
    if isinstance(result, RecordError):
        return result
    return replace(result, trained=[[True] * len(ids) for ids in result.ids])


def encode_preferences(
    tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]
) -> list[EncodedRecord | RecordError]:
    """Preference records as two sequences, prompt + chosen and prompt + rejected; the replies are trained.

    Raises:
        UserError: the tokenizer has no usable chat template.
    """
    as_shown = _as_shown(tokenizer)

    def encode(record: Record) -> EncodedRecord:
        read = as_preference(record)
        pair = Preference(as_shown(read.prompt), as_shown(read.chosen), as_shown(read.rejected), read.tools)
        sides = [_continuation(tokenizer, pair, side) for side in (pair.chosen, pair.rejected)]
        size = _text_bytes([*pair.prompt, *pair.chosen, *pair.prompt, *pair.rejected])
        return EncodedRecord([side.ids for side in sides], [side.trained for side in sides], size)

    return encode_each(encode, records)


def _as_shown(tokenizer: Tokenizer) -> Callable[[list[Message]], list[Message]]:
    """Messages as the chat template takes them: reasoning apart where it shows that, else as they were written.

    Raises:
        UserError: the tokenizer has no usable chat template.
    """
    return split_reasoning if shows_reasoning(tokenizer) else list


def _continuation(tokenizer: Tokenizer, pair: Preference, messages: list[Message]) -> Encoded:
    """Prompt and continuation as one sequence, trained on the continuation alone."""
    whole = [*pair.prompt, *messages]
    if len(messages) == 1:
        return encode_chat(tokenizer, whole, tools=pair.tools, train_on="last")
    encoded = encode_chat(tokenizer, whole, tools=pair.tools)
    prompt = encode_chat(tokenizer, pair.prompt, tools=pair.tools, add_generation_prompt=True).ids
    if encoded.ids[: len(prompt)] != prompt:
        raise RecordError("the chat template writes the prompt otherwise where a reply follows")
    return Encoded(encoded.ids, [False] * len(prompt) + encoded.trained[len(prompt) :])


def encode_each(
    encode: Callable[[Record], EncodedRecord], records: Sequence[Record]
) -> list[EncodedRecord | RecordError]:
    """The result of `encode` for each record: what it returns, or the RecordError or UserError that it raises."""

    def attempt(record: Record) -> EncodedRecord | RecordError:
        try:
            return encode(record)
        except RecordError as error:
            return error
        except UserError as error:
            return RecordError(f"the chat template does not take it: {error.what}")

    return [attempt(record) for record in records]


def _text_bytes(messages: Sequence[Message]) -> int:
    return sum(len((message.get("reasoning_content", "") + message["content"]).encode()) for message in messages)
